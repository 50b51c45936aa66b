"""Ratios against PyArrow in plaintext: encrypting, and full scans."""

from __future__ import annotations

import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks import datasets, peers
from benchmarks.datasets import WORKERS
from benchmarks.method import PAIRS, RUNS, Figure, Pair, Run, figure_of, geomean, measure, run_medians, speed
from benchmarks.workloads import BINARIES, DATA, FINE, JUDGED, NARROW, Workload
from encpipe.parquet.encoding import dictionary_leaves

ENCRYPTED: Final = (NARROW, BINARIES)
"""Judged in `encrypt_vs_plain`: the most encoding for each byte, and the most bytes for each encoding."""
BAR: Final = 0.85
_PRINTED_PAIRS: Final = 5
_AES_BYTES: Final = 1 << 20
_AES_CALLS: Final = 60


@dataclass(frozen=True)
class Effort:
    """How much is measured. `--quick` shows that everything runs, and judges nothing."""

    pairs: int = PAIRS
    runs: int = RUNS
    printed_pairs: int = _PRINTED_PAIRS


@dataclass
class Results:
    """Figures in the order of the table, and what else is worth keeping."""

    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, runs: tuple[Run, ...], ratio: Callable[[Pair], float] = speed) -> None:
        """Note each run's median and the seconds behind it."""
        pairs = [pair for run in runs for pair in run.pairs]
        self.details[name] = {
            "runs": run_medians(runs, ratio),
            "peer_seconds": statistics.median(pair.peer for pair in pairs),
            "ours_seconds": statistics.median(pair.ours for pair in pairs),
        }


