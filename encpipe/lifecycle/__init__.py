"""What happens to a dataset after it was written: its keys, and what of it is not needed any more."""

from __future__ import annotations

from encpipe.lifecycle.due import Overdue
from encpipe.lifecycle.gc import Collected, gc
from encpipe.lifecycle.grants import grant, revoke
from encpipe.lifecycle.keysline import KeysReport, Leftover, WrappingChange
from encpipe.lifecycle.rekeyed import Rekeyed
from encpipe.lifecycle.rekeying import rekey
from encpipe.lifecycle.rewrapping import needs_rewrap, rewrap
from encpipe.lifecycle.shred import shred
from encpipe.lifecycle.shredreport import RetiredMaster, ShredReport, Tried, verify_shred_report

__all__ = [
    "Collected",
    "KeysReport",
    "Leftover",
    "Overdue",
    "Rekeyed",
    "RetiredMaster",
    "ShredReport",
    "Tried",
    "WrappingChange",
    "gc",
    "grant",
    "needs_rewrap",
    "rekey",
    "revoke",
    "rewrap",
    "shred",
    "verify_shred_report",
]
