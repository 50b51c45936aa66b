"""Copies of wrappings outside the newest manifest: removing those that shred dooms, and a look for the rest.

They stand in journals of writes (live ones, too), in temp files, and in older versions of either and of the
manifest where a bucket keeps them. No data file is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from encpipe import journal as journals
from encpipe import manifest
from encpipe.core import KekRecord
from encpipe.errors import ConflictError, IntegrityError, StorageError
from encpipe.keys import WrappedKey
from encpipe.lifecycle.keysline import Leftover
from encpipe.lifecycle.tombstone import Names
from encpipe.lifecycle.wrapped import may_be_torn, wrapped_in
from encpipe.state import MANIFEST_PATH
from encpipe.storage import OldVersion, Storage

OUR_FOLDER: Final = "_encpipe/"
Held = dict[tuple[str, WrappedKey], KekRecord]
"""Wrappings that were found, each under the id of its KEK."""

_MANIFEST_OR_JOURNAL: Final = r"manifest\.json|pending/[0-9a-f]{32}/journal\.json"
_TEMP: Final = r"(?:pending/[0-9a-f]{32}/)?\.tmp-[^/]*"
_OURS: Final = re.compile(rf"_encpipe/(?:{_MANIFEST_OR_JOURNAL}|{_TEMP})")
"""Objects that go when they hold what is doomed."""
_HOLD_NONE: Final = re.compile(
    r"_encpipe/(?:lock|left/.*|files-[0-9]+-[0-9a-f]{32}\.sealed|pending/[0-9a-f]{32}/(?:lock|[0-9]+\.sealed))"
)
"""Objects of ours that never hold a wrapping."""


@dataclass(frozen=True)
class Copy:
    """An object or an older version of one. `ours` tells whether it is called as encpipe calls its own."""

    place: str
    path: str
    what: str
    read: Callable[[], bytes]
    delete: Callable[[], None]
    ours: bool


@dataclass
class Copies:
    """The copies of one dataset's wrappings. `removed` and `failed` (why) tell by place what became of them;
    `held` holds the doomed wrappings that were seen."""

    storage: Storage
    dataset_id: str
    names: Names
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    held: Held = field(default_factory=dict)

    def find(self) -> list[Copy]:
        """What would go. Nothing is changed. Raises `StorageError` in an outage."""
        return [copy for copy in self._all() if self._goes(copy) and copy.ours]

    def remove(self) -> None:
        """Remove what holds doomed wrappings; with the whole dataset also what cannot be read.

        A live writer loses his journal, without which he cannot commit, and clears up after himself. Raises
        `StorageError` in an outage; what was not removed then is by the next run.
        """
        for _ in range(2):  # what is removed in a bucket that keeps versions leaves one
            self._remove_found()

    def _remove_found(self) -> None:
        for copy in self.find():
            writer = _writer_of(copy)
            try:
                if writer is None:
                    copy.delete()
                else:
                    self._remove_write(writer, copy)
            except StorageError as error:
                if error.code == "storage-unavailable":
                    raise
                self.failed[copy.place] = error.message
            else:
                self.removed.append(copy.place)

    def _remove_write(self, writer_id: str, journal: Copy) -> None:
        """A stopped write goes whole, but for its data files, which nothing names then: `gc` removes them."""
        try:
            with self.storage.hold(journals.lock_path(writer_id)):
                journals.remove(self.storage, writer_id)
        except ConflictError:
            journal.delete()

    def left(self) -> tuple[Leftover, ...]:
        """The doomed wrappings that are still there, and what may hold some and could not be read."""
        found: dict[Leftover, None] = {}
        for copy in self._all():
            why = self.failed.get(copy.place, copy.what)
            try:
                data = copy.read()
            except StorageError as error:
                if error.code != "not-found":  # gone meanwhile is as good
                    found[Leftover(copy.place, "", "", "", f"{why}, not looked at: {error.message}")] = None
                continue
            try:
                doomed = self._doomed_in(data)
            except IntegrityError:
                if copy.ours and may_be_torn(copy.place, data):
                    found[Leftover(copy.place, "", "", "", f"{why}, not readable")] = None
                continue
            for record, wrapped in doomed:
                left = Leftover(copy.place, record.key_name, wrapped.master_key, wrapped.version, why)
                found[left] = None
        return tuple(found)

    def _goes(self, copy: Copy) -> bool:
        whole = self.names is None
        try:
            doomed = self._doomed_in(copy.read())
        except IntegrityError:
            return whole
        except StorageError as error:
            if error.code == "storage-unavailable":
                raise
            return whole and error.code != "not-found"
        return bool(doomed)

    def _doomed_in(self, data: bytes) -> list[tuple[KekRecord, WrappedKey]]:
        dataset_id, wrapped_keys = wrapped_in(data)
        if dataset_id != self.dataset_id:
            return []
        doomed = [(r, w) for r, w in wrapped_keys if self.names is None or r.key_name in self.names]
        self.held |= {(record.id, wrapped): record for record, wrapped in doomed}
        return doomed

    def _all(self) -> Iterator[Copy]:
        """Every object of the folder `_encpipe` and every older version that may hold wrappings, but for the
        newest manifest."""
        limit = manifest.MAX_MANIFEST_BYTES
        for info in list(self.storage.list(OUR_FOLDER)):
            path, ours = info.path, _OURS.fullmatch(info.path) is not None
            if path == MANIFEST_PATH or _HOLD_NONE.fullmatch(path) or (not ours and info.size > limit):
                continue
            read, delete = partial(self.storage.read, path, limit=limit), partial(self.storage.delete, path)
            yield Copy(path, path, _what(path, ours=ours), read, delete, ours)
        try:
            older = list(self.storage.old_versions(OUR_FOLDER))
        except StorageError as error:
            if error.code == "storage-unavailable":
                raise
            read = partial(_refused, error)
            yield Copy(OUR_FOLDER, OUR_FOLDER, "older versions", read, _nothing, ours=False)
            return
        yield from (self._old(old) for old in older if _OURS.fullmatch(old.path))

    def _old(self, old: OldVersion) -> Copy:
        read = partial(self.storage.read_version, old, limit=manifest.MAX_MANIFEST_BYTES)
        place = f"{old.path}?versionId={old.version}"
        return Copy(
            place, old.path, "an older version", read, partial(self.storage.delete_version, old), True
        )


def _what(path: str, *, ours: bool) -> str:
    if not ours:
        return "an object that encpipe did not name"
    return "a write under way or stopped" if path.endswith(".json") else "a temp file"


def _writer_of(copy: Copy) -> str | None:
    """The writer whose journal this is, unless it is an older version of one."""
    parts = copy.path.split("/")
    is_journal = copy.place == copy.path and parts[-1] == "journal.json"
    return parts[-2] if is_journal else None


def _nothing() -> None:
    """Not ours to remove."""


def _refused(error: StorageError) -> bytes:
    raise error
