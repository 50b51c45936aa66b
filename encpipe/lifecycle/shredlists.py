"""Where partition KEKs lie outside the newest manifest's lists: what shredding them removes, or reports.

They stand in file lists, in records of writes that began before, in temp files and copies of lists, and in
older versions of any. A list that no key here opens and no generation names is garbage; it may hold some.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from encpipe import filelist
from encpipe import journal as journals
from encpipe.aead import SEAL_OVERHEAD
from encpipe.errors import ConfigError, IntegrityError, KmsError, KmsUnavailableError, StorageError
from encpipe.filelist import FileList
from encpipe.keyring import DatasetKeys
from encpipe.lifecycle.gcplan import list_parts
from encpipe.manifest import Manifest
from encpipe.state import MANIFEST_PATH, MAX_LIST_BYTES
from encpipe.storage import OldVersion, Storage

FOLDER: Final = "_encpipe/"
_RECORD: Final = re.compile(r"_encpipe/pending/[0-9a-f]{32}/[0-9]+\.sealed")
"""What an older version of may hold partition KEKs that a write made."""
_TEMP: Final = re.compile(r"_encpipe/\.tmp-[^/]*")
_HOLD_NONE: Final = re.compile(
    r"_encpipe/(?:manifest\.json|lock|left/[^/]*\.json|probe-[0-9a-f]{32}|pending/[0-9a-f]{32}/.*)"
)
"""Objects of ours that are no lists; what is pending is told by its journal."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_NAMED: Final = re.compile(r"files-(0|[1-9][0-9]{0,15})-([0-9a-f]{32})\.sealed")


@dataclass(frozen=True)
class Copy:
    """An object or an older version; `delete` is None where it is not ours to remove."""

    place: str
    what: str
    delete: Callable[[], None] | None


@dataclass
class ListCopies:
    """One dataset's copies of the partition KEKs that `meet` tells a list to have.

    `before` is the manifest of before the shred, opened with `keys`; `now` that of now. Lists of generations
    up to `bound` are of before the shred, or of writers that lose; those in `leaving` are in the manifest
    now, and leave it. `unseen` tells why older versions were not looked at.
    """

    storage: Storage
    meet: Callable[[FileList], bool]
    keys: DatasetKeys
    before: Manifest
    now: Manifest
    leaving: Collection[str]
    bound: int
    unseen: str = ""

    def find(self) -> Iterator[Copy]:
        """All of them. Nothing is changed. Raises `StorageError`, `KmsUnavailableError` in an outage."""
        objects = list(self.storage.list(FOLDER))
        committed = max((o.modified for o in objects if o.path == MANIFEST_PATH), default=_NEVER)
        for info in objects:
            path = info.path
            what = self._what(path, partial(self.storage.read, path, limit=MAX_LIST_BYTES))
            if not what:
                continue
            # A younger temp file may be that of a commit on top of ours.
            ours = _TEMP.fullmatch(path) and info.modified <= committed
            delete = partial(self.storage.delete, path) if ours or list_parts(path) else None
            yield Copy(path, what, delete)
        for writer_id in journals.folders(self.storage):
            if self._began_before(writer_id):
                remove = partial(journals.remove, self.storage, writer_id)
                yield Copy(f"{journals.FOLDER}{writer_id}/", "a write under way or stopped", remove)
        for old in self._versions():
            read = partial(self.storage.read_version, old, limit=MAX_LIST_BYTES)
            if _RECORD.fullmatch(old.path) or self._what(old.path, read):
                yield self._old(old)

    def _old(self, old: OldVersion) -> Copy:
        ours = _RECORD.fullmatch(old.path) or list_parts(old.path) or _TEMP.fullmatch(old.path)
        delete = partial(self.storage.delete_version, old) if ours else None
        return Copy(f"{old.path}?versionId={old.version}", "an older version", delete)

    def _versions(self) -> list[OldVersion]:
        try:
            return list(self.storage.old_versions(FOLDER))
        except StorageError as error:
            if error.code == "storage-unavailable":
                raise
            self.unseen = error.message
            return []

    def _began_before(self, writer_id: str) -> bool:
        try:
            return journals.load(self.storage, writer_id).journal.base_generation < self.bound
        except IntegrityError:
            return True
        except StorageError as error:
            if error.code != "not-found":
                raise
            records = self.storage.list(f"{journals.FOLDER}{writer_id}/")
            return any(info.path != journals.lock_path(writer_id) for info in records)

    # Lists

    def _what(self, path: str, read: Callable[[], bytes]) -> str:
        """What is to be said of an object that holds such KEKs, or may; empty for any other."""
        parts = list_parts(path)
        if _HOLD_NONE.fullmatch(path) or (parts is not None and self._stays(path, parts[0])):
            return ""
        try:
            data = read()
        except StorageError as error:
            if error.code == "storage-unavailable":
                raise
            return "" if error.code == "not-found" else f"not looked at: {error.message}"
        files = self._opened(data, path)
        if files is not None:
            return "a file list" if self.meet(files) else ""
        if parts is not None:
            return "a file list that no key here opens"
        if len(data) < SEAL_OVERHEAD or data.isascii():
            return ""
        temp = _TEMP.fullmatch(path)
        return "a temp file" if temp else "an object that encpipe did not name, and that may be a file list"

    def _stays(self, path: str, generation: int) -> bool:
        """Whether a list is no business of this shred: one that others commit on top of us is none."""
        named = {tagged.core.list_name for tagged in (*self.now.retained, self.now.head)}
        return generation > self.bound or (path in named and path not in self.leaving)

    def _opened(self, sealed: bytes, path: str) -> FileList | None:
        """The list that these bytes are: that of its name, or a copy of one that the manifest named."""
        name = _NAMED.search(path)
        cores = [t.core for m in (self.now, self.before) for t in (m.head, *m.retained)]
        lists = [(int(name[1]), name[2])] if name else []
        if list_parts(path) is None:
            lists += [(core.generation, core.list_id) for core in cores]
        for kek_id in dict.fromkeys(core.footer_kek.id for core in cores):
            for generation, list_id in dict.fromkeys(lists):
                files = self._open(sealed, kek_id, generation, list_id)
                if files is not None:
                    return files
        return None

    def _open(self, sealed: bytes, kek_id: str, generation: int, list_id: str) -> FileList | None:
        try:
            return filelist.open_sealed(
                sealed,
                footer_kek=self.keys.kek(kek_id),
                dataset_id=self.before.core.dataset_id,
                generation=generation,
                list_id=list_id,
            )
        except KmsUnavailableError:
            raise
        except (ConfigError, IntegrityError, KmsError):
            return None
