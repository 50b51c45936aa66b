"""Ratios of the loader: against plaintext, against bare PyArrow, and against itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from benchmarks import datasets
from benchmarks.datasets import WORKERS
from benchmarks.loading import ARROW, BareReader, ours, touched
from benchmarks.method import Figure, Pair, Run, Work, figure_of, geomean, measure, run_medians
from benchmarks.ratios import Effort, Results, aes_bytes_per_second
from benchmarks.workloads import BINARIES, JUDGED, MIXED, NARROW, TOKENS, Workload

BAR: Final = 0.85
TEXTS: Final = (BINARIES, MIXED)
"""Judged with texts as Arrow arrays, else making Python objects would hide what decryption costs; printed
with lists."""


def _options(workload: Workload) -> dict[str, Any]:
    return {"conversion": ARROW} if workload in TEXTS else {}


def _pair(peer: Any, mine: Any, workload: Workload, effort: Effort) -> tuple[Run, ...]:
    rows = workload.files * workload.rows
    with peer as a, mine as b:
        return measure(_whole(a, rows), _whole(b, rows), pairs=effort.pairs, runs=effort.runs)


def _whole(epoch: Any, rows: int) -> Work:
    def work() -> None:
        if (found := epoch()) != rows:
            raise AssertionError(f"{found} rows of {rows}")

    return work


def _light(effort: Effort) -> Effort:
    return Effort(pairs=effort.printed_pairs, runs=1, printed_pairs=effort.printed_pairs)


def _worst(name: str, figures: Sequence[Figure], bar: float) -> Figure:
    return replace(min(figures, key=lambda figure: figure.value), name=name, bar=bar)


def against_plain(effort: Effort) -> Results:
    """`loader_vs_plain_geomean` and `loader_vs_bound_min`, each workload beside them."""
    results = Results()
    parts: list[tuple[Run, ...]] = []
    bounds: list[Figure] = []
    printed: list[Figure] = []
    for workload in JUDGED:
        options, name = _options(workload), f"loader_vs_plain_{workload.name}"
        before = aes_bytes_per_second()
        runs = _pair(ours(workload, plain=True, **options), ours(workload, **options), workload, effort)
        aes = statistics.mean([before, aes_bytes_per_second()])
        sealed = datasets.encrypted_workload(workload)
        decrypting = sum(path.stat().st_size for path in sealed.glob("data/*.parquet")) / (aes * WORKERS)

        def bound(pair: Pair, decrypting: float = decrypting) -> float:
            """1 / (1/plaintext + 1/AES), in seconds for the same rows."""
            return (pair.peer + decrypting) / pair.ours

        _keep(results, name, runs, workload)
        results.details[name] |= {"aes_gb_per_second": aes / 1e9, "decrypting_seconds": decrypting}
        parts.append(runs)
        printed.append(figure_of(name, runs))
        bounds.append(figure_of(f"loader_vs_bound_{workload.name}", runs, ratio=bound))
    for workload in TEXTS:
        name = f"loader_vs_plain_{workload.name}_lists"
        runs = _pair(ours(workload, plain=True), ours(workload), workload, _light(effort))
        _keep(results, name, runs, workload)
        printed.append(figure_of(name, runs))
    results.figures = [
        geomean("loader_vs_plain_geomean", parts, bar=BAR),
        _worst("loader_vs_bound_min", bounds, BAR),
        *printed,
        *bounds,
    ]
    return results


def _keep(results: Results, name: str, runs: tuple[Run, ...], workload: Workload) -> None:
    results.keep(name, runs)
    rows = workload.files * workload.rows
    for side in ("peer", "ours"):
        results.details[name][f"{side}_rows_per_second"] = round(
            rows / results.details[name][f"{side}_seconds"]
        )


def against_pyarrow(effort: Effort) -> Results:
    """`loader_vs_pyarrow_min`: the same row groups, keys and threads, and nothing made of the tables."""
    results, judged, printed = Results(), [], []
    for workload in JUDGED:
        url, name = datasets.encrypted_workload(workload), f"loader_vs_pyarrow_{workload.name}"
        runs = _pair(BareReader(url), ours(workload, **_options(workload)), workload, effort)
        _keep(results, name, runs, workload)
        judged.append(figure_of(name, runs))
    for workload in TEXTS:
        url, name = datasets.encrypted_workload(workload), f"loader_vs_pyarrow_{workload.name}_lists"
        runs = _pair(BareReader(url), ours(workload), workload, _light(effort))
        _keep(results, name, runs, workload)
        printed.append(figure_of(name, runs))
    results.figures = [_worst("loader_vs_pyarrow_min", judged, BAR), *judged, *printed]
    return results


def stacked(effort: Effort) -> Results:
    """`stacked_vs_unstacked`: all 33 columns as one tensor of float64, against 33 tensors."""
    results, columns = Results(), [f"c{n:03d}" for n in range(33)]
    runs = _pair(ours(NARROW), ours(NARROW, stack={"x": columns}), NARROW, effort)
    _keep(results, "stacked_vs_unstacked", runs, NARROW)
    results.figures = [figure_of("stacked_vs_unstacked", runs, bar=0.7)]
    return results


def threads(effort: Effort) -> Results:
    """`threads_2_vs_1_*`: what the second reader thread brings; for binaries, of what it brings PyArrow."""
    results = Results()
    for workload, bar in ((NARROW, 1.5), (TOKENS, 1.5), (MIXED, 1.4)):
        name, options = f"threads_2_vs_1_{workload.name}", _options(workload)
        runs = _pair(ours(workload, threads=1, **options), ours(workload, **options), workload, effort)
        _keep(results, name, runs, workload)
        results.figures.append(figure_of(name, runs, bar=bar))
    results.figures += _binaries_gain(effort, results)
    return results


def _binaries_gain(effort: Effort, results: Results) -> list[Figure]:
    options = _options(BINARIES)
    mine = _pair(ours(BINARIES, threads=1, **options), ours(BINARIES, **options), BINARIES, effort)
    url = datasets.encrypted_workload(BINARIES)
    bare = _pair(BareReader(url, 1), BareReader(url), BINARIES, effort)
    _keep(results, "threads_2_vs_1_binaries", mine, BINARIES)
    _keep(results, "threads_2_vs_1_binaries_pyarrow", bare, BINARIES)
    gains = [a / b for a, b in zip(run_medians(mine), run_medians(bare), strict=True)]
    of_mine, of_bare = (figure_of("", runs) for runs in (mine, bare))
    value = statistics.median(gains)

    def both(a: float | None, b: float | None) -> float:
        return value * math.hypot((a or 0) / of_mine.value, (b or 0) / of_bare.value)

    return [
        Figure(
            "threads_2_vs_1_binaries_of_pyarrow",
            value,
            bar=0.9,
            spread=both(of_mine.spread, of_bare.spread),
            control=both(of_mine.control, of_bare.control),
        ),
        replace(of_mine, name="threads_2_vs_1_binaries"),
        replace(of_bare, name="threads_2_vs_1_binaries_pyarrow"),
    ]


def shuffled(effort: Effort) -> Results:
    """`shuffle_vs_sequential_min`, each workload beside it, with every value touched on both sides.

    Printed besides: batches that nobody looks at, which in order cost next to nothing.
    """
    results, judged, printed = Results(), [], []
    for workload in JUDGED:
        name = f"shuffle_vs_sequential_{workload.name}"
        runs = _pair(touched(workload), touched(workload, shuffle=True), workload, effort)
        _keep(results, name, runs, workload)
        judged.append(figure_of(name, runs))
        runs = _pair(ours(workload), ours(workload, shuffle=True), workload, _light(effort))
        _keep(results, f"{name}_untouched", runs, workload)
        printed.append(figure_of(f"{name}_untouched", runs))
    results.figures = [_worst("shuffle_vs_sequential_min", judged, 0.8), *judged, *printed]
    return results
