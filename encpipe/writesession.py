"""One write from journal to commit; goes on where a stopped one left off."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from encpipe import journal as journals
from encpipe import strictjson
from encpipe.access import Access
from encpipe.audit import Event, Facts
from encpipe.commit import MAX_REBASES, Contents, Target, commit, partition_keks_of, rebased, same_shape
from encpipe.errors import ConfigError, ConflictError, EncpipeError, StorageError
from encpipe.filelist import FileEntry
from encpipe.journal import Journal
from encpipe.keys import utc_now
from encpipe.records import Records
from encpipe.sealing import ProgressCallback, Tally, seal_all
from encpipe.signing import WriterSigning
from encpipe.sources import Source
from encpipe.state import State, load_state, read_manifest
from encpipe.stopped import Stopped, StoppedWrites, check_free, finished, has_begun, throw_away
from encpipe.writedata import seal_job, start_journal
from encpipe.writekeys import check_not_weaker, make_target
from encpipe.writereport import WriteReport, facts_of, report_of

Purpose = Literal["write", "overwrite", "append", "rekey"]


class WriteSession:
    """One call of `write_dataset` or `append_dataset`; a re-key overrides what it does otherwise."""

    event: Event = "encrypt"

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
        self._digest = hashlib.sha256(strictjson.dumps(self._settings()) + source_digest).digest()
        self._workers, self._compression, self._restart = workers, compression, restart
        self._progress, self._drop_column_keys = progress, drop_column_keys
        self._signing = signing
        self._kms_calls = 0

    def _settings(self) -> dict[str, Any]:
        contents, uris = self._contents, self._master_keys.config.keys
        names = () if self._purpose == "append" else contents.policy.key_names
        return {
            "purpose": self._purpose,
            "policy": contents.policy.as_json(),
            "keys": {name: list(uris.get(name, ())) for name in names},
            "schema": hashlib.sha256(contents.schema).hexdigest(),
            "columns": [[leaf, name] for leaf, name in contents.columns.items()],
            "partitions": list(contents.partitions),
        }

    def run(self) -> WriteReport:
        """Do the whole write. Raises as `write_dataset` says."""
        self._audit.check()
        with self._audit.refusals(self.event, how=self._purpose, dataset=self._storage.url):
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
                begin = held, self._storage, target, self._digest, self._signing.key
                journal = start_journal(*begin, created=utc_now())
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
        records = self._records(journal, target)
        done = self._finished(records)
        try:
            entries = self._seal(target, records, done)
        except BaseException as error:
            if isinstance(error, ConflictError) or not self._source.resumable:
                throw_away(self._storage, journal, records, self._contents.partitions)
            raise
        generation, target, entries = self._commit_or_clean_up(journal, target, records, entries)
        journals.remove(self._storage, journal.writer_id)
        return self._report(entries, len(done), generation, started, target)

    def _commit_or_clean_up(
        self, journal: Journal, target: Target, records: Records, entries: list[FileEntry]
    ) -> tuple[int, Target, list[FileEntry]]:
        """Commit. After an error that leaves open whether the commit happened, everything stays."""
        try:
            return self._commit(journal, target, records, entries)
        except EncpipeError as error:
            undecided = error.code == "storage-unavailable"
            if isinstance(error, ConflictError) or not (undecided or self._source.resumable):
                throw_away(self._storage, journal, records, self._contents.partitions)
            raise

    def _seal(self, target: Target, records: Records, done: Mapping[int, FileEntry]) -> list[FileEntry]:
        files = self._source.files
        job = seal_job(self._storage, self._master_keys, target, self._contents, self._compression)
        tally = Tally(len(files), sum(file.size for file in files), self._progress)
        for n, entry in done.items():
            tally.add(files=1, rows=entry.rows, size=files[n].size)
        return seal_all(job, files, done, records, workers=self._workers, tally=tally)

    def _commit(
        self, journal: Journal, target: Target, records: Records, entries: list[FileEntry]
    ) -> tuple[int, Target, list[FileEntry]]:
        """The generation, and what was committed as it."""
        for _ in range(MAX_REBASES):
            files, facts = self._all(target, entries), self._facts(target, entries)
            keks = partition_keks_of(target, files, records.partition_keks.values())
            self._audit.record(self.event, **facts)
            try:
                job = self._storage, target, self._contents, files, journal.writer_id
                return commit(*job, partition_keks=keks, sign=self._signing.sign), target, entries
            except ConflictError as error:
                current = self._next_base(journal, target)
                if current is None:
                    raise
                self._audit.refuse(self.event, error, **facts)
            target, entries = self._on_top(target, current, records, entries)
        raise ConflictError(f"other writers were first {MAX_REBASES} times", hint="run the command again")

    def _facts(self, target: Target, entries: Sequence[FileEntry]) -> Facts:
        return facts_of(target, entries) | {"how": self._purpose, "dataset": self._storage.url}

    def _all(self, target: Target, entries: Sequence[FileEntry]) -> tuple[FileEntry, ...]:
        """Every file of the new generation."""
        before = () if self._purpose != "append" or target.base is None else target.base.files.files
        return (*before, *entries)

    def _next_base(self, journal: Journal, target: Target) -> State | None:
        """What to commit on top of, after someone else was first; None where that would undo his work. A
        re-wrap, say, or gc leaves the data as it was."""
        if target.base is None or not journals.still_there(self._storage, journal.writer_id):
            return None
        current = self._load()
        same_data = current.view.digest == target.base.view.digest
        return current if same_data or self._purpose == "append" else None

    def _on_top(
        self,
        target: Target,
        current: State,
        records: Records,  # noqa: ARG002 - for a re-key, which has more files to seal then
        entries: list[FileEntry],
    ) -> tuple[Target, list[FileEntry]]:
        """What to commit on top of `current`. Raises `ConflictError` where keys or policy changed."""
        return rebased(target, current), entries

    def _report(
        self, entries: Sequence[FileEntry], resumed: int, generation: int, started: float, target: Target
    ) -> WriteReport:
        return report_of(
            self._storage.url,
            target,
            entries,
            generation=generation,
            resumed_files=resumed,
            bytes_in=sum(file.size for file in self._source.files),
            seconds=time.monotonic() - started,
            kms_calls=self._kms_calls,
        )
