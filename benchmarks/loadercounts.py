"""What the loader reads, how soon it begins, and what it holds: figures that are counted or sampled."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import datasets, loading
from benchmarks.counts import bytes_read
from benchmarks.method import Figure
from benchmarks.processes import run
from benchmarks.ratios import Results
from benchmarks.workloads import FINE, NARROW, Workload, narrow_batch

_RANKS: Final = 4
_MANY: Final = 10_000
_STARTS: Final = 3
_HELD: Final = Workload("narrow", 2, 500_000, 1_024, narrow_batch)
"""An epoch 20 times larger than what is held: shuffled that is a block of each of 8 lanes and `prefetch` (4)
more, each of 4 row groups: 49,152 rows of 1,000,000."""

_FIRST_BATCH: Final = """
import sys, time
import encpipe.torch, pyarrow.dataset, pyarrow.parquet.encryption
start = time.perf_counter()
options = {"config": sys.argv[2], "threads": 2, "shuffle": sys.argv[3] == "True"}
with encpipe.torch.Loader(sys.argv[1], **options) as loader:
    batch = next(iter(loader))
    seconds = time.perf_counter() - start
assert len(batch["id"]) == 1024, len(batch["id"])
print(seconds)
"""

_MEMORY: Final = """
import json, os, sys, threading, time
from pathlib import Path
import encpipe.torch
page, done, rows, samples = os.sysconf("SC_PAGE_SIZE"), threading.Event(), 0, []
def sample():
    while not done.wait(0.005):
        samples.append((rows, int(Path("/proc/self/statm").read_text().split()[1]) * page))
options = {"config": sys.argv[2], "threads": 2, "nulls": 0, "shuffle": sys.argv[3] == "True"}
with encpipe.torch.Loader(sys.argv[1], 4096, **options) as loader:
    watching = threading.Thread(target=sample)
    watching.start()
    for batch in loader:
        rows += len(batch["c000"])
    done.set()
    watching.join()
def peak(low, high):
    return max(size for at, size in samples if low * rows <= at < high * rows)
print(json.dumps({"rows": rows, "samples": len(samples), "second": peak(.25, .5), "last": peak(.75, 1.0)}))
"""


def bytes_of_ranks() -> Results:
    """`bytes_read_4_ranks_vs_1`: by the kernel's count, one rank after the other, opening included."""
    results = Results()
    for workload in (FINE[0], NARROW):
        url = datasets.encrypted_workload(workload)
        _epoch(url, workload, rank=0, world_size=1)  # lazy imports are over when it counts
        one = _epoch(url, workload, rank=0, world_size=1)
        ranks = [_epoch(url, workload, rank=rank, world_size=_RANKS) for rank in range(_RANKS)]
        name = f"bytes_read_4_ranks_vs_1_{workload.row_group}"
        results.details[name] = {"one": one, "ranks": ranks}
        judged = workload is FINE[0]
        results.figures.append(
            Figure(
                "bytes_read_4_ranks_vs_1" if judged else name,
                sum(ranks) / one,
                bar=1.1 if judged else None,
                lower=True,
            )
        )
    return results


def _epoch(url: Path, workload: Workload, **place: Any) -> int:
    before = bytes_read()
    with loading.epochs(url, workload, shuffle=True, **place) as epoch:
        epoch()
    return bytes_read() - before


def first_batch() -> Results:
    """`first_batch_10k_files_seconds`: loader made, first batch given; the worse of two orders."""
    source = datasets.small_files(_MANY)
    url = datasets.encrypted_copy(source.name, source, datasets.SMALL_COLUMN)
    found = {f"shuffle={shuffle}": _starts(url, shuffle) for shuffle in (False, True)}
    results = Results(details={"first_batch_10k_files": found})
    worst = max(statistics.median(seconds) for seconds in found.values())
    results.figures = [Figure("first_batch_10k_files_seconds", worst, bar=3, lower=True, unit="s")]
    return results


def _starts(url: Path, shuffle: bool) -> list[float]:
    command = [sys.executable, "-c", _FIRST_BATCH, str(url), str(datasets.config_path()), str(shuffle)]
    return [float(run(command)) for _ in range(_STARTS)]


def memory() -> Results:
    """`epoch_memory_growth`: peak RSS, last quarter / second; the worse of two orders."""
    url = datasets.encrypted_workload(_HELD)
    found: dict[str, Any] = {}
    for shuffle in (False, True):
        command = [sys.executable, "-c", _MEMORY, str(url), str(datasets.config_path()), str(shuffle)]
        found[f"shuffle={shuffle}"] = json.loads(run(command))
    results = Results(details={"epoch_memory": found})
    worst = max(peaks["last"] / peaks["second"] for peaks in found.values())
    results.figures = [Figure("epoch_memory_growth", worst, bar=1.1, lower=True)]
    return results
