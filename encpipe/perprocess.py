"""A value of which every process has its own, for objects that a forked child inherits.

A lock that a thread of the parent held at the fork stays locked in the child for ever, and connections are
not to be shared. So what has locks or connections keeps them in a `PerProcess`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """`get` gives this process's value; in a forked child, on its first use, what `inherit` makes of the
    parent's.

    `inherit` takes no lock of the parent's value and does no I/O. Several threads may call it at once in a
    new child; one result counts. The parent's value is never dropped in the child, so nothing that belongs to
    the parent is closed there.
    """

    def __init__(self, value: Value, inherit: Callable[[Value], Value]) -> None:
        self._inherit = inherit
        self._values = {os.getpid(): value}

    def get(self) -> Value:
        """The value of this process. Safe to call from several threads."""
        pid = os.getpid()
        try:
            return self._values[pid]
        except KeyError:
            newest = next(reversed(self._values.values()))
            return self._values.setdefault(pid, self._inherit(newest))  # atomic: no lock is needed
