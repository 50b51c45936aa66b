"""What a write tells its caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WriteReport:
    """What a write did. `kms_calls` counts calls to key services: one for each key name and master key."""

    url: str
    dataset_id: str
    generation: int
    files: int
    resumed_files: int
    rows: int
    bytes_in: int
    bytes_out: int
    seconds: float
    kms_calls: int
    master_keys: Mapping[str, tuple[str, ...]]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)
