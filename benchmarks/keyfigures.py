"""Re-wrapping 10,000 files, and what reading them in several processes asks of the key service."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import encpipe
from benchmarks import datasets
from benchmarks.method import Figure
from benchmarks.ratios import Results, Scratch

_MANY: Final = 10_000
_REWRAPS: Final = 5
_PROCESSES: Final = 4
_TIMEOUT_SECONDS: Final = 600
_ROOT: Final = Path(__file__).resolve().parents[1]

_READ: Final = """
import sys
import encpipe
from benchmarks import datasets
keys, kms = datasets.counted()
with encpipe.open_dataset(sys.argv[1], config=datasets.config(), master_keys=keys) as dataset:
    files = dataset.files[int(sys.argv[2]) :: int(sys.argv[3])]
    rows = sum(batch.num_rows for batch in dataset.scan(files=files, threads=1))
    assert rows == sum(file.rows for file in files), rows
print(kms.calls)
"""


def rewrapping() -> Results:
    """`rewrap_10k_seconds`, `rewrap_10k_vs_1_bytes`, `rewrap_kms_calls_per_key_name`.

    Bytes are what the process wrote, by the kernel's own count; calls are counted by a wrapper.
    """
    many, calls, written = _rewrap_often(_MANY)
    _, _, one = _rewrap_often(1)
    results = Results()
    results.details["rewrap"] = {"seconds": many, "bytes": written, "bytes_1_file": one}
    results.figures = [
        Figure("rewrap_10k_seconds", statistics.median(many), bar=2, lower=True, unit="s"),
        Figure("rewrap_10k_vs_1_bytes", written / one, bar=1.1, lower=True),
        Figure("rewrap_kms_calls_per_key_name", calls / len(datasets.KEYS), bar=2, lower=True),
    ]
    return results


def _rewrap_often(files: int) -> tuple[list[float], int, int]:
    """(seconds of each, calls of one, bytes that the last one wrote)."""
    source = datasets.small_files(files)
    encrypted = datasets.encrypted_copy(source.name, source, datasets.SMALL_COLUMN)
    scratch = Scratch()
    scratch.clear()
    url = scratch.fresh()
    shutil.copytree(encrypted, url, copy_function=os.link)  # what a re-wrap replaces is a new file
    seconds = []
    try:
        for _ in range(_REWRAPS):
            keys, kms = datasets.counted()
            before, start = _bytes_written(), time.perf_counter()
            report = encpipe.rewrap(url, config=datasets.config(), master_keys=keys)
            seconds.append(time.perf_counter() - start)
            written = _bytes_written() - before
            if len(report.changes) != len(datasets.KEYS) or report.leftovers:
                raise AssertionError(report)
        if len(datasets.open_encrypted(url).files) != files:
            raise AssertionError("the re-wrapped dataset is another one")
    finally:
        scratch.clear()
    return seconds, kms.calls, written


def _bytes_written() -> int:
    """Bytes that this process handed to write system calls so far (`wchar`)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def reading_in_processes() -> Results:
    """`unwraps_4_processes_per_key_name`: each process opens the dataset and reads its quarter."""
    source = datasets.small_files(_MANY)
    url = datasets.encrypted_copy(source.name, source, datasets.SMALL_COLUMN)
    command = [sys.executable, "-c", _READ, str(url)]
    running = [
        subprocess.Popen([*command, str(n), str(_PROCESSES)], stdout=subprocess.PIPE, text=True, cwd=_ROOT)
        for n in range(_PROCESSES)
    ]
    calls = [int(process.communicate(timeout=_TIMEOUT_SECONDS)[0]) for process in running]
    results = Results()
    results.details["unwraps_by_process"] = calls
    per_key_name = sum(calls) / len(datasets.KEYS)
    results.figures = [Figure("unwraps_4_processes_per_key_name", per_key_name, bar=4, lower=True)]
    return results
