"""How a ratio is measured, and what counts as meeting a bar.

Two functions are timed in pairs within one process, with warm caches and the garbage collector held back. The
order alternates (AB BA AB ...), so that a drift of the machine hits both alike, and so that where two pairs
meet the same function is called twice in a row: those are the A/A control, whose ratios would all be 1 on an
ideal machine. A run's ratio is the median of its pairs; a bar is met when the median of 3 runs reaches it.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

PAIRS: Final = 15
RUNS: Final = 3

Verdict = Literal["met", "at the bar", "short", ""]
Clock = Callable[[], float]
Work = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Seconds that the peer and ours took, side by side."""

    peer: float
    ours: float


@dataclass(frozen=True)
class Run:
    """The pairs of one run and the A/A ratios that came with them."""

    pairs: tuple[Pair, ...]
    control: tuple[float, ...]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    `spread` and `control` are half the interquartile range of the pair ratios and of the A/A ratios, or None
    where the figure is no ratio. `bar` is None for figures that are printed only; `lower` tells that less is
    better.
    """

    name: str
    value: float
    bar: float | None = None
    lower: bool = False
    spread: float | None = None
    control: float | None = None
    unit: str = ""

    @property
    def verdict(self) -> Verdict:
        """Within the control's spread of the bar, on the wrong side, is "at the bar"."""
        if self.bar is None:
            return ""
        lacking = self.value - self.bar if self.lower else self.bar - self.value
        if lacking <= 0:
            return "met"
        return "at the bar" if lacking <= (self.control or 0.0) else "short"


def nothing() -> None:
    """What is to be done before a call when nothing is."""


def timed(work: Work, clock: Clock = time.perf_counter, settle: Work = nothing) -> float:
    """Seconds of one call, after `settle`. Garbage of earlier calls is collected before, none during."""
    settle()
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        work()
        return clock() - start
    finally:
        if enabled:
            gc.enable()


def measure(
    peer: Work,
    ours: Work,
    *,
    pairs: int = PAIRS,
    runs: int = RUNS,
    clock: Clock = time.perf_counter,
    settle: Work = nothing,
) -> tuple[Run, ...]:
    """`runs` runs of `pairs` interleaved pairs, after one unmeasured call of each function.

    `settle` is done before every call, outside its time: it removes what the call before left.
    """
    timed(peer, clock, settle)
    timed(ours, clock, settle)
    return tuple(_one_run(peer, ours, pairs, clock, settle) for _ in range(runs))


def _one_run(peer: Work, ours: Work, pairs: int, clock: Clock, settle: Work) -> Run:
    found: list[Pair] = []
    control: list[float] = []
    for n in range(pairs):
        if n % 2 == 0:
            a = timed(peer, clock, settle)
            b = timed(ours, clock, settle)
        else:
            b = timed(ours, clock, settle)
            a = timed(peer, clock, settle)
        if found:  # ours ended the pair before an odd one and began it; likewise the peer before an even one
            control.append(found[-1].ours / b if n % 2 else found[-1].peer / a)
        found.append(Pair(a, b))
    return Run(tuple(found), tuple(control))


Ratio = Callable[[Pair], float]


def speed(pair: Pair) -> float:
    """How fast ours is, the peer being 1: 0.5 takes twice as long."""
    return pair.peer / pair.ours


def run_medians(runs: Sequence[Run], ratio: Ratio = speed) -> list[float]:
    """One ratio for each run."""
    return [statistics.median(map(ratio, run.pairs)) for run in runs]


def ratio_of(runs: Sequence[Run], ratio: Ratio = speed) -> float:
    """The median of the runs' medians."""
    return statistics.median(run_medians(runs, ratio))


def figure_of(name: str, runs: Sequence[Run], *, bar: float | None = None, ratio: Ratio = speed) -> Figure:
    """The figure of one workload."""
    return Figure(
        name,
        ratio_of(runs, ratio),
        bar=bar,
        spread=half_iqr([ratio(pair) for run in runs for pair in run.pairs]),
        control=half_iqr([value for run in runs for value in run.control]),
    )


def geomean(name: str, parts: Sequence[Sequence[Run]], *, bar: float | None = None) -> Figure:
    """The geometric mean over workloads, taken run by run, then the median of the runs.

    Its spreads are those of a mean of independent parts: root of the sum of squares, over their number.
    """
    by_run = [statistics.geometric_mean(of_run) for of_run in zip(*map(run_medians, parts), strict=True)]
    figures = [figure_of(name, runs) for runs in parts]
    return Figure(
        name,
        statistics.median(by_run),
        bar=bar,
        spread=_mean_spread([f.spread for f in figures]),
        control=_mean_spread([f.control for f in figures]),
    )


def half_iqr(values: Sequence[float]) -> float:
    """Half the interquartile range: half of all values lie within about this distance of the median."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def _mean_spread(spreads: Sequence[float | None]) -> float:
    return math.hypot(*(spread or 0.0 for spread in spreads)) / len(spreads)
