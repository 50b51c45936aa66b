"""The group `keys`: what the life cycle of keys costs, and what it asks of a key service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import auditlog, keyfigures, rekeying
from benchmarks.ratios import Results

PARTS: Final[Mapping[str, Callable[[bool], Results]]] = {
    "rewrap": lambda _: keyfigures.rewrapping(),
    "rekey": lambda quick: rekeying.rekeying(quick=quick),
    "processes": lambda _: keyfigures.reading_in_processes(),
    "audit": lambda _: auditlog.audit_log(),
}
"""Name for `--only` -> what measures it."""


def prepare() -> None:
    """Nothing is to be set up."""
