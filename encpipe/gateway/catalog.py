"""The datasets that a gateway has open, by public name."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from encpipe.dataset import Dataset
from encpipe.errors import EncpipeError, StaleDatasetError

LOG = logging.getLogger("encpipe.gateway")
KEPT_STATES: Final = 4
"""States of one dataset that stay open, so that who began with one can end with it."""

BRIDGED_SECONDS: Final = 3600.0
"""How long an outage of storage or key service is bridged; then what is open is given to nobody any more."""
OUTAGES: Final = ("kms-unavailable", "storage-unavailable")


@dataclass
class _Entry:
    """One dataset: its states, the newest last, when it was looked at, and when with success."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    states: list[Dataset] = field(default_factory=list)
    looked: float = 0.0
    seen: float = 0.0


class Catalog:
    """Opens datasets on first use and looks for newer states after `refresh_seconds`. Thread-safe."""

    def __init__(
        self,
        urls: Mapping[str, str],
        opener: Callable[[str], Dataset],
        *,
        refresh_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls, self._opener = urls, opener
        self._refresh_seconds, self._clock = refresh_seconds, clock
        self._entries = {name: _Entry() for name in urls}

    def get(self, name: str, core: str | None = None) -> Dataset:
        """The newest state of a dataset, or the one that `core` names.

        Raises `StaleDatasetError` for a state that is open no more, and what `open_dataset` raises; an outage
        is bridged for `BRIDGED_SECONDS` with the states that are open.
        """
        entry = self._entries[name]
        with entry.lock:
            if not entry.states or self._clock() - entry.looked >= self._refresh_seconds:
                self._look(name, entry)
            if core is None:
                return entry.states[-1]
            for dataset in entry.states:
                if dataset.core_digest == core:
                    return dataset
        raise StaleDatasetError(
            f"the gateway does not have this state of dataset {name!r} open any more",
            hint="open the dataset anew",
        )

    def _look(self, name: str, entry: _Entry) -> None:
        now = self._clock()
        try:
            found = self._opener(self._urls[name])
        except EncpipeError as error:
            if error.code not in OUTAGES or not entry.states or now - entry.seen > BRIDGED_SECONDS:
                raise
            LOG.warning("dataset %s cannot be looked at: %s", name, error.code)
        else:
            others = [state for state in entry.states if state.core_digest != found.core_digest]
            entry.states, entry.seen = [*others, found][-KEPT_STATES:], now
        entry.looked = now

    def close(self) -> None:
        """Close what is open; nothing may be streaming."""
        for entry in self._entries.values():
            with entry.lock:
                states, entry.states = entry.states, []
            for dataset in states:
                dataset.close()
