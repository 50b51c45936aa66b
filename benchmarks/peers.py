"""PyArrow without encryption: what encpipe is measured against. Same files, workers, codec and fsync."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.datasets import WORKERS

_CALIBRATIONS: Final = 3
Peer = Callable[[Path], int]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def scan_dataset(folder: Path) -> int:
    """PyArrow's dataset scanner, its thread pool cut to the same number of threads."""
    options = ds.ParquetFragmentScanOptions(pre_buffer=False)
    form = ds.ParquetFileFormat(default_fragment_scan_options=options)
    scanner = ds.dataset([str(path) for path in _files(folder)], format=form).scanner(use_threads=True)
    return sum(batch.num_rows for batch in scanner.to_batches())


def scan_row_groups(folder: Path) -> int:
    """`read_row_group` in threads, each with a reader of its own, sharing the parsed footer."""
    footers = [(path, pq.read_metadata(path)) for path in _files(folder)]
    tasks = [(path, footer, n) for path, footer in footers for n in range(footer.num_row_groups)]

    def read(task: tuple[Path, pq.FileMetaData, int]) -> int:
        path, footer, n = task
        with pq.ParquetFile(path, metadata=footer, pre_buffer=False) as reader:
            return int(reader.read_row_group(n, use_threads=False).num_rows)

    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(read, tasks))


def scan_whole_files(folder: Path) -> int:
    """One `ParquetFile.read` after another, columns in parallel."""
    found = 0
    for path in _files(folder):
        with pq.ParquetFile(path, pre_buffer=False) as reader:
            found += reader.read(use_threads=True).num_rows
    return found


SCANS: Final[Mapping[str, Peer]] = {
    "dataset scanner": scan_dataset,
    "row groups in threads": scan_row_groups,
    "whole files": scan_whole_files,
}


def fastest_scan(folder: Path) -> tuple[str, Peer]:
    """The quickest way PyArrow has to read these files here and now: that is the peer."""
    best: dict[str, float] = {}
    for _ in range(_CALIBRATIONS):
        for name, scan in SCANS.items():
            start = time.perf_counter()
            scan(folder)
            best[name] = min(best.get(name, 1e9), time.perf_counter() - start)
    name = min(best, key=lambda key: best[key])
    return name, SCANS[name]


def rewrite(source: Path, target: Path, *, encodings: Callable[[pa.Table], Any] = lambda _: True) -> None:
    """Each file again, a row group at a time, with PyArrow's own settings, synced to disk.

    `encodings` gives `use_dictionary` from the first row group.
    """
    target.mkdir(parents=True)

    def one(path: Path) -> None:
        copy = target / path.name
        with copy.open("wb") as raw, pq.ParquetFile(path, pre_buffer=False) as reader:
            first = reader.read_row_group(0, use_threads=False)
            with pq.ParquetWriter(
                copy, reader.schema_arrow, compression="snappy", use_dictionary=encodings(first)
            ) as writer:
                writer.write_table(first, row_group_size=len(first))
                for n in range(1, reader.num_row_groups):
                    table = reader.read_row_group(n, use_threads=False)
                    writer.write_table(table, row_group_size=len(table))
            os.fsync(raw.fileno())

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, _files(source)))
