"""What a re-key tells its caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Rekeyed:
    """What a re-key did; with `dry_run` what it would do.

    `key_names` have new KEKs, wrapped by `master_keys`. `older_generations` stay readable under the old ones
    until `gc` removes them. `kms_calls` counts calls to key services.
    """

    url: str
    dataset_id: str
    generation: int
    key_names: tuple[str, ...]
    master_keys: Mapping[str, tuple[str, ...]]
    files: int
    resumed_files: int
    rows: int
    bytes_in: int
    bytes_out: int
    seconds: float
    kms_calls: int
    older_generations: tuple[int, ...]
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)
