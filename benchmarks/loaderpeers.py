"""The loader against LitData, MosaicML Streaming and Hugging Face datasets, in pairs with their processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from benchmarks import peervenvs
from benchmarks.loading import BATCH, touched
from benchmarks.method import Figure, Pair, Run, figure_of, measure
from benchmarks.ratios import Effort, Results
from benchmarks.served import Served, Setup, best
from benchmarks.workloads import BINARIES, MIXED, NARROW, TOKENS, Workload

LITDATA: Final = ("litdata", "serve_litdata.py")
MOSAIC: Final = ("mosaicml-streaming", "serve_mosaic.py")
HF: Final = ("datasets", "serve_datasets.py")
_SHORT: Final = {"litdata": "litdata", "mosaicml-streaming": "mosaic", "datasets": "hf"}
_LEVELS: Final = ("fernet=chunk", "fernet=sample")


def _setup(peer: tuple[str, str], workload: Workload, rows: int, options: tuple[str, ...] = ("",)) -> Setup:
    return Setup(*peer, workload, rows, BATCH[workload.name], options)


FERNET: Final = (
    (_setup(LITDATA, NARROW, 100_000, _LEVELS), 40.0),
    (_setup(LITDATA, TOKENS, 8_000, _LEVELS), 10.0),
    (_setup(LITDATA, BINARIES, 800, _LEVELS), 10.0),
)
"""With Fernet, and the bar."""
PLAIN: Final = (
    _setup(LITDATA, NARROW, 150_000),
    _setup(MOSAIC, NARROW, 30_000),
    _setup(HF, NARROW, 400_000),
    _setup(LITDATA, MIXED, 20_000),
    _setup(MOSAIC, MIXED, 6_000),
    _setup(HF, MIXED, 40_000),
    _setup(LITDATA, TOKENS, 40_000),
    _setup(MOSAIC, TOKENS, 8_000),
    _setup(HF, TOKENS, 40_000),
    _setup(LITDATA, BINARIES, 4_000),
    _setup(MOSAIC, BINARIES, 2_000),
    _setup(HF, BINARIES, 4_000),
)
"""In plaintext."""
_MINIMA: Final = (
    ("vs_peers_narrow_min", ("vs_litdata_narrow", "vs_mosaic_narrow", "vs_hf_narrow"), 2.0),
    ("vs_peers_mixed_min", ("vs_litdata_mixed", "vs_mosaic_mixed", "vs_hf_mixed"), 2.0),
    ("vs_litdata_mosaic_tokens_min", ("vs_litdata_tokens", "vs_mosaic_tokens"), 2.0),
)
_BARS: Final = {"vs_hf_tokens": 0.8, "vs_mosaic_binaries": 2.0}


def with_fernet(effort: Effort) -> Results:
    """`vs_litdata_fernet_*`: our encrypted copy against LitData's."""
    results = Results()
    for setup, bar in FERNET:
        name = f"vs_litdata_fernet_{setup.workload.name}"
        if runs := _against(name, setup, effort, results, plain=False):
            results.figures.append(figure_of(name, runs, bar=bar, ratio=_rate_ratio(setup)))
    return results


def in_plaintext(effort: Effort) -> Results:
    """The same loader on plaintext against the peers on plaintext."""
    results = Results()
    found: dict[str, Figure] = {}
    for setup in PLAIN:
        name = f"vs_{_SHORT[setup.peer]}_{setup.workload.name}"
        if runs := _against(name, setup, effort, results, plain=True):
            found[name] = figure_of(name, runs, bar=_BARS.get(name), ratio=_rate_ratio(setup))
    for name, parts, bar in _MINIMA:
        if set(parts) <= found.keys():
            worst = min((found[part] for part in parts), key=lambda figure: figure.value)
            results.figures.append(replace(worst, name=name, bar=bar))
    results.figures += found.values()
    return results


def _rate_ratio(setup: Setup) -> Callable[[Pair], float]:
    ours = setup.workload.files * setup.workload.rows

    def ratio(pair: Pair) -> float:
        """Rows a second: the two do not read equally many."""
        return (ours / pair.ours) / (setup.rows / pair.peer)

    return ratio


def _against(
    name: str, setup: Setup, effort: Effort, results: Results, *, plain: bool
) -> tuple[Run, ...] | None:
    """The pairs, or None and a note where the peer's environment is not there."""
    if peervenvs.python_of(setup.peer) is None:
        note = f"left out: {setup.peer} is not installed (make bench-peers)"
        print(f"{name} {note}", file=sys.stderr)
        results.details[name] = note
        return None
    chosen = best(setup)
    with Served(setup, chosen["option"]) as peer, touched(setup.workload, plain=plain) as epoch:
        peer.ask(f"open {chosen['workers']}")
        runs = measure(
            peer.epoch, epoch, pairs=effort.pairs, runs=effort.runs, settle=lambda: peer.ask("settle")
        )
    results.keep(name, runs, _rate_ratio(setup))
    results.details[name] |= {"chosen": chosen, "versions": peervenvs.versions(setup.peer)}
    results.details[name] |= _rates(setup, results.details[name])
    return runs


def _rates(setup: Setup, found: dict[str, Any]) -> dict[str, int]:
    ours = setup.workload.files * setup.workload.rows
    return {
        "peer_rows_per_second": round(setup.rows / found["peer_seconds"]),
        "ours_rows_per_second": round(ours / found["ours_seconds"]),
    }
