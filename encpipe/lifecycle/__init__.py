"""What happens to the keys of a dataset after it was written."""

from __future__ import annotations

from encpipe.lifecycle.due import Overdue
from encpipe.lifecycle.grants import grant, revoke
from encpipe.lifecycle.keysline import KeysReport, Leftover, WrappingChange
from encpipe.lifecycle.rewrapping import needs_rewrap, rewrap

__all__ = [
    "KeysReport",
    "Leftover",
    "Overdue",
    "WrappingChange",
    "grant",
    "needs_rewrap",
    "revoke",
    "rewrap",
]
