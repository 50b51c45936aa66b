"""What an epoch did so far, in figures."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from encpipe import aead

T = TypeVar("T")


@dataclass(frozen=True)
class Stats:
    """Figures of the current or last epoch, since it began or was resumed.

    `bytes` are those of the encrypted row groups that were read, estimated from file sizes (all columns);
    `seconds` go from the first batch asked for to the last one given. `wait_seconds` is what the training
    loop waited for batches; `read_seconds` and `convert_seconds` are spent by all reader threads together,
    on fetching, decrypting and decoding, and on making tensors. `decrypt_share` is the part of both that
    AES-256-GCM takes at the speed that one core was measured at: an estimate, since decoding decrypts as it
    goes.
    """

    epoch: int
    rows: int
    batches: int
    bytes: int
    seconds: float
    wait_seconds: float
    read_seconds: float
    convert_seconds: float
    decrypt_share: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def megabytes_per_second(self) -> float:
        return self.bytes / 1e6 / self.seconds if self.seconds else 0.0


class Meter:
    """Counts while an epoch runs. Reader threads and the training loop write into it."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._lock = threading.Lock()
        self._begun: float | None = None
        self._last = 0.0
        self.rows = self.batches = 0
        self._bytes = self._wait = self._read = self._convert = 0.0

    def begin(self) -> None:
        """The first batch is asked for."""
        self._begun = self._last = time.perf_counter()

    def gave(self, rows: int) -> None:
        """A batch of `rows` rows is handed out."""
        self.rows += rows
        self.batches += 1
        self._last = time.perf_counter()

    def wait(self, future: Future[T]) -> T:
        """The future's result; the time until then was waited."""
        start = time.perf_counter()
        try:
            return future.result()
        finally:
            self._wait += time.perf_counter() - start

    def loaded(self, *, size: float = 0.0, reading: float = 0.0, converting: float = 0.0) -> None:
        """A reader thread has spent so much time, on `size` bytes."""
        with self._lock:
            self._bytes += size
            self._read += reading
            self._convert += converting

    def stats(self) -> Stats:
        """The figures as of now."""
        with self._lock:
            busy = self._read + self._convert
            decrypting = self._bytes / open_speed()
            return Stats(
                epoch=self._epoch,
                rows=self.rows,
                batches=self.batches,
                bytes=round(self._bytes),
                seconds=self._last - self._begun if self._begun is not None else 0.0,
                wait_seconds=self._wait,
                read_seconds=self._read,
                convert_seconds=self._convert,
                decrypt_share=min(1.0, decrypting / busy) if busy else 0.0,
            )


@cache
def open_speed() -> float:
    """Bytes per second of AES-256-GCM on one core, measured once in about 20 ms."""
    return aead.open_speed()
