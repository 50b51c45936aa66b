"""The benchmarks' method, on functions whose cost is known and a clock that only they move."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import GROUPS, run_group
from benchmarks.method import (
    Figure,
    Pair,
    figure_of,
    geomean,
    half_iqr,
    measure,
    ratio_of,
    run_medians,
    timed,
)


@pytest.fixture(autouse=True)
def cheap_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test run's heap takes long to walk, and fake time has no garbage."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


class FakeTime:
    """A clock; `costs(s)` is work that takes s seconds, times a drift of the machine for each call."""

    def __init__(self, drift: float = 1.0) -> None:
        self.now, self.slowness, self.drift = 0.0, 1.0, drift
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def costs(self, name: str, seconds: float):
        def work() -> None:
            self.calls.append(name)
            self.now += seconds * self.slowness
            self.slowness *= self.drift

        return work


def test_work_that_takes_twice_as_long_gets_a_half() -> None:
    clock = FakeTime()
    runs = measure(clock.costs("a", 1.0), clock.costs("b", 2.0), clock=clock)
    figure = figure_of("x", runs, bar=0.85)
    assert figure.value == pytest.approx(0.5)
    assert figure.spread == pytest.approx(0.0)
    assert figure.control == pytest.approx(0.0)
    assert figure.verdict == "short"


def test_three_runs_of_fifteen_pairs_in_alternating_order_after_a_warm_up() -> None:
    clock = FakeTime()
    runs = measure(clock.costs("a", 1.0), clock.costs("b", 1.0), clock=clock)
    assert [len(run.pairs) for run in runs] == [15, 15, 15]
    assert [len(run.control) for run in runs] == [14, 14, 14]
    assert "".join(clock.calls[:10]) == "ab" + "abbaabba"


def test_a_drifting_machine_moves_the_control_and_hardly_the_ratio() -> None:
    clock = FakeTime(drift=1.05)
    runs = measure(clock.costs("a", 1.0), clock.costs("b", 1.0), runs=1, clock=clock)
    assert ratio_of(runs) == pytest.approx(1.0, abs=0.06)
    assert runs[0].control == pytest.approx([1 / 1.05] * 14)


def test_the_median_of_three_runs_is_what_counts() -> None:
    clock = FakeTime()
    fast, slow = clock.costs("b", 1.0), clock.costs("b", 4.0)
    seen = 0

    def ours() -> None:
        nonlocal seen
        seen += 1
        (slow if seen > 11 else fast)()  # the warm-up and two of the three runs of five pairs are fast

    runs = measure(clock.costs("a", 1.0), ours, pairs=5, clock=clock)
    assert run_medians(runs) == pytest.approx([1.0, 1.0, 0.25])
    assert ratio_of(runs) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "lower", "verdict"),
    [(0.90, False, "met"), (0.85, False, "met"), (0.84, False, "at the bar"), (0.82, False, "short"),
     (0.80, True, "met"), (0.86, True, "at the bar"), (0.88, True, "short")],
)  # fmt: skip
def test_the_verdict_gives_way_by_the_control_only(value: float, lower: bool, verdict: str) -> None:
    assert Figure("x", value, bar=0.85, lower=lower, control=0.02).verdict == verdict


def test_a_figure_without_a_control_gets_no_allowance() -> None:
    assert Figure("calls", 2.0, bar=2.0, lower=True).verdict == "met"
    assert Figure("calls", 3.0, bar=2.0, lower=True).verdict == "short"
    assert Figure("printed", 3.0).verdict == ""


def test_workloads_are_averaged_run_by_run() -> None:
    clock = FakeTime()
    parts = [measure(clock.costs("a", 1.0), clock.costs("b", s), clock=clock) for s in (1.0, 4.0)]
    assert geomean("g", parts, bar=0.5).value == pytest.approx(0.5)
    assert geomean("g", parts, bar=0.5).verdict == "met"


def test_another_ratio_of_the_same_pairs() -> None:
    clock = FakeTime()
    runs = measure(clock.costs("a", 1.0), clock.costs("b", 2.0), clock=clock)

    def against_bound(pair: Pair) -> float:
        return (pair.peer + 0.6) / pair.ours

    assert figure_of("bound", runs, ratio=against_bound).value == pytest.approx(0.8)


def test_no_collection_happens_inside_the_measured_time() -> None:
    inside = []
    timed(lambda: inside.append(gc.isenabled()))
    assert inside == [False]
    assert gc.isenabled()


def test_the_spread_is_half_the_interquartile_range() -> None:
    assert half_iqr([1, 2, 3, 4, 5]) == pytest.approx(1.0)
    assert half_iqr([1.0]) == 0.0


def test_the_table_has_a_line_for_each_figure_with_bar_and_verdict() -> None:
    text = report.table(
        [
            Figure("encrypt_vs_plain", 0.912, bar=0.85, spread=0.03, control=0.01),
            Figure("open_10k_files_seconds", 2.5, bar=2, lower=True, unit="s"),
            Figure("narrow_4096", 0.5),
        ]
    )
    head, *lines = (line.split() for line in text.splitlines())
    assert head == ["metric", "median", "spread", "A/A", "bar", "verdict"]
    assert lines[0] == ["encrypt_vs_plain", "0.912", "+-0.030", "+-0.010", ">=", "0.85", "met"]
    assert lines[1] == ["open_10k_files_seconds", "(s)", "2.5", "<=", "2", "short"]
    assert lines[2] == ["narrow_4096", "0.5"]


def test_the_json_has_metrics_machine_and_verdicts(tmp_path: Path) -> None:
    path = report.save("core", [Figure("a", 0.9, bar=0.85, control=0.01)], {"workers": 2}, tmp_path)
    content = json.loads(path.read_text())
    assert path.name == "core.json"
    assert content["metrics"] == {"a": 0.9}
    assert content["machine"]["cpus"] >= 1
    assert content["bars"]["a"]["verdict"] == "met"
    assert content["details"] == {"workers": 2}


def test_an_unknown_part_is_refused_before_anything_is_measured() -> None:
    assert "core" in GROUPS
    with pytest.raises(SystemExit, match="no part 'scam' in core: there are encrypt, scan"):
        run_group("core", ["scan", "scam"], quick=True)
