"""An open dataset in several processes: a forked child, one that gets a pickle, and copies in this process.

- A forked child opens the storage again by its URL and goes on with the KEKs that its parent held.
- A pickle holds URL, configuration, options and the manifest as it was read, which has wrapped keys only. The
  other process opens exactly this generation on first use, with its own calls to the key services, and trusts
  the pickle no more than the storage: every MAC and digest is checked again.
- A copy shares keys and state, and has connections of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from encpipe.access import Access
from encpipe.errors import StorageError
from encpipe.keys import WrappedKey
from encpipe.manifest import Manifest
from encpipe.perprocess import PerProcess
from encpipe.state import Known, State, check_still_there, load_known, wrappings_now
from encpipe.storage import Storage


class _Here:
    """What one process has of an open dataset; `state` is None until it is first asked for."""

    def __init__(self, access: Access, state: State | None) -> None:
        self.access = access
        self.state = state
        self.lock = threading.Lock()

    def inherited(self) -> _Here:
        return _Here(self.access.again(), self.state)


class OpenDataset:
    """Storage and state of one open dataset, as the process at hand may use them. Thread-safe."""

    def __init__(self, access: Access, known: Known, state: State | None = None) -> None:
        self._known = known
        self._process = PerProcess(_Here(access, state), _Here.inherited)

    @classmethod
    def of(cls, access: Access, state: State) -> OpenDataset:
        """A dataset that was just opened."""
        return cls(access, Known.of(state), _rereading(access, state))

    @property
    def storage(self) -> Storage:
        """This process's storage."""
        return self._process.get().access.storage

    @property
    def loaded(self) -> bool:
        """Whether `state` is there without any I/O."""
        return self._process.get().state is not None

    @property
    def state(self) -> State:
        """The checked state; loaded on first use after unpickling. Raises what `load_known` raises."""
        here = self._process.get()
        if here.state is None:
            with here.lock:
                if here.state is None:
                    state = load_known(here.access.storage, here.access.master_keys, self._known)
                    here.state = _rereading(here.access, state)
        return here.state

    def open_input(self, path: str) -> pa.NativeFile:
        """One of its files. Raises `StaleDatasetError` where gc removed it together with the generation, else
        what `Storage.open_input` raises."""
        storage = self.storage
        try:
            return storage.open_input(path)
        except StorageError as error:
            if error.code == "not-found":
                check_still_there(storage, self.state.view)
            raise

    def copy(self) -> OpenDataset:
        """The same, with connections of its own. No I/O and no call to a key service."""
        here = self._process.get()
        return OpenDataset(here.access.again(), self._known, here.state)

    def __reduce__(self) -> tuple[Callable[..., OpenDataset], tuple[Any, ...]]:
        return OpenDataset, (self._process.get().access, self._known)


def _rereading(access: Access, state: State) -> State:
    """`state`, whose keys find their wrappings on the storage where those at hand no longer open."""
    state.keys.reread = partial(_wrappings_now, access, state.manifest)
    return state


def _wrappings_now(access: Access, known: Manifest) -> Mapping[str, tuple[WrappedKey, ...]]:
    """Over connections of its own: the handle's may be closed, or belong to the parent process."""
    storage = access.again().storage
    try:
        return wrappings_now(storage, known)
    finally:
        storage.close()