class Scratch:
    """Fresh folders for outputs; what a call left is removed before the next one, outside its time."""

    def __init__(self, folder: Path = DATA / "scratch") -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def fresh(self) -> Path:
        """A path where nothing is yet."""
        return self._folder / str(next(self._numbers))

    def clear(self) -> None:
        """Remove all outputs."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)


def encrypt_figures(effort: Effort) -> Results:
    """`encrypt_vs_plain`, the geometric mean of two workloads; all four are printed."""
    results, judged = Results(), []
    printed: list[Figure] = []
    for workload in JUDGED:
        is_judged = workload in ENCRYPTED
        runs = _encrypt(workload, effort if is_judged else _light(effort))
        name = f"encrypt_vs_plain_{workload.name}"
        results.keep(name, runs)
        printed.append(figure_of(name, runs))
        if is_judged:
            judged.append(runs)
    twin = _encrypt(NARROW, _light(effort), same_encodings=True)
    results.keep("encrypt_vs_same_encodings_narrow", twin)
    results.figures = [
        geomean("encrypt_vs_plain", judged, bar=BAR),
        *printed,
        figure_of("encrypt_vs_same_encodings_narrow", twin),
    ]
    return results


def _light(effort: Effort) -> Effort:
    return Effort(pairs=effort.printed_pairs, runs=1, printed_pairs=effort.printed_pairs)


def _encrypt(workload: Workload, effort: Effort, *, same_encodings: bool = False) -> tuple[Run, ...]:
    source, scratch = workload.ensure(), Scratch()
    leaves = tuple(_leaves(source))
    encodings = (lambda table: dictionary_leaves(table, leaves)) if same_encodings else (lambda _: True)
    try:
        return measure(
            lambda: peers.rewrite(source, scratch.fresh(), encodings=encodings),
            lambda: datasets.encrypt(source, scratch.fresh(), None),
            pairs=effort.pairs,
            runs=effort.runs,
            settle=scratch.clear,
        )
    finally:
        scratch.clear()


def _leaves(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    schema = pq.read_metadata(min(folder.iterdir())).schema
    return [schema.column(n).path for n in range(len(schema))]


def aes_bytes_per_second() -> float:
    """AES-256-GCM of one core, decrypting 1 MB at a time with `cryptography`."""
    cipher, nonce = AESGCM(AESGCM.generate_key(256)), bytes(12)
    sealed = cipher.encrypt(nonce, bytes(_AES_BYTES), None)
    times = []
    for _ in range(_AES_CALLS):
        start = time.perf_counter()
        cipher.decrypt(nonce, sealed, None)
        times.append(time.perf_counter() - start)
    return _AES_BYTES / statistics.median(times)


def scan_figures(effort: Effort) -> Results:
    """`scan_vs_plain_geomean` and `scan_vs_bound_min`, each workload beside them."""
    results = Results()
    parts: list[tuple[Run, ...]] = []
    bounds: list[Figure] = []
    printed: list[Figure] = []
    for workload in JUDGED:
        runs, ratio = _scan(workload, effort, results)
        parts.append(runs)
        printed.append(figure_of(f"scan_vs_plain_{workload.name}", runs))
        bounds.append(figure_of(f"scan_vs_bound_{workload.name}", runs, ratio=ratio))
        printed.append(_scan_twin(workload, effort, results))
        runs, _ = _scan(workload, _light(effort), results, column_key=True)
        printed.append(figure_of(f"scan_vs_plain_{workload.name}_column_key", runs))
    for workload in FINE:
        runs, _ = _scan(workload, _light(effort), results)
        printed.append(figure_of(f"scan_vs_plain_{workload.name}_{workload.row_group}", runs))
    worst = min(bounds, key=lambda figure: figure.value)
    results.figures = [
        geomean("scan_vs_plain_geomean", parts, bar=BAR),
        Figure("scan_vs_bound_min", worst.value, bar=BAR, spread=worst.spread, control=worst.control),
        *printed,
        *bounds,
    ]
    return results


def _scan(
    workload: Workload, effort: Effort, results: Results, *, column_key: bool = False
) -> tuple[tuple[Run, ...], Callable[[Pair], float]]:
    plain, sealed = workload.ensure(), datasets.encrypted_workload(workload, column_key=column_key)
    peer_name, peer = peers.fastest_scan(plain)
    rows = workload.files * workload.rows
    before = aes_bytes_per_second()
    runs = measure(
        lambda: _all_rows(peer(plain), rows),
        lambda: _all_rows(datasets.scan(sealed), rows),
        pairs=effort.pairs,
        runs=effort.runs,
    )
    aes = statistics.mean([before, aes_bytes_per_second()])
    sealed_bytes = sum(path.stat().st_size for path in sealed.glob("data/*.parquet"))
    decrypting = sealed_bytes / (aes * WORKERS)

    def against_bound(pair: Pair) -> float:
        """1 / (1/plaintext + 1/AES), in seconds for the same rows."""
        return (pair.peer + decrypting) / pair.ours

    name = f"scan_{workload.name}_{workload.row_group}" + ("_column_key" if column_key else "")
    results.keep(name, runs)
    results.details[name] |= {
        "peer": peer_name,
        "aes_gb_per_second": aes / 1e9,
        "sealed_bytes": sealed_bytes,
        "plain_bytes": sum(path.stat().st_size for path in plain.iterdir()),
        "bound_seconds": decrypting + results.details[name]["peer_seconds"],
    }
    return runs, against_bound


def _scan_twin(workload: Workload, effort: Effort, results: Results) -> Figure:
    """Against a plaintext copy in our own choice of encodings: what encryption alone costs. Printed only."""
    twin, sealed = _same_encodings(workload), datasets.encrypted_workload(workload)
    _, peer = peers.fastest_scan(twin)
    rows = workload.files * workload.rows
    runs = measure(
        lambda: _all_rows(peer(twin), rows),
        lambda: _all_rows(datasets.scan(sealed), rows),
        pairs=effort.printed_pairs,
        runs=1,
    )
    name = f"scan_vs_same_encodings_{workload.name}"
    results.keep(name, runs)
    return figure_of(name, runs)


def _same_encodings(workload: Workload) -> Path:
    source = workload.ensure()
    leaves = tuple(_leaves(source))

    def make(target: Path) -> None:
        peers.rewrite(source, target, encodings=lambda table: dictionary_leaves(table, leaves))

    return datasets.kept(f"plain-{source.name}", make)


def _all_rows(found: int, expected: int) -> None:
    if found != expected:
        raise AssertionError(f"read {found} rows of {expected}")
