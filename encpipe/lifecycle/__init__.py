"""What happens to a dataset after it was written: its keys, and what of it is not needed any more."""

from __future__ import annotations

from encpipe.lifecycle.due import Overdue
from encpipe.lifecycle.gc import Collected, gc
from encpipe.lifecycle.grants import grant, revoke
from encpipe.lifecycle.keysline import KeysReport, Leftover, WrappingChange
from encpipe.lifecycle.rewrapping import needs_rewrap, rewrap

__all__ = [
    "Collected",
    "KeysReport",
    "Leftover",
    "Overdue",
    "WrappingChange",
    "gc",
    "grant",
    "needs_rewrap",
    "revoke",
    "rewrap",
]
