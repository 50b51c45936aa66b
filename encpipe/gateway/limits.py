"""How much an identity gets at once and in a period. No I/O; times are given in, in seconds."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from encpipe.errors import StorageError


class Streams:
    """Counts the streams under way, of all and of each identity."""

    def __init__(self, most: int, most_per_identity: int) -> None:
        self._most, self._most_per_identity = most, most_per_identity
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many are under way."""
        with self._lock:
            return self._open.total()

    @contextlib.contextmanager
    def one(self, identity: str) -> Iterator[None]:
        """One stream. Raises `StorageError` `gateway-busy` when there are as many as there may be."""
        with self._lock:
            if self._open[identity] >= self._most_per_identity:
                raise _busy(f"this identity has {self._most_per_identity} streams, as many as it may have")
            if self._open.total() >= self._most:
                raise _busy(f"the gateway has {self._most} streams, as many as it may have")
            self._open[identity] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[identity] -= 1
                self._open += Counter()  # drops those that are 0


def _busy(what: str) -> StorageError:
    return StorageError(what, hint="end another stream, or try again later", code="gateway-busy")


class RowBudget:
    """Rows given out per identity and dataset, in periods that begin at multiples of their length.

    Kept in memory: a restart of the gateway begins anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[tuple[str, str], tuple[int, int]] = {}

    def take(
        self, identity: str, dataset: str, rows: int, *, most: int | None, period: int, now: float
    ) -> int:
        """How many of `rows` may be given out now; they count as given."""
        number = int(now // period)
        with self._lock:
            began, used = self._used.get((identity, dataset), (number, 0))
            if began != number:
                used = 0
            granted = rows if most is None else max(0, min(rows, most - used))
            self._used[identity, dataset] = (number, used + granted)
        return granted
