"""Memory for tensors, used again once nobody holds them. No I/O.

Fresh memory costs more than what is done with it: the kernel maps it in page by page, and the allocator gives
it back as soon as a batch is dropped (measured: gathering 33 columns takes up to three times as long).
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from typing import Final

import numpy as np
import numpy.typing as npt

LEAST: Final = 64 * 1024
"""Bytes from which on memory is kept; smaller pieces the allocator keeps itself."""
IDLE: Final = 512 * 2**20
"""Bytes kept at most while nobody uses them."""
_ALIGN: Final = 64

Bytes = npt.NDArray[np.uint8]


class Memory:
    """Blocks of memory that come back when the last array or tensor on them is gone. Any thread may use it.

    What it gives holds what was there before. Blocks come back at any moment, amid anything else
    (garbage collection), so nothing here waits for a lock: who does not get it does without the block.
    """

    def __init__(self, idle: int = IDLE) -> None:
        self._limit, self._idle = idle, 0
        self._lock = threading.RLock()  # `release` waits, and may come amid anything else too
        self._blocks: dict[int, list[_Block]] = defaultdict(list)

    @property
    def idle(self) -> int:
        """Bytes kept now that nobody uses."""
        return self._idle

    def empty(self, size: int) -> Bytes:
        """An array of `size` bytes that may be written to, aligned to 64 bytes."""
        if size < LEAST:
            return np.empty(size, np.uint8)
        kept = _rounded(size)
        block = self._pop(kept) or _Block(kept)
        return np.asarray(_Lease(self, block))[:size]

    def _pop(self, size: int) -> _Block | None:
        if not self._lock.acquire(blocking=False):
            return None
        try:
            blocks = self._blocks[size]
            if not blocks:
                return None
            block = blocks.pop()
            self._idle = max(0, self._idle - size)
            return block
        finally:
            self._lock.release()

    def take_back(self, block: _Block) -> None:
        """Keep a block for the next who needs one, or let it go."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._idle + block.size <= self._limit:
                self._idle += block.size
                self._blocks[block.size].append(block)
        finally:
            self._lock.release()

    def release(self) -> None:
        """Let go of all that nobody uses."""
        with self._lock:
            self._blocks.clear()
            self._idle = 0

    def after_fork(self) -> None:
        """In the child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()


class _Block:
    """Aligned memory, and how NumPy sees it."""

    def __init__(self, size: int) -> None:
        self.size = size
        memory = np.empty(size + _ALIGN, np.uint8)
        start = -memory.ctypes.data % _ALIGN
        self.array: Bytes = memory[start : start + size]
        self.interface = self.array.__array_interface__


class _Lease:
    """Owns a block for as long as an array refers to it."""

    __slots__ = ("__array_interface__", "_block", "_memory")

    def __init__(self, memory: Memory, block: _Block) -> None:
        self._memory, self._block = memory, block
        self.__array_interface__ = block.interface

    def __del__(self) -> None:
        self._memory.take_back(self._block)


def _rounded(size: int) -> int:
    """Up to one of eight sizes between a power of two and the next: about equal pieces share blocks."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


MEMORY: Final = Memory()
"""Shared by all that is loaded in this process."""

os.register_at_fork(after_in_child=MEMORY.after_fork)
