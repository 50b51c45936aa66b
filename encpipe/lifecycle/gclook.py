"""What gc looks at before it decides: objects, stopped writes, manifest, marks, and what lists name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from encpipe import filelist, strictjson
from encpipe import journal as journals
from encpipe.access import Access
from encpipe.audit import Facts
from encpipe.errors import (
    ConfigError,
    ConflictError,
    EncpipeError,
    IntegrityError,
    KmsError,
    KmsUnavailableError,
    StorageError,
)
from encpipe.keyring import DatasetKeys
from encpipe.lifecycle import gcplan
from encpipe.lifecycle.gcplan import Found, Mark, Plan, Rules, Write
from encpipe.manifest import FORMAT, Manifest, TaggedCore
from encpipe.parquet.reading import SEALED_MAGIC
from encpipe.pins import Pins
from encpipe.state import MAX_LIST_BYTES, load_keys, read_list, read_manifest
from encpipe.storage import ObjectInfo
from encpipe.strictjson import Fields

MAX_MARK_BYTES: Final = 512 << 20
READ_THREADS: Final = 8
"""Objects that are looked into at a time: on S3 each takes a request."""
FIRST_YEAR: Final = 1970
"""No write began earlier. Who says so in a journal would have times that cannot be reckoned with."""


@dataclass(frozen=True)
class Loaded:
    """A manifest that was checked, and its keys."""

    url: str
    data: bytes
    manifest: Manifest
    keys: DatasetKeys

    def facts(
        self, *, removed: Sequence[ObjectInfo], generations: int = 0, keks: int = 0, writes: int = 0
    ) -> Facts:
        """What the audit log is told before so much is removed."""
        size = sum(info.size for info in removed)
        counts = {"generations": generations, "keks": keks, "writes": writes}
        return {
            "dataset": self.url,
            "dataset_id": self.manifest.core.dataset_id,
            "generation": self.manifest.core.generation,
            "revision": self.manifest.revision,
            "counts": {**counts, "objects": len(removed), "bytes": size},
        }

    @property
    def generations(self) -> dict[str, TaggedCore]:
        """By the path of their list, oldest first."""
        return {tagged.core.list_name: tagged for tagged in (*self.manifest.retained, self.manifest.head)}


class Look:
    """One dataset as one call of gc sees it. `thrown` holds the journals of stopped writes it threw away,
    each after its line in the audit log."""

    def __init__(self, access: Access, rules: Rules, pins: Pins, *, dry_run: bool) -> None:
        self._storage, self._master_keys = access.storage, access.master_keys
        self._audit = access.master_keys.audit
        self._rules, self._pins, self._dry_run = rules, pins, dry_run
        self.thrown: dict[str, list[ObjectInfo]] = {}

    def load(self) -> Loaded:
        """The manifest as it is now. Raises what `load_keys` raises, and `StaleDatasetError` for the pins."""
        loaded = Loaded(self._storage.url, *load_keys(self._storage, self._master_keys))
        self._pins.check(loaded.manifest, loaded.manifest.head)
        return loaded

    def around(self, loaded: Loaded) -> tuple[Found, Loaded]:
        """What is there, in the order that `Found` asks for, and the manifest of after that.

        Throws stopped writes away.
        """
        now = self._storage.now()
        objects = tuple(self._storage.list())
        uploads = tuple(self._storage.unfinished_uploads())
        writes = tuple(self._writes(now, loaded))
        if self.is_old(loaded):
            loaded = self.load()
        marks = self._marks(objects, now)
        return Found(now, objects, uploads, writes, tuple(loaded.generations), marks), loaded

    def is_old(self, loaded: Loaded) -> bool:
        """Whether someone has replaced the manifest."""
        return read_manifest(self._storage)[0] != loaded.data

    # Stopped writes

    def _writes(self, now: datetime, loaded: Loaded) -> Iterator[Write]:
        """The writes that are under way or may go on. The others are thrown away."""
        for writer_id in journals.folders(self._storage):
            objects = list(self._storage.list(f"{journals.FOLDER}{writer_id}/"))
            if objects and not self._throw_away(writer_id, objects, now, loaded):
                yield self._write(writer_id, objects)

    def _throw_away(self, writer_id: str, objects: list[ObjectInfo], now: datetime, loaded: Loaded) -> bool:
        """Throw a write away if nobody went on with it for the grace time, and say whether."""
        if not gcplan.is_given_up(objects, now, self._rules.grace):
            return False
        lock = journals.lock_path(writer_id)
        if self._dry_run:
            if self._storage.is_held(lock):
                return False
        else:
            try:
                with self._storage.hold(lock):
                    again = self._storage.list(f"{journals.FOLDER}{writer_id}/")
                    objects = [info for info in again if info.path != lock]
                    if not gcplan.is_given_up(objects, now, self._rules.grace):
                        return False
                    self._audit.record("gc", **loaded.facts(removed=objects, writes=1))
                    journals.remove(self._storage, writer_id)
            except ConflictError:  # it is under way
                return False
        self.thrown[writer_id] = [info for info in objects if info.path != lock]
        return True

    def _write(self, writer_id: str, objects: list[ObjectInfo]) -> Write:
        began = min(info.modified for info in objects)
        try:
            journal = journals.load(self._storage, writer_id).journal
        except IntegrityError:
            return Write(writer_id, began, 0)
        except StorageError as error:
            if error.code != "not-found":
                raise
            return Write(writer_id, began, 0)
        with contextlib.suppress(ValueError):  # a re-wrap makes the journal anew
            created = datetime.strptime(journal.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            began = min(began, created) if created.year >= FIRST_YEAR else began
        return Write(writer_id, began, journal.base_generation if journal.base_core else None)

    # Marks

    def _marks(self, objects: Sequence[ObjectInfo], now: datetime) -> dict[str, Mark]:
        marks = {}
        for info in objects:
            listed = gcplan.list_of_mark(info.path)
            if listed is not None:
                waits = info.modified > now - self._rules.grace
                marks[listed] = Mark(info.modified, self._read_mark(info.path) if waits else frozenset())
        return marks

    def _read_mark(self, path: str) -> frozenset[str] | None:
        """The files of a mark; None where it does not tell. Nobody gains by a false one: it only keeps."""
        try:
            raw = strictjson.loads(self._storage.read(path, limit=MAX_MARK_BYTES), what="a mark")
            return frozenset(Fields(raw, what="a mark").texts("files", limit=filelist.MAX_FILES))
        except IntegrityError:
            return None
        except StorageError as error:
            if error.code != "not-found":
                raise
            return None

    # What is in files that nothing names

    def without_foreign(self, plan: Plan) -> Plan:
        """The plan without the data files that are not encrypted Parquet: they are called as ours, and are
        somebody else's. Reads the first bytes of each that is to go."""
        paths = [info.path for info in plan.files if gcplan.is_data(info.path)]
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="encpipe-gc-look") as pool:
            foreign = {
                path for path, ours in zip(paths, pool.map(self._is_sealed, paths), strict=True) if not ours
            }
        files = tuple(info for info in plan.files if info.path not in foreign)
        return replace(plan, files=files, foreign=tuple(sorted({*plan.foreign, *foreign})))

    def _is_sealed(self, path: str) -> bool:
        try:
            return self._storage.first_bytes(path, len(SEALED_MAGIC)) == SEALED_MAGIC
        except StorageError as error:
            if error.code != "not-found":  # another gc was first
                raise
            return True

    # Which files lists name

    def named(self, loaded: Loaded, lists: Sequence[str]) -> frozenset[str]:
        """The files of these generations. Raises what `read_list` and the keys raise."""
        return frozenset().union(*(self._files(loaded, loaded.generations[path]) for path in lists))

    def _files(self, loaded: Loaded, tagged: TaggedCore) -> frozenset[str]:
        files = read_list(self._storage, tagged, loaded.keys.kek(tagged.core.footer_kek.id)).files
        return frozenset(entry.path for entry in files)

    def once_named(self, loaded: Loaded, path: str) -> frozenset[str] | None:
        """The files of a list that leaves, or is out; None when it does not open with the keys at hand.

        Raises `KmsUnavailableError` and `StorageError` in an outage.
        """
        tagged = loaded.generations.get(path)
        with _or_none():
            if tagged is not None:
                return self._files(loaded, tagged)
            sealed = self._storage.read(path, limit=MAX_LIST_BYTES)
            for kek_id in dict.fromkeys(t.core.footer_kek.id for t in loaded.generations.values()):
                with _or_none():
                    return _open_list(loaded, path, sealed, kek_id)
        return None


def mark_bytes(files: frozenset[str] | None) -> bytes:
    """The body of a mark."""
    return strictjson.dumps({"format": FORMAT, "files": None if files is None else sorted(files)})


def _open_list(loaded: Loaded, path: str, sealed: bytes, kek_id: str) -> frozenset[str]:
    parts = gcplan.list_parts(path)
    assert parts is not None
    opened = filelist.open_sealed(
        sealed,
        footer_kek=loaded.keys.kek(kek_id),
        dataset_id=loaded.manifest.core.dataset_id,
        generation=parts[0],
        list_id=parts[1],
    )
    return frozenset(entry.path for entry in opened.files)


@contextlib.contextmanager
def _or_none() -> Iterator[None]:
    """Let pass that a list is not there or does not open, but no outage."""
    try:
        yield
    except KmsUnavailableError:
        raise
    except (ConfigError, IntegrityError, KmsError):
        return
    except EncpipeError as error:
        if error.code != "not-found":
            raise
