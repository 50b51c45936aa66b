"""Which epoch comes next: agreed upon by the worker processes of a `DataLoader`, without a lock.

A `DataLoader` tells its dataset nothing. Worker processes are made for every iteration, or live on
(`persistent_workers`); one that was not needed may begin late, or be stopped before it begins at all. So the
first worker of an iteration that asks takes the epoch after the latest one, and all others of the same
iteration find its answer in shared memory, where every worker has a word of its own. Workers of one iteration
know each other by the random number that their `DataLoader` drew for it.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch.utils.data import get_worker_info

MOST_WORKERS: Final = 1024

_FIRST, _SETS, _AFAR, _WORDS = 0, 1, 2, 3
"""In shared memory: the epoch that was set, how often one was, whether the last one began in a worker; then
for each worker its iteration (31 bits) and the epoch that began with it (32), and the epoch after its own."""


class Epochs:
    """A count that goes on in this process and in all that it hands the count to."""

    def __init__(self) -> None:
        self._shared = torch.zeros(_WORDS + 2 * MOST_WORKERS, dtype=torch.int64).share_memory_()
        self._pid = os.getpid()
        self._sets = self._first = 0
        self._iteration: int | None = None
        self._base = self._begun = 0

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._shared.is_shared():  # a copy, or a pickle for nobody in particular
            self._shared = self._shared.clone().share_memory_()

    def set(self, epoch: int) -> None:
        """Let `epoch` be the next, here and in the workers of the next iteration."""
        self._sets, self._first = int(self._shared[_SETS]) + 1, epoch
        self._shared.zero_()
        self._shared[_FIRST], self._shared[_SETS] = epoch, self._sets

    @property
    def next(self) -> int:
        """The epoch that the next iteration begins."""
        return max(int(self._shared[_FIRST]), int(self._after().max()))

    @property
    def afar(self) -> bool:
        """Whether the last epoch began in a worker process."""
        return bool(self._shared[_AFAR])

    def begin(self, at: int | None = None) -> int:
        """The epoch of the iteration that begins; the one after that is next.

        `at` sets it for this worker; all workers of the iteration are to give the same.
        """
        info = get_worker_info()
        if info is None:
            worker, workers, drawn = 0, 1, secrets.randbits(63)
        else:
            worker, workers, drawn = info.id, info.num_workers, info.seed - info.id
        self._shared[_AFAR] = info is not None
        started, self._pid = self._pid != os.getpid(), os.getpid()
        if not started:
            self._sets, self._first = int(self._shared[_SETS]), int(self._shared[_FIRST])
        elif self._sets != int(self._shared[_SETS]):
            return self._first  # another was set while this process started: nobody waits for its rows
        iteration = zlib.crc32(f"{drawn} {self._sets}".encode()) >> 1
        if at is None and iteration == self._iteration:  # a worker that lives on
            self._begun += 1
        else:
            self._iteration, self._begun = iteration, 0
            self._base = self._agreed(iteration, workers) if at is None else at
        self._words()[worker] = (iteration << 32) | (self._base + 1)
        self._after()[worker] = self._base + self._begun + 1
        if at is not None:
            self._after()[workers:] = 0  # of others, earlier: those in use now may have gone back
        return self._base + self._begun

    def _agreed(self, iteration: int, workers: int) -> int:
        """The epoch with which this iteration began for whoever came first; else the next one."""
        # In this order: who has written its second word has written the first.
        latest = self.next
        for word in self._words()[:workers].tolist():
            if word and word >> 32 == iteration:
                return int(word & 0xFFFFFFFF) - 1
        return latest

    def _words(self) -> torch.Tensor:
        return self._shared[_WORDS : _WORDS + MOST_WORKERS]

    def _after(self) -> torch.Tensor:
        return self._shared[_WORDS + MOST_WORKERS :]
