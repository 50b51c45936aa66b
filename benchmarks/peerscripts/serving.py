"""A peer in a process of its own: told what to do line by line, so that its epochs can be paired with ours.

    serve_NAME.py WORKLOAD SOURCE TARGET ROWS BATCH_SIZE [OPTION=VALUE ...]

Standard input takes one command a line, standard output gives one line of JSON for each (what libraries print
goes to standard error): `make` converts the first ROWS rows of the plaintext Parquet files in SOURCE into the
peer's own format in TARGET, `open WORKERS` makes a loader, `settle` collects garbage, `epoch` reads
everything and answers rows and seconds, `check` reads everything and answers each column's total.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from touch import total, touch

Batches = Callable[[], Iterable[Mapping[str, Any]]]


class Job:
    """What the command line asks for."""

    def __init__(self, arguments: list[str]) -> None:
        workload, source, target, rows, batch_size, *options = arguments
        self.workload, self.source, self.target = workload, Path(source), Path(target)
        self.rows, self.batch_size = int(rows), int(batch_size)
        self.options = dict(option.split("=", 1) for option in options)

    def tables(self) -> Iterator[pa.Table]:
        """The rows to convert, by row groups: no nulls (0 in their place), timestamps as integers."""
        left = self.rows
        for path in sorted(self.source.glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for number in range(file.num_row_groups):
                    if left <= 0:
                        return
                    table = file.read_row_group(number).slice(0, left)
                    left -= len(table)
                    yield pa.table({name: _plain(table[name]) for name in table.column_names})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64())
    return pc.fill_null(column, 0) if column.null_count else column


def serve(convert: Callable[[Job], None], load: Callable[[Job, int], Batches]) -> None:
    """Answer commands until standard input ends. `convert` fills `job.target`, which is kept when whole."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(sys.argv[1:])
    batches: Batches = list
    for line in sys.stdin:
        match line.split():
            case ["make"]:
                answer: Any = _make(job, convert)
            case ["open", workers]:
                batches, answer = load(job, int(workers)), {}
            case ["settle"]:
                answer = {"objects": gc.collect()}
            case ["epoch"]:
                answer = _epoch(batches)
            case ["check"]:
                answer = _check(batches)
            case _:
                raise SystemExit(f"no such command: {line!r}")
        print(json.dumps(answer), file=answers, flush=True)


def _make(job: Job, convert: Callable[[Job], None]) -> dict[str, float]:
    start = time.perf_counter()
    if not job.target.exists():
        final, job.target = job.target, job.target.with_name(job.target.name + ".partial")
        shutil.rmtree(job.target, ignore_errors=True)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        convert(job)
        job.target.rename(final)
        job.target = final
    size = sum(path.stat().st_size for path in job.target.rglob("*") if path.is_file())
    return {"seconds": time.perf_counter() - start, "bytes": size}


def _epoch(batches: Batches) -> dict[str, float]:
    rows = 0
    gc.disable()
    start = time.perf_counter()
    for batch in batches():
        rows += touch(batch)
    seconds = time.perf_counter() - start
    gc.enable()
    return {"rows": rows, "seconds": seconds}


def _check(batches: Batches) -> dict[str, Any]:
    totals: dict[str, float] = defaultdict(float)
    kinds: dict[str, str] = {}
    for batch in batches():
        for name, column in batch.items():
            totals[name] += total(column)
            kinds[name] = str(column.dtype) if isinstance(column, torch.Tensor) else type(column).__name__
    return {"totals": totals, "kinds": kinds}
