"""Re-keying a dataset beside encrypting the plaintext it was made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import encpipe
from benchmarks import datasets
from benchmarks.method import Run, figure_of, geomean, measure
from benchmarks.ratios import ENCRYPTED, Results, Scratch
from benchmarks.workloads import DATA, Workload

_PAIRS: Final = 9
_QUICK_PAIRS: Final = 2


def rekeying(*, quick: bool) -> Results:
    """`rekey_vs_encrypt`: how fast new KEKs for all key names are, the encryption of the plaintext being 1.

    The geometric mean of the workloads of `encrypt_vs_plain`, with as many workers on both sides, one column
    under a key of its own. Each re-key starts from the same dataset.
    """
    results, parts = Results(), []
    for workload in ENCRYPTED:
        runs = _measured(workload, _QUICK_PAIRS if quick else _PAIRS)
        results.keep(f"rekey_vs_encrypt_{workload.name}", runs)
        parts.append(runs)
    each = [figure_of(f"rekey_vs_encrypt_{w.name}", runs) for w, runs in zip(ENCRYPTED, parts, strict=True)]
    results.figures = [geomean("rekey_vs_encrypt", parts, bar=0.9), *each]
    return results


def _measured(workload: Workload, pairs: int) -> tuple[Run, ...]:
    source, encrypted = workload.ensure(), datasets.encrypted_workload(workload, column_key=True)
    scratch, copy = Scratch(), DATA / "scratch" / "dataset"

    def fresh() -> None:
        scratch.clear()
        shutil.copytree(encrypted, copy, copy_function=os.link)  # what a re-key replaces is a new file

    try:
        return measure(
            lambda: datasets.encrypt(source, scratch.fresh(), workload.column),
            lambda: _rekey(copy),
            pairs=pairs,
            runs=1,
            settle=fresh,
        )
    finally:
        scratch.clear()


def _rekey(url: Path) -> None:
    keys, _ = datasets.counted()
    report = encpipe.rekey(url, workers=datasets.WORKERS, config=datasets.config(), master_keys=keys)
    if report.generation != 2 or len(report.key_names) != len(datasets.KEYS):
        raise AssertionError(report)
