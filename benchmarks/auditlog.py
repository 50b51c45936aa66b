"""What the audit log costs: the time of a line in a file, and the lines of an open."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Final

import encpipe
from benchmarks import datasets
from benchmarks.method import Figure
from benchmarks.ratios import Results, Scratch
from encpipe.audit import audit_of, verify_audit
from encpipe.config import AuditConfig, Config
from encpipe.keys import WrappedKey
from encpipe.testing import InMemoryKms

_EVENTS: Final = 2_000
_RUNS: Final = 5
_FILES: Final = 200
_WRAPPED: Final = WrappedKey("aws-kms:arn:aws:kms:eu-central-1:111122223333:key/" + "0" * 36, b"", "", "")


def audit_log() -> Results:
    """`audit_event_microseconds`, lock and write included, and `audit_lines_per_open`: a dataset of 200 files
    under 2 key names, opened and read in full."""
    scratch = Scratch()
    scratch.clear()
    folder = scratch.fresh()
    folder.mkdir()
    seconds = [_one_run(folder / f"{n}.jsonl") for n in range(_RUNS)]
    results = Results()
    results.details["audit_event_runs"] = seconds
    results.figures = [
        Figure("audit_event_microseconds", statistics.median(seconds) * 1e6, bar=50, lower=True, unit="us"),
        Figure("audit_lines_per_open", _lines_per_open(folder), bar=3, lower=True),
    ]
    scratch.clear()
    return results


def _one_run(path: Path) -> float:
    """Seconds for a line that tells as much as that of an unwrap."""
    audit = audit_of(AuditConfig(f"file:{path.absolute()}"))
    audit.check()
    start = time.perf_counter()
    for _ in range(_EVENTS):
        audit.record(
            "unwrap", dataset_id="0" * 32, key_names=("footer",), kek_id="0" * 32, master_keys=(_WRAPPED,)
        )
    taken = time.perf_counter() - start
    verify_audit(path).check()
    return taken / _EVENTS


def _lines_per_open(folder: Path) -> int:
    log = (folder / "open.jsonl").absolute()
    kms = InMemoryKms(("footer", "pii"))
    settings = Config(keys={"footer": ("memory:footer",), "pii": ("memory:pii",)})
    encpipe.write_dataset(
        datasets.small_files(_FILES),
        folder / "data",
        policy=datasets.policy(datasets.SMALL_COLUMN),
        config=settings,
        master_keys=encpipe.MasterKeys(settings, extra={"memory": kms}),
        workers=datasets.WORKERS,
    )
    audited = dataclasses.replace(settings, audit=AuditConfig(f"file:{log}"))
    keys = encpipe.MasterKeys(audited, extra={"memory": kms})
    with encpipe.open_dataset(folder / "data", config=audited, master_keys=keys) as dataset:
        rows = sum(batch.num_rows for batch in dataset.scan(threads=datasets.WORKERS))
    if rows != _FILES * 100:
        raise AssertionError(f"read {rows} rows")
    return verify_audit(log).lines
