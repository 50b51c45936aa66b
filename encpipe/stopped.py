"""Stopped writes: which one a call goes on with, what of it is finished, and how its work is thrown away."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from encpipe import journal as journals
from encpipe.commit import Target, committed_as, surely_not_committed
from encpipe.errors import (
    ConfigError,
    ConflictError,
    EncpipeError,
    IntegrityError,
    KmsError,
    ManifestError,
    SignatureError,
    StorageError,
)
from encpipe.filelist import FileEntry
from encpipe.journal import Journal, SealedJournal
from encpipe.keyring import DatasetKeys
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import check_commitment
from encpipe.records import Records
from encpipe.signing import SigningKey
from encpipe.state import State
from encpipe.storage import Storage

_FOLDER: Final = "_encpipe/"
_DATA: Final = re.compile(r"(?:.*/)?(?:[0-9a-f]{32}\.parquet|\.tmp-[^/]*)")
_RESTART: Final = "start the write anew with --restart"


@dataclass(frozen=True)
class Stopped:
    """A write that was stopped. `committed_as` is the generation it made before that, if it did."""

    journal: Journal
    target: Target
    committed_as: int | None
    kms_calls: int


@dataclass(frozen=True)
class StoppedWrites:
    """The stopped writes of one dataset, as one call sees them.

    `digest` stands for the call's source and settings, or is None when the source cannot be read twice;
    `fits` tells whether a journal's write can be committed on top of a base. A call that signs goes on only
    with what its `key` signed: else whoever holds the footer key could have files of his own signed.
    """

    storage: Storage
    master_keys: MasterKeys
    partitions: tuple[str, ...]
    digest: bytes | None
    fits: Callable[[Journal, State | None], bool]
    restart: bool
    key: SigningKey | None = None

    def find(self, held: ExitStack, base: State | None) -> Stopped | None:
        """The stopped write that the call goes on with, or that it finds committed; owned until `held` ends.

        Live writers are left alone, what a finished one did not get to remove is removed. Raises
        `ConflictError` `locked` when a live one, or one whose lease has not run out, does this very write;
        `EncpipeError` `source-changed` for a stopped write of another source or setting, `ManifestError`
        `journal` for an edited one; with `restart` both are thrown away instead.
        """
        for writer_id in journals.folders(self.storage):
            with ExitStack() as mine:
                try:
                    mine.enter_context(self.storage.hold(journals.lock_path(writer_id)))
                except ConflictError as error:
                    self._refuse_twin(writer_id, error)
                    continue
                stopped = self._take(writer_id, base)
                if stopped is not None:
                    held.enter_context(mine.pop_all())
                    return stopped
        return None

    def _refuse_twin(self, writer_id: str, locked: ConflictError) -> None:
        """Raise when the live journal is of this very write: done twice at once, one of them is for nothing;
        and where an owner holds a lease, it may have been stopped a moment ago."""
        if self.digest is None or self.restart:
            return
        try:
            _, journal = self._open(journals.load(self.storage, writer_id))
        except (ConfigError, IntegrityError, KmsError, StorageError):
            return  # it ends just now, was edited, or is under others' keys: not this call's business
        if journal.digest == self.digest:
            raise ConflictError(
                f"the same write is under way ({journal.owner}), or was stopped a moment ago",
                hint=locked.hint,
                code="locked",
            )

    def _take(self, writer_id: str, base: State | None) -> Stopped | None:
        try:
            found = journals.load(self.storage, writer_id)
        except StorageError as error:
            if error.code != "not-found":
                raise
            journals.remove(self.storage, writer_id)  # it ended while its records were being removed
            return None
        except ManifestError as error:
            if not self.restart:
                raise ManifestError(error.message, hint=_RESTART, code=error.code) from None
            journals.remove(self.storage, writer_id)
            return None
        generation = committed_as(self.storage, writer_id)
        if generation is not None:
            return self._committed(found, base, generation)
        if self.restart:
            self._discard(found)
            return None
        return self._resume(found, base)

    def _committed(self, found: SealedJournal, base: State | None, generation: int) -> Stopped | None:
        """Only the journal was left. Another write than ours is none of our business."""
        with suppress(SignatureError):
            keys, journal = self._open(found)
            if journal.digest == self.digest:
                return self._stopped(keys, journal, base, generation)
        journals.remove(self.storage, found.journal.writer_id)
        if self.digest is None:
            raise EncpipeError(
                f"the write before this one was stopped just after it was committed as generation "
                f"{generation}; whether it had the same rows as this one cannot be told",
                hint="if these rows are others, run the command again: nothing is in the way any more",
                code="source-changed",
            )
        return None

    def _resume(self, found: SealedJournal, base: State | None) -> Stopped:
        keys, journal = self._open(found)
        if journal.digest != self.digest or not self.fits(journal, base):
            raise EncpipeError(
                "a stopped write is there, with another source, policy, setting or base than this call",
                hint="repeat the first command to go on with it, or pass --restart to throw its work away",
                code="source-changed",
            )
        return self._stopped(keys, journal, base, None)

    def _stopped(
        self, keys: DatasetKeys, journal: Journal, base: State | None, generation: int | None
    ) -> Stopped:
        wrappings = {**journal.wrappings, **(base.manifest.wrappings if base is not None else {})}
        keks = {record.id: keys.kek(record.id) for record in journal.keks if record.state == "active"}
        target = Target(journal.dataset_id, journal.footer_key, journal.keks, wrappings, keks, base)
        return Stopped(journal, target, generation, keys.unwraps)

    def _open(self, found: SealedJournal) -> tuple[DatasetKeys, Journal]:
        keys = journal_keys(found, self.master_keys, signed=self.key is not None)
        return keys, found.open(keys.kek(found.journal.footer_kek_id), self.key)

    def _discard(self, found: SealedJournal) -> None:
        """Throw a stopped write away, its data files too where its records can still be read."""
        try:
            keys, journal = self._open(found)
            records = Records(self.storage, journal, keys.kek(journal.footer_kek_id), self.key)
            paths = recorded_paths(records, self.partitions)
        except EncpipeError:
            paths = []  # the files are named nowhere: `gc` removes them
        journals.remove(self.storage, found.journal.writer_id, paths)


def has_begun(storage: Storage) -> bool:
    """Whether a write has ever begun here: then there is its journal, or what it committed."""
    return any(True for _ in storage.list(_FOLDER))


def check_free(storage: Storage, *, begun: bool) -> None:
    """Raise `ConfigError` `exists` unless there is nothing here but what earlier writes left.

    Files that are called as ours are theirs only where a write has `begun`. Elsewhere they are somebody
    else's, and `gc` would later take them for garbage of the dataset.
    """
    for path in (info.path for info in storage.list()):
        if path.startswith(_FOLDER):
            continue
        # Asked again: a write may have begun since. Its journal is there before its first file.
        if not _DATA.fullmatch(path) or not (begun or has_begun(storage)):
            raise ConfigError(
                f"{storage.url} is not empty: it holds {path!r}",
                hint="name an empty or a new folder",
                code="exists",
            )


def journal_keys(found: SealedJournal, master_keys: MasterKeys, *, signed: bool = False) -> DatasetKeys:
    """The keys of a write, each checked against the commitment in its journal.

    With `signed` the journal is used only if its signature fits, which is seen once its body is open.
    """
    records = {record.id: record for record in found.journal.keks}
    return DatasetKeys(
        found.journal.dataset_id,
        found.journal.keks,
        found.journal.wrappings,
        master_keys,
        lambda kek_id, kek: check_commitment(records[kek_id], kek),
        vouched=records if signed else (),
    )


def recorded_paths(records: Records, partitions: tuple[str, ...]) -> list[str]:
    """The data files that a journal's records name. Raises `ManifestError` `journal`, `StorageError`."""
    return [records.read(n, partitions).path for n in list(records.numbers())]


