"""Wrappings outside the manifest: in journals of stopped writes, temp files and older object versions.

Those of stopped writes are changed like the manifest's, so that a later run can go on with them. A live
writer's journal is left alone: it goes with the write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from encpipe import journal as journals
from encpipe import manifest
from encpipe.audit import Facts
from encpipe.errors import ConfigError, ConflictError, IntegrityError, KmsError, StorageError
from encpipe.journal import Journal
from encpipe.keyring import DatasetKeys
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.keysline import (
    Changed,
    Edit,
    Leftover,
    OneKek,
    Wrappings,
    kek_records,
    only,
    wrappings_told,
)
from encpipe.lifecycle.wrapped import may_be_torn, wrapped_in
from encpipe.state import MANIFEST_PATH
from encpipe.stopped import journal_keys
from encpipe.storage import Storage

OUR_FOLDER: Final = "_encpipe/"
Wanted = Collection[str] | None
"""Key names; None for all."""
_MAY_HOLD: Final = re.compile(
    r"_encpipe/(?:manifest\.json|pending/[0-9a-f]{32}/journal\.json|(?:pending/[0-9a-f]{32}/)?\.tmp-[^/]*)"
)
"""Objects that may hold wrappings: manifest, journals, and temp files of either."""


class Journals:
    """The journals of stopped writes, in which an edit does what it did to the manifest.

    `made` are the wrappings that it left there, as (key name, master key, version); `calls` the KMS calls
    that unwrapping took.
    """

    def __init__(
        self, storage: Storage, master_keys: MasterKeys, changed: Changed, edit: Edit, wanted: Wanted
    ) -> None:
        self._storage, self._master_keys = storage, master_keys
        self._changed, self._edit, self._wanted = changed, edit, wanted
        self.made: set[tuple[str, str, str]] = set()
        self.calls = 0

    def change(self) -> None:
        """Change them, each after its line in the audit log. One that cannot be opened, or that a live writer
        owns, stays as it is.

        Raises `StorageError` in an outage, and `audit` where a line was not taken.
        """
        for writer_id in journals.writers(self._storage):
            try:
                with self._storage.hold(journals.lock_path(writer_id)):
                    self._change(journals.journal_path(writer_id))
            except (ConflictError, ConfigError, IntegrityError, KmsError):
                continue  # what it holds is among the leftovers
            except StorageError as error:
                if error.code != "not-found":  # the write ended meanwhile
                    raise

    def _change(self, path: str) -> None:
        data = self._storage.read(path, limit=journals.MAX_JOURNAL_BYTES)
        sealed, found = journals.parse(data), self._changed.found
        footer = sealed.journal.footer_kek_id
        if sealed.journal.dataset_id != found.core.dataset_id:
            return
        keys = journal_keys(sealed, self._master_keys)
        if footer in found.wrappings:
            keys.put(footer, self._changed.keys.kek(footer))
        try:
            journal = sealed.open(keys.kek(footer))
            after = self._wrappings(journal, keys)
        finally:
            self.calls += keys.unwraps + keys.refusals
        if after != journal.wrappings:
            new = replace(journal, wrappings=after).as_bytes(keys.kek(footer))
            with self._master_keys.audit.attempt(self._edit.event, **self._told(journal, after)):
                self._storage.commit(path, new, check=only(data), is_ours=lambda current: current == new)

    def _told(self, journal: Journal, after: Wrappings) -> Facts:
        records = {record.id: record for record in journal.keks}
        facts = wrappings_told(records, journal.wrappings, after)
        return facts | {
            "how": "stopped write",
            "dataset": self._storage.url,
            "dataset_id": journal.dataset_id,
        }

    def _wrappings(self, journal: Journal, keys: DatasetKeys) -> Wrappings:
        after = dict(journal.wrappings)
        for record in journal.keks:
            before = after.get(record.id, ())
            if not before or not _is_wanted(record.key_name, self._wanted):
                continue
            one = OneKek(journal.dataset_id, record, before, keys)
            after[record.id] = self._changed.after.get(record.id) or self._edit(one)
            self.made |= {(record.key_name, w.master_key, w.version) for w in after[record.id]}
        return after


def leftovers(
    storage: Storage, changed: Changed, wanted: Wanted, made: Collection[tuple[str, str, str]]
) -> tuple[Leftover, ...]:
    """The wrappings of the wanted key names that are found elsewhere, by other master keys or versions than
    the manifest has after the change, and than were `made` in journals; and what may hold such and cannot be
    read."""
    records = kek_records(changed.found)
    now = {
        (records[kek_id].key_name, wrapped.master_key, wrapped.version)
        for kek_id, some in changed.after.items()
        if kek_id in records
        for wrapped in some
    }
    found: dict[Leftover, None] = {}
    for place, read, what in _copies(storage):
        try:
            data = read()
        except StorageError as error:
            if error.code != "not-found":  # gone meanwhile is as good
                found[Leftover(place, "", "", "", f"{what}, not looked at: {error.message}")] = None
            continue
        try:
            _, wrappings = wrapped_in(data)
        except IntegrityError:
            if may_be_torn(place, data):
                found[Leftover(place, "", "", "", f"{what}, not readable")] = None
            continue
        for record, wrapped in wrappings:
            one = record.key_name, wrapped.master_key, wrapped.version
            if _is_wanted(record.key_name, wanted) and one not in now and one not in made:
                found[Leftover(place, *one, what)] = None
    return tuple(found)


def _is_wanted(key_name: str, wanted: Wanted) -> bool:
    return wanted is None or key_name in wanted


def _copies(storage: Storage) -> Iterator[tuple[str, Callable[[], bytes], str]]:
    """(place, how to read it, what it is) of every object but the manifest that may hold wrappings."""
    for info in storage.list(OUR_FOLDER):
        if _MAY_HOLD.fullmatch(info.path) and info.path != MANIFEST_PATH:
            what = "a write under way or stopped" if info.path.endswith(".json") else "a temp file"
            yield info.path, partial(storage.read, info.path, limit=manifest.MAX_MANIFEST_BYTES), what
    what = "an older version"
    try:
        for old in storage.old_versions(OUR_FOLDER):
            if _MAY_HOLD.fullmatch(old.path):
                place = f"{old.path}?versionId={old.version}"
                yield place, partial(storage.read_version, old, limit=manifest.MAX_MANIFEST_BYTES), what
    except StorageError as error:
        yield OUR_FOLDER, partial(_refused, error), "older versions"


def _refused(error: StorageError) -> bytes:
    raise error
