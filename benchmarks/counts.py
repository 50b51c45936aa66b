"""Figures that are counted, or that need a dataset of many files."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Final

import encpipe
from benchmarks import datasets
from benchmarks.method import Figure
from benchmarks.ratios import Results, Scratch
from benchmarks.workloads import NARROW
from encpipe.config import Config
from encpipe.testing import InMemoryKms

_MANY: Final = 10_000
_SOME: Final = 200
_OPENS: Final = 5
_TAIL_BYTES: Final = 8


def one_column() -> Results:
    """`one_column_bytes_ratio`: what the process read from the storage, by the kernel's own count.

    Manifest and file list are read before; each file's footer counts as free once, as the bar says.
    """
    url = datasets.encrypted_workload(NARROW)
    results = Results()
    with datasets.open_encrypted(url) as dataset:
        column = dataset.schema.names[len(dataset.schema.names) // 2]
        chunks = _chunk_bytes(dataset, column)
        footers = sum(_footer_bytes(url / entry.path) for entry in dataset.files)
        _read_column(dataset, column)  # lazy imports are over when it counts
        before = bytes_read()
        _read_column(dataset, column)
        read = bytes_read() - before
    results.details["one_column"] = {"read": read, "footers": footers, "chunks": chunks, "column": column}
    ratio = (read - footers) / chunks
    results.figures = [Figure("one_column_bytes_ratio", ratio, bar=1.3, lower=True)]
    return results


def _read_column(dataset: encpipe.Dataset, column: str) -> None:
    rows = sum(batch.num_rows for batch in dataset.scan([column], threads=datasets.WORKERS))
    if rows != dataset.num_rows:
        raise AssertionError(f"read {rows} rows of {dataset.num_rows}")


def bytes_read() -> int:
    """Bytes that read system calls of this process gave it so far, from cache or disk (`rchar`)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def _footer_bytes(path: Path) -> int:
    """Key metadata, encrypted footer, its length and the magic."""
    with path.open("rb") as file:
        file.seek(-_TAIL_BYTES, 2)
        return int.from_bytes(file.read(4), "little") + _TAIL_BYTES


def _chunk_bytes(dataset: encpipe.Dataset, column: str) -> int:
    found = 0
    for fragment in dataset.to_pyarrow(trust_storage_after_the_check=True).get_fragments():
        metadata = fragment.metadata
        leaf = metadata.schema.to_arrow_schema().get_field_index(column)
        for n in range(metadata.num_row_groups):
            found += metadata.row_group(n).column(leaf).total_compressed_size
    return found


def many_files() -> Results:
    """Opening and scanning 10,000 files under 2 key names: seconds, and calls to the key service."""
    source = datasets.small_files(_MANY)
    results = Results()
    start = time.perf_counter()
    url = datasets.encrypted_copy(source.name, source, datasets.SMALL_COLUMN)
    results.details["encrypt_10k_seconds"] = time.perf_counter() - start
    seconds = []
    for _ in range(_OPENS):
        keys, kms = datasets.counted()
        start = time.perf_counter()
        with encpipe.open_dataset(url, config=datasets.config(), master_keys=keys) as dataset:
            if len(dataset.files) != _MANY:
                raise AssertionError(f"{len(dataset.files)} files")
            seconds.append(time.perf_counter() - start)
            opening = kms.calls
    with encpipe.open_dataset(url, config=datasets.config(), master_keys=keys) as dataset:
        before = kms.calls
    keys, kms = datasets.counted()
    start = time.perf_counter()
    with encpipe.open_dataset(url, config=datasets.config(), master_keys=keys) as dataset:
        rows = sum(batch.num_rows for batch in dataset.scan(threads=datasets.WORKERS))
    if rows != _MANY * 100:
        raise AssertionError(f"read {rows} rows")
    results.details["scan_10k"] = {"seconds": time.perf_counter() - start, "reopen_calls": before - opening}
    results.figures = [
        Figure("open_10k_files_seconds", statistics.median(seconds), bar=2, lower=True, unit="s"),
        Figure("open_10k_kms_calls", opening, bar=1, lower=True),
        Figure("scan_10k_kms_calls", kms.calls, bar=2, lower=True),
    ]
    return results


def kms_calls() -> Results:
    """Calls to the key service for writing and for reading 200 files under 2 key names."""
    source, scratch = datasets.small_files(_SOME), Scratch()
    kms = InMemoryKms(("footer", "pii"))
    settings = Config(keys={"footer": ("memory:footer",), "pii": ("memory:pii",)})
    scratch.clear()
    url = scratch.fresh()
    encpipe.write_dataset(
        source,
        url,
        policy=datasets.policy(datasets.SMALL_COLUMN),
        config=settings,
        master_keys=encpipe.MasterKeys(settings, extra={"memory": kms}),
        workers=datasets.WORKERS,
    )
    writing = kms.wraps + kms.unwraps
    keys = encpipe.MasterKeys(settings, extra={"memory": kms})
    with encpipe.open_dataset(url, config=settings, master_keys=keys) as dataset:
        rows = sum(batch.num_rows for batch in dataset.scan(threads=datasets.WORKERS))
    scratch.clear()
    if rows != _SOME * 100:
        raise AssertionError(f"read {rows} rows")
    results = Results()
    results.figures = [
        Figure("kms_calls_encrypt_200", writing, bar=2, lower=True),
        Figure("kms_calls_read_200", kms.wraps + kms.unwraps - writing, bar=2, lower=True),
    ]
    return results
