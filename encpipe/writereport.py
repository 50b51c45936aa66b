"""What a write tells its caller, and the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from encpipe.audit import Facts
from encpipe.commit import Target
from encpipe.filelist import FileEntry
from encpipe.keys import WrappedKey


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


def keys_used(target: Target) -> dict[str, tuple[WrappedKey, ...]]:
    """Key name -> wrappings of the KEK that new data goes under."""
    active = [record for record in target.records if record.state == "active"]
    return {record.key_name: target.wrappings[record.id] for record in active}


def facts_of(target: Target, entries: Sequence[FileEntry]) -> Facts:
    """What the audit log is told of a commit that is about to be made of new files."""
    used = keys_used(target)
    return {
        "dataset_id": target.dataset_id,
        "generation": 1 if target.base is None else target.base.manifest.core.generation + 1,
        "key_names": tuple(used),
        "master_keys": [wrapped for wrappings in used.values() for wrapped in wrappings],
        "counts": {
            "files": len(entries),
            "rows": sum(entry.rows for entry in entries),
            "bytes": sum(entry.size for entry in entries),
        },
    }


def report_of(
    url: str,
    target: Target,
    entries: Sequence[FileEntry],
    *,
    generation: int,
    resumed_files: int,
    bytes_in: int,
    seconds: float,
    kms_calls: int,
) -> WriteReport:
    """The report of a write that was committed."""
    return WriteReport(
        url=url,
        dataset_id=target.dataset_id,
        generation=generation,
        files=len(entries),
        resumed_files=resumed_files,
        rows=sum(entry.rows for entry in entries),
        bytes_in=bytes_in,
        bytes_out=sum(entry.size for entry in entries),
        seconds=seconds,
        kms_calls=kms_calls,
        master_keys={
            name: tuple(wrapped.master_key for wrapped in wrappings)
            for name, wrappings in keys_used(target).items()
        },
    )
