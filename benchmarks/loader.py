"""The group `loader`: batches of tensors from ciphertext, beside plaintext, bare PyArrow and other loaders.

Peers give dicts of tensors (a row's numbers as one vector for each type, which is their fastest way; texts
and binaries as lists), ours a tensor for each column. With both every tensor is summed and the length of
every text taken (`benchmarks/peerscripts/touch.py`), with warm caches, in the same batch sizes, torch's own
threads cut to 1, each peer at its best of 0, 1 and 2 workers. In ratios of our own batches are counted only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pyarrow as pa
import torch

from benchmarks import loadercounts, loaderpeers, loaderratios
from benchmarks.datasets import WORKERS
from benchmarks.ratios import Effort, Results

_QUICK: Final = Effort(pairs=2, runs=1, printed_pairs=1)
_OURS: Final = Effort(pairs=9, runs=3, printed_pairs=5)
_PEERS: Final = Effort(pairs=5, runs=3)
"""Their bars are far from 1: fewer pairs decide."""

PARTS: Final[Mapping[str, Callable[[bool], Results]]] = {
    "plain": lambda quick: loaderratios.against_plain(_QUICK if quick else _OURS),
    "pyarrow": lambda quick: loaderratios.against_pyarrow(_QUICK if quick else _OURS),
    "stacked": lambda quick: loaderratios.stacked(_QUICK if quick else _OURS),
    "threads": lambda quick: loaderratios.threads(_QUICK if quick else _OURS),
    "fernet": lambda quick: loaderpeers.with_fernet(_QUICK if quick else _PEERS),
    "peers": lambda quick: loaderpeers.in_plaintext(_QUICK if quick else _PEERS),
    "shuffle": lambda quick: loaderratios.shuffled(_QUICK if quick else _OURS),
    "ranks": lambda _: loadercounts.bytes_of_ranks(),
    "first": lambda _: loadercounts.first_batch(),
    "memory": lambda _: loadercounts.memory(),
}
"""Name for `--only` -> what measures it."""


def prepare() -> None:
    """The same number of threads on all sides: torch's own would be more."""
    pa.set_cpu_count(WORKERS)
    torch.set_num_threads(1)
