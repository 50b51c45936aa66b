"""The group `core`: what encrypting, scanning and opening cost beside plain PyArrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pyarrow as pa

from benchmarks import counts, processes, ratios
from benchmarks.datasets import WORKERS
from benchmarks.ratios import Effort, Results

_QUICK: Final = Effort(pairs=2, runs=1, printed_pairs=1)

PARTS: Final[Mapping[str, Callable[[bool], Results]]] = {
    "encrypt": lambda quick: ratios.encrypt_figures(_QUICK if quick else Effort()),
    "scan": lambda quick: ratios.scan_figures(_QUICK if quick else Effort()),
    "column": lambda _: counts.one_column(),
    "many": lambda _: counts.many_files(),
    "calls": lambda _: counts.kms_calls(),
    "peak": lambda quick: processes.encrypt_peak(quick=quick),
    "start": lambda _: processes.start_up(),
}
"""Name for `--only` -> what measures it."""


def prepare() -> None:
    """The same number of threads on both sides."""
    pa.set_cpu_count(WORKERS)
