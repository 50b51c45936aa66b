"""The KEKs that a process holds of one dataset, and what it counts. No rules here: `keyring` has them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from encpipe.errors import EncpipeError
from encpipe.keys import Secret, WrappedKey
from encpipe.manifest import KekRecord


class Held:
    """One KEK of the dataset: its lock makes the unwrap single flight.

    `failure` is what the last of `flights` raised, kept without its traceback, which holds keys.
    """

    def __init__(self, record: KekRecord) -> None:
        self.record = record
        self.lock = threading.Lock()
        self.kek: Secret | None = None
        self.opened_by: WrappedKey | None = None
        self.since = 0.0
        self.not_before = 0.0
        self.flights = 0
        self.failure: tuple[Callable[..., EncpipeError], tuple[Any, ...]] | None = None

    def inherited(self) -> Held:
        """For a forked child: the KEK as old as it is, and a lock that no thread of the parent holds."""
        made = Held(self.record)
        made.kek, made.since, made.not_before = self.kek, self.since, self.not_before
        made.opened_by = self.opened_by
        return made


class HeldKeks:
    """What one process holds and counts."""

    def __init__(self, held: Mapping[str, Held]) -> None:
        self.held = held
        self.count = threading.Lock()
        self.unwraps = 0
        self.refusals = 0

    def inherited(self) -> HeldKeks:
        return HeldKeks({kek_id: held.inherited() for kek_id, held in self.held.items()})
