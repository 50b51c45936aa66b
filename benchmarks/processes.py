"""Figures of whole processes: start-up times and peak memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks import datasets
from benchmarks.method import Figure
from benchmarks.ratios import Results, Scratch
from benchmarks.workloads import LARGE, LARGE_ONE_GROUP, Workload

_STARTS: Final = 9
_TIMEOUT_SECONDS: Final = 300
_FOREIGN: Final = ("torch", "boto3")

_PEAK: Final = """
import sys
from pathlib import Path
from benchmarks import datasets
def peak_kb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
import encpipe.sealing, encpipe.writer, pyarrow.dataset, pyarrow.parquet.encryption
baseline = peak_kb()
datasets.encrypt(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
print(peak_kb() - baseline)
"""

_FIRST_USE: Final = """
import sys, encpipe
names = encpipe.open_dataset(sys.argv[1], config=sys.argv[2]).schema.names
assert names == ["id", "name", "value"], names
"""


def run(command: list[str]) -> str:
    """Standard output of a process that must end well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, cwd=_root())
    if done.returncode:
        raise RuntimeError(f"{command[:3]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def seconds(command: list[str]) -> list[float]:
    """Each start of the process, from fork to exit, after one that fills the caches."""
    run(command)
    found = []
    for _ in range(_STARTS):
        start = time.perf_counter()
        run(command)
        found.append(time.perf_counter() - start)
    return found


def _figure(name: str, command: list[str], bar: float, results: Results) -> Figure:
    found = seconds(command)
    results.details[name] = found
    return Figure(name, statistics.median(found), bar=bar, lower=True, unit="s")


def cli() -> str:
    """The command that is installed beside this interpreter."""
    return str(Path(sys.executable).with_name("encpipe"))


def start_up() -> Results:
    """Importing, asking for help, first use, inspecting; none loads torch or boto3."""
    source = datasets.small_files(2)
    url = str(datasets.encrypted_copy(source.name, source, datasets.SMALL_COLUMN))
    config = str(datasets.config_path())
    importing = [sys.executable, "-c", "import encpipe"]
    first_use = [sys.executable, "-c", _FIRST_USE, url, config]
    helping = [cli(), "--help"]
    inspecting = [cli(), "inspect", url, "--config", config]
    for command in (importing, first_use, helping, inspecting):
        _refuse_foreign(command)
    results = Results()
    results.figures = [
        _figure("import_seconds", importing, 0.2, results),
        _figure("cli_help_seconds", helping, 0.4, results),
        _figure("first_use_seconds", first_use, 0.9, results),
        _figure("cli_inspect_seconds", inspecting, 0.7, results),
    ]
    results.details["pandas_installed"] = _has_pandas()
    return results


def _has_pandas() -> bool:
    from importlib.util import find_spec

    return find_spec("pandas") is not None


def _refuse_foreign(command: list[str]) -> None:
    """Run a command once with Python's own report of imports, and look for what must not be there."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        cwd=_root(),
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    if done.returncode:
        raise RuntimeError(f"{command[:3]} ended with {done.returncode}: {done.stderr[-2000:]}")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    for name in _FOREIGN:
        if name in loaded:
            raise AssertionError(f"{command[0]} {command[1]} imports {name}")


def encrypt_peak(*, quick: bool) -> Results:
    """`encrypt_peak_mb`: the worse of a 2 GB file in row groups and one in a single row group."""
    results = Results()
    workloads = (LARGE,) if quick else (LARGE, LARGE_ONE_GROUP)
    found = {f"{w.name}_{w.row_group}": _peak_mb(w) for w in workloads}
    results.details["encrypt_peak"] = found
    results.figures = [Figure("encrypt_peak_mb", max(found.values()), bar=400, lower=True, unit="MB")]
    return results


def _peak_mb(workload: Workload) -> float:
    scratch = Scratch()
    if not workload.path().exists():
        _make_elsewhere(workload)
    scratch.clear()
    try:
        target = str(scratch.fresh())
        out = run([sys.executable, "-c", _PEAK, str(workload.path()), target, workload.column])
    finally:
        scratch.clear()
    return int(out) * 1024 / 1e6


def _make_elsewhere(workload: Workload) -> None:
    """Made in a process of its own: a single row group of 2 GB takes several times as much to write."""
    name = "LARGE" if workload is LARGE else "LARGE_ONE_GROUP"
    run([sys.executable, "-c", f"from benchmarks.workloads import {name}; {name}.ensure()"])
