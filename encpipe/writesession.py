"""One write from journal to commit; goes on where a stopped one left off."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import Literal

from encpipe import journal as journals
from encpipe import strictjson
from encpipe.access import Access
from encpipe.commit import (
    MAX_REBASES,
    Contents,
    Target,
    commit,
    rebased,
    same_shape,
    surely_not_committed,
)
from encpipe.errors import ConfigError, ConflictError, EncpipeError, StorageError
from encpipe.filelist import FileEntry
from encpipe.journal import Journal, Records
from encpipe.keyring import DatasetKeys
from encpipe.keys import new_id, utc_now
from encpipe.parquet import Layout
from encpipe.sealing import ProgressCallback, SealJob, Tally, seal_all
from encpipe.signing import WriterSigning
from encpipe.sources import Source
from encpipe.state import State, load_state, read_manifest
from encpipe.stopped import Stopped, StoppedWrites, check_free, finished, has_begun, recorded_paths
from encpipe.writekeys import check_not_weaker, make_target
from encpipe.writereport import WriteReport, facts_of, keys_used

Purpose = Literal["write", "overwrite", "append"]


class WriteSession:
    """One call of `write_dataset` or `append_dataset`."""

    def __init__(
        self,
        purpose: Purpose,
        access: Access,
        source: Source,
        contents: Contents,
        source_digest: bytes,
        *,
        workers: int,
        compression: str,
        restart: bool,
        progress: ProgressCallback | None,
        signing: WriterSigning,
        drop_column_keys: bool = False,
    ) -> None:
        self._purpose = purpose
        self._storage, self._master_keys = access.storage, access.master_keys
        self._audit = access.master_keys.audit
        self._source, self._contents = source, contents
        self._digest = hashlib.sha256(self._settings() + source_digest).digest()
        self._workers, self._compression, self._restart = workers, compression, restart
        self._progress, self._drop_column_keys = progress, drop_column_keys
        self._signing = signing
        self._kms_calls = 0

    def _settings(self) -> bytes:
        contents, uris = self._contents, self._master_keys.config.keys
        names = () if self._purpose == "append" else contents.policy.key_names
        settings = {
            "purpose": self._purpose,
            "policy": contents.policy.as_json(),
            "keys": {name: list(uris.get(name, ())) for name in names},
            "schema": hashlib.sha256(contents.schema).hexdigest(),
            "columns": [[leaf, name] for leaf, name in contents.columns.items()],
            "partitions": list(contents.partitions),
        }
        return strictjson.dumps(settings)

    def run(self) -> WriteReport:
        """Do the whole write. Raises as `write_dataset` says."""
        self._audit.check()
        with self._audit.refusals("encrypt", how=self._purpose, dataset=self._storage.url):
            return self._run(time.monotonic())

    def _run(self, started: float) -> WriteReport:
        with ExitStack() as held:
            base = self._base()
            if self._purpose == "overwrite" and base is not None and not self._drop_column_keys:
                check_not_weaker(base, self._contents)
            begun = base is None and has_begun(self._storage)  # before `find` clears up
            stopped = self._stopped_writes().find(held, base)
            if stopped is None:
                self._check_free(base, begun=begun)
                target = self._new_target(base)
                journal = self._start(held, target)
            else:
                self._kms_calls += stopped.kms_calls
                if stopped.committed_as is not None:
                    return self._already_done(stopped, stopped.committed_as, started)
                journal, target = stopped.journal, stopped.target
            return self._write(journal, target, started)

    def _stopped_writes(self) -> StoppedWrites:
        return StoppedWrites(
            storage=self._storage,
            master_keys=self._master_keys,
            partitions=self._contents.partitions,
            digest=self._digest if self._source.resumable else None,
            fits=self._fits,
            restart=self._restart,
            key=self._signing.key,
        )

    def _already_done(self, stopped: Stopped, generation: int, started: float) -> WriteReport:
        """An earlier run was stopped after its commit: only its journal was left."""
        entries = list(self._finished(self._records(stopped.journal, stopped.target)).values())
        journals.remove(self._storage, stopped.journal.writer_id)
        return self._report(entries, len(entries), generation, started, stopped.target)

    def _records(self, journal: Journal, target: Target) -> Records:
        return Records(self._storage, journal, target.keks[journal.footer_kek_id], self._signing.key)

    def _finished(self, records: Records) -> dict[int, FileEntry]:
        return finished(self._storage, records, self._contents.partitions, len(self._source.files))

    def _base(self) -> State | None:
        try:
            read_manifest(self._storage)
        except StorageError as error:
            if error.code != "not-found" or self._purpose == "append":
                raise
            return None
        state = self._load()
        self._kms_calls += state.keys.unwraps
        if self._purpose == "append" and not same_shape(state.files, self._contents):
            raise ConflictError(
                "another writer changed the dataset's policy or schema in the meantime",
                hint="nothing was changed; run the command again",
            )
        return state

    def _load(self) -> State:
        return load_state(self._storage, self._master_keys, signers=self._signing.signers)

    def _check_free(self, base: State | None, *, begun: bool) -> None:
        if base is None:
            check_free(self._storage, begun=begun)
        elif self._purpose == "write":
            raise ConfigError(
                f"there is a dataset at {self._storage.url}",
                hint="--overwrite replaces its contents by a new generation; `encpipe append` adds to it",
                code="exists",
            )

    def _new_target(self, base: State | None) -> Target:
        names = self._contents.policy.key_names
        target, calls = make_target(base, names, self._master_keys, append=self._purpose == "append")
        self._kms_calls += calls
        return target

    # Journal

    def _start(self, held: ExitStack, target: Target) -> Journal:
        base = target.base
        journal = Journal(
            writer_id=new_id(),
            dataset_id=target.dataset_id,
            base_core="" if base is None else base.view.digest,
            base_generation=0 if base is None else base.view.core.generation,
            created=utc_now(),
            owner=f"{socket.gethostname()}:{os.getpid()}",
            footer_key=target.footer_key,
            keks=target.records,
            wrappings=target.wrappings,
            digest=self._digest,
        ).signed(self._signing.key)
        held.enter_context(self._storage.hold(journals.lock_path(journal.writer_id)))
        data = journal.as_bytes(target.keks[target.active(target.footer_key).id])
        self._storage.create(journals.journal_path(journal.writer_id), data)
        return journal

    def _fits(self, journal: Journal, base: State | None) -> bool:
        """Whether the journal's write can still be committed on top of what is there now."""
        if base is None:
            return journal.base_core == ""
        if journal.base_core == base.view.digest:
            return True
        window = base.manifest.core.generation - journal.base_generation <= len(base.manifest.retained)
        return self._purpose == "append" and journal.keks == base.manifest.core.keks and window

    # Data

    def _write(self, journal: Journal, target: Target, started: float) -> WriteReport:
        keys = self._session_keys(target)
        records = self._records(journal, target)
        done = self._finished(records)
        try:
            entries = self._seal(target, keys, records, done)
        except BaseException:
            if not self._source.resumable:
                self._clean_up(journal, records)
            raise
        generation = self._commit_or_clean_up(journal, target, records, entries)
        journals.remove(self._storage, journal.writer_id)
        return self._report(entries, len(done), generation, started, target)

    def _commit_or_clean_up(
        self, journal: Journal, target: Target, records: Records, entries: list[FileEntry]
    ) -> int:
        """Commit. After an error that leaves open whether the commit happened, everything stays."""
        try:
            return self._commit(journal, target, entries)
        except EncpipeError as error:
            undecided = error.code == "storage-unavailable"
            if isinstance(error, ConflictError) or not (undecided or self._source.resumable):
                self._clean_up(journal, records)
            raise

    def _clean_up(self, journal: Journal, records: Records) -> None:
        """Remove what this write made: no later run can go on with it. The error that led here matters more
        than one on the way. What another run may have committed under our journal stays: the journal goes
        first, without which nobody commits."""
        with suppress(EncpipeError):
            paths = recorded_paths(records, self._contents.partitions)
            self._storage.delete(journals.journal_path(journal.writer_id))
            if surely_not_committed(self._storage, journal.writer_id, journal.base_generation):
                journals.remove(self._storage, journal.writer_id, paths)

    def _session_keys(self, target: Target) -> DatasetKeys:
        keys = DatasetKeys(
            target.dataset_id, target.records, target.wrappings, self._master_keys, lambda *_: None
        )
        for kek_id, kek in target.keks.items():
            keys.put(kek_id, kek)
        return keys

    def _seal(
        self, target: Target, keys: DatasetKeys, records: Records, done: Mapping[int, FileEntry]
    ) -> list[FileEntry]:
        contents, files = self._contents, self._source.files
        names = set(contents.columns.values()) | {target.footer_key}
        job = SealJob(
            storage=self._storage,
            layout=Layout(contents.columns, {n: target.active(n).id for n in names}, target.footer_key),
            keys=keys,
            schema=contents.write_schema,
            plaintext_partitions=contents.policy.plaintext_partitions,
            compression=self._compression,
        )
        tally = Tally(len(files), sum(file.size for file in files), self._progress)
        for n, entry in done.items():
            tally.add(files=1, rows=entry.rows, size=files[n].size)
        return seal_all(job, files, done, records, workers=self._workers, tally=tally)

    def _commit(self, journal: Journal, target: Target, entries: list[FileEntry]) -> int:
        for _ in range(MAX_REBASES):
            before = () if self._purpose != "append" or target.base is None else target.base.files.files
            facts = facts_of(target, entries) | {"how": self._purpose, "dataset": self._storage.url}
            self._audit.record("encrypt", **facts)
            try:
                job = self._storage, target, self._contents, (*before, *entries), journal.writer_id
                return commit(*job, sign=self._signing.sign)
            except ConflictError as error:
                current = self._next_base(journal, target)
                if current is None:
                    raise
                self._audit.refuse("encrypt", error, **facts)
            target = rebased(target, current)
        raise ConflictError(f"other writers were first {MAX_REBASES} times", hint="run the command again")

    def _next_base(self, journal: Journal, target: Target) -> State | None:
        """What to commit on top of, after someone else was first; None where that would undo his work. A
        re-wrap, say, or gc leaves the data as it was."""
        if target.base is None or not journals.still_there(self._storage, journal.writer_id):
            return None
        current = self._load()
        same_data = current.view.digest == target.base.view.digest
        return current if same_data or self._purpose == "append" else None

    def _report(
        self,
        entries: list[FileEntry] | tuple[FileEntry, ...],
        resumed: int,
        generation: int,
        started: float,
        target: Target,
    ) -> WriteReport:
        return WriteReport(
            url=self._storage.url,
            dataset_id=target.dataset_id,
            generation=generation,
            files=len(entries),
            resumed_files=resumed,
            rows=sum(entry.rows for entry in entries),
            bytes_in=sum(file.size for file in self._source.files),
            bytes_out=sum(entry.size for entry in entries),
            seconds=time.monotonic() - started,
            kms_calls=self._kms_calls,
            master_keys={
                name: tuple(wrapped.master_key for wrapped in wrappings)
                for name, wrappings in keys_used(target).items()
            },
        )