def finished(
    storage: Storage, records: Records, partitions: tuple[str, ...], files: int
) -> dict[int, FileEntry]:
    """What an earlier run finished of `files` source files; each is read again and its SHA-256 compared.

    Raises `ManifestError` `journal` when a record or a file was changed.
    """
    done = {}
    for n in records.numbers():
        entry = records.read(n, partitions)
        if n < files and _is_as_recorded(storage, entry):
            done[n] = entry
            continue
        raise ManifestError(
            f"file {entry.path} of a stopped write was changed or removed",
            hint=_RESTART,
            code="journal",
        )
    return done


def _is_as_recorded(storage: Storage, entry: FileEntry) -> bool:
    try:
        return storage.sha256(entry.path) == entry.sha256
    except StorageError as error:
        if error.code != "not-found":
            raise
        return False


def throw_away(storage: Storage, journal: Journal, records: Records, partitions: tuple[str, ...]) -> None:
    """Remove what a write made: no later run can go on with it. Raises nothing: the error that led here
    matters more than one on the way.

    The journal goes first, without which nobody commits. Data files that another run may have committed under
    it stay, and those whose record is gone, which `gc` removes.
    """
    with suppress(EncpipeError):
        paths = _paths_left(records, partitions)
        storage.delete(journals.journal_path(journal.writer_id))
        sure = surely_not_committed(storage, journal.writer_id, journal.base_generation)
        journals.remove(storage, journal.writer_id, paths if sure else ())


def _paths_left(records: Records, partitions: tuple[str, ...]) -> list[str]:
    """What the records name that are still there: a shred may be removing them."""
    paths: list[str] = []
    for n in list(records.numbers()):
        try:
            paths.append(records.read(n, partitions).path)
        except StorageError as error:
            if error.code != "not-found":
                raise
    return paths
