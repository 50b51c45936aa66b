"""Shredding partitions: their KEKs go from the file list, and every list that has them goes.

They are wrapped under the KEKs of their key names, which stay. So who kept an old list, and may use the
master keys, still opens them: the verdict is never `destroyed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from encpipe.access import Access
from encpipe.audit import Facts
from encpipe.errors import ConfigError, StorageError
from encpipe.filelist import FileList
from encpipe.keyring import DatasetKeys
from encpipe.keys import utc_now
from encpipe.lifecycle.keysline import Leftover
from encpipe.lifecycle.shredcommit import check_confirmed, replace_manifest
from encpipe.lifecycle.shredlists import FOLDER, Copy, ListCopies
from encpipe.lifecycle.shredreport import NOTE_COPIES, NOTE_OPEN, ShredReport, Verdict
from encpipe.lifecycle.shredtrial import Trial, try_afresh
from encpipe.lifecycle.tombstone import Made, without_files
from encpipe.manifest import Manifest, TaggedCore
from encpipe.partitionkeks import PartitionKek, Values
from encpipe.signing import writer_signing
from encpipe.state import State, load_keys, read_list


class PartitionShred:
    """One call of `shred` with partitions.

    `_found` is the newest manifest that was seen; `_state` and `_keys` are of before the commit. Lists of
    generations up to `_bound` are of before the shred, or of writers that lose; those in `_leaving` are in
    the manifest now, and leave it with the commit.
    """

    _found: Manifest
    _state: State
    _keys: DatasetKeys
    _leaving: set[str]
    _bound: int

    def __init__(self, access: Access, partitions: Sequence[Values]) -> None:
        self._access, self._storage = access, access.storage
        self._audit = access.master_keys.audit
        self._wanted = tuple(dict(values) for values in partitions)
        self._signing = writer_signing(access.master_keys)
        self._keks: dict[str, PartitionKek] = {}
        self._removed: list[str] = []
        self._failed: dict[str, str] = {}
        self._unseen = ""
        self._load()

    def check(self, confirm: str | None, *, dry_run: bool) -> None:
        """Raise `ConfigError` for a call that is not to be done, before anything is changed."""
        check_confirmed(self._access, self._found.core.dataset_id, confirm, dry_run=dry_run)
        columns = self._state.files.policy.partition_keys
        if not columns:
            raise ConfigError(
                "the files of this dataset have no KEKs of their partitions",
                hint="write it anew with partition_keys in the policy (--partition-keys)",
            )
        if not self._wanted or not all(values and set(values) <= set(columns) for values in self._wanted):
            raise ConfigError(
                f"a partition is named by values of {', '.join(columns)}",
                hint=f"for example --partition {columns[0]}=VALUE",
                code="usage",
            )
        # A run that was stopped may have left only what no list tells of any more.
        if not self._keks and not any(copy.delete for copy in self._copies()) and not self._keks:
            raise ConfigError(
                "there is no such partition: it was shredded before, or never was",
                hint="values are compared as text, as they stand in the file list",
                code="usage",
            )

    def plan(self) -> ShredReport:
        """What would be done."""
        self._removed += [copy.place for copy in self._copies() if copy.delete]
        return self._report((), Trial(), dry_run=True)

    def run(self) -> ShredReport:
        """Do it."""
        self._audit.check()
        self._found = replace_manifest(
            self._access, self._found.core.dataset_id, self._make, self._is_done, self._facts
        )
        self._bound, self._leaving = self._found.core.generation, set()
        for _ in range(2):  # what is removed in a bucket that keeps versions leaves one
            for copy in self._copies():
                if copy.delete is not None:
                    self._delete(copy, copy.delete)
        left = tuple(
            Leftover(copy.place, "", "", "", self._failed.get(copy.place, copy.what))
            for copy in self._copies()
        )
        names = {kek_id: kek.key_name for kek_id, kek in self._keks.items()}
        trial = try_afresh(self._access, self._found.core.dataset_id, {}, {}, {}, names)
        return self._report(left, trial).signed(self._signing.key)

    # The manifest

    def _load(self) -> None:
        master_keys, signers = self._access.master_keys, self._signing.signers
        data, found, self._keys = load_keys(self._storage, master_keys, signers=signers)
        self._found = found
        head = self._found.head
        self._state = State(self._found, head, self._list_of(head), self._keys, data)
        self._leaving = {
            tagged.core.list_name
            for tagged in (*self._found.retained, head)
            if self._meet(self._state.files if tagged is head else self._list_of(tagged))
        }
        self._bound = self._found.core.generation + bool(self._leaving)

    def _list_of(self, tagged: TaggedCore) -> FileList:
        return read_list(self._storage, tagged, self._keys.kek(tagged.core.footer_kek.id))

    def _meet(self, files: FileList) -> bool:
        """Whether a list has KEKs that are to go; they are noted."""
        found = {kek.id: kek for kek in files.partition_keks if self._matches(kek.partition)}
        self._keks |= found
        return bool(found)

    def _matches(self, partition: Values) -> bool:
        return any(values.items() <= partition.items() for values in self._wanted)

    def _is_done(self, _: Manifest) -> bool:
        self._load()
        return not self._leaving

    def _make(self, data: bytes, _: Manifest) -> Made | None:
        if self._state.manifest_bytes != data:
            return None
        files = self._state.files
        staying = replace(
            files,
            files=tuple(entry for entry in files.files if not self._matches(entry.partition)),
            partition_keks=tuple(kek for kek in files.partition_keks if not self._matches(kek.partition)),
        )
        return without_files(self._state, staying, self._leaving, self._signing.sign)

    def _facts(self, found: Manifest) -> Facts:
        return {
            "how": "partitions",
            "dataset": self._storage.url,
            "dataset_id": found.core.dataset_id,
            "generation": found.core.generation + 1,
            "revision": found.revision + 1,
            "key_names": sorted({kek.key_name for kek in self._keks.values()}),
            "counts": {"partition_keks": len(self._keks), "lists": len(self._leaving)},
        }

    # Copies

    def _copies(self) -> list[Copy]:
        """What holds such KEKs, or may, and does not stay in the manifest."""
        copies = ListCopies(
            self._storage,
            self._meet,
            self._keys,
            self._state.manifest,
            self._found,
            self._leaving,
            self._bound,
        )
        found = list(copies.find())
        self._unseen = copies.unseen
        return found

    def _delete(self, copy: Copy, delete: Callable[[], None]) -> None:
        try:
            delete()
        except StorageError as error:
            if error.code == "storage-unavailable":
                raise
            self._failed[copy.place] = error.message
        else:
            self._removed.append(copy.place)

    # What it led to

    def _report(self, left: tuple[Leftover, ...], trial: Trial, *, dry_run: bool = False) -> ShredReport:
        opened = [
            Leftover(one.what, "", "", "", "a fresh process opens it") for one in trial.tried if one.opened
        ]
        if self._unseen:
            opened.append(Leftover(FOLDER, "", "", "", f"older versions, not looked at: {self._unseen}"))
        remaining = (*left, *opened)
        verdict: Verdict = "" if dry_run else "incomplete" if remaining else "removed"
        notes = [NOTE_OPEN, NOTE_COPIES]
        if not self._keks:
            notes.append("no KEK of these partitions was found: they were shredded before, or never were")
        if trial.why_not:
            notes.append(f"not tried in a fresh process: {trial.why_not}")
        return ShredReport(
            url=self._storage.url,
            dataset_id=self._found.core.dataset_id,
            generation=self._found.core.generation,
            revision=self._found.revision,
            scope="partitions",
            key_names=tuple(sorted({kek.key_name for kek in self._keks.values()})),
            keks=tuple(self._keks),
            master_keys=(),
            removed=tuple(self._removed),
            remaining=() if dry_run else remaining,
            retired=(),
            tried=trial.tried,
            notes=tuple(notes),
            verdict=verdict,
            dry_run=dry_run,
            created=utc_now(),
            partitions=self._wanted,
        )
