"""One re-key, from journal to commit: a write whose source is the dataset itself.

What others append meanwhile is encrypted anew, too, before the commit: an append adds at the end only, so
what was finished stays finished, also for a later run that goes on after a stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from encpipe import journal as journals
from encpipe.access import Access
from encpipe.audit import Event, Facts
from encpipe.commit import Target, same_shape
from encpipe.filelist import FileEntry, FileList
from encpipe.journal import Journal
from encpipe.lifecycle.rekeysource import own_contents, own_source
from encpipe.records import Records
from encpipe.sealing import ProgressCallback
from encpipe.signing import WriterSigning
from encpipe.state import State, read_list
from encpipe.writekeys import rekey_target, retiring, rewrapped
from encpipe.writereport import WriteReport, facts_of
from encpipe.writesession import WriteSession


class RekeySession(WriteSession):
    """One call of `rekey`, on top of `state`. `to` names the master keys of new KEKs by key name."""

    event: Event = "rekey"

    def __init__(
        self,
        access: Access,
        state: State,
        key_names: Sequence[str],
        to: Mapping[str, Sequence[str]],
        *,
        workers: int,
        restart: bool,
        progress: ProgressCallback | None,
        signing: WriterSigning,
    ) -> None:
        self._access, self._state = access, state
        self._names, self._to = key_names, to
        self.older: tuple[int, ...] = ()
        """The generations that are readable beside the new one, once there is one."""
        super().__init__(
            "rekey",
            access,
            own_source(access, state),
            own_contents(state.files),
            b"",
            workers=workers,
            compression="snappy",  # of files without rows: the others keep theirs
            restart=restart,
            progress=progress,
            signing=signing,
        )

    def _settings(self) -> dict[str, Any]:
        """Which files there are is no setting: `_fits` compares them."""
        return {
            "purpose": "rekey",
            "dataset_id": self._state.view.core.dataset_id,
            "key_names": sorted(self._names),
            "keys": {name: list(uris) for name, uris in self._to.items()},
        }

    def _base(self) -> State:
        self._kms_calls += self._state.keys.unwraps
        return self._state

    def _new_target(self, base: State | None) -> Target:
        assert base is not None
        target, calls = rekey_target(base, self._names, self._to, self._master_keys)
        self._kms_calls += calls
        return target

    def _fits(self, journal: Journal, base: State | None) -> bool:
        assert base is not None
        core, made = base.manifest.core, journal.keks[len(base.manifest.core.keks) :]
        if journal.keks[: len(core.keks)] != retiring(core.keks, self._names):
            return False
        if {record.key_name for record in made} != set(self._names):
            return False
        return journal.base_core == base.view.digest or self._only_appended(journal, base)

    def _only_appended(self, journal: Journal, base: State) -> bool:
        """Whether the dataset still has the files that the journal's write began with."""
        older = [tagged for tagged in base.manifest.retained if tagged.digest == journal.base_core]
        if not older or older[0].core.keks != base.manifest.core.keks:
            return False
        footer_kek = base.keys.kek(older[0].core.footer_kek.id)
        return _extends(base.files, read_list(self._storage, older[0], footer_kek))

    def _commit(
        self, journal: Journal, target: Target, records: Records, entries: list[FileEntry]
    ) -> tuple[int, Target, list[FileEntry]]:
        return super()._commit(journal, self._rewrapped(target), records, entries)

    def _rewrapped(self, target: Target) -> Target:
        target, calls = rewrapped(target, self._to, self._master_keys)
        self._kms_calls += calls
        return target

    def _next_base(self, journal: Journal, target: Target) -> State | None:
        if target.base is None or not journals.still_there(self._storage, journal.writer_id):
            return None
        current = self._load()
        return current if _extends(current.files, target.base.files) else None

    def _on_top(
        self, target: Target, current: State, records: Records, entries: list[FileEntry]
    ) -> tuple[Target, list[FileEntry]]:
        target, _ = super()._on_top(target, current, records, entries)
        for name in current.view.core.key_names:
            current.keys.kek(current.view.core.active(name).id)
        self._kms_calls += current.keys.unwraps
        self._source = own_source(self._access, current)
        return self._rewrapped(target), self._seal(target, records, dict(enumerate(entries)))

    def _report(
        self, entries: Sequence[FileEntry], resumed: int, generation: int, started: float, target: Target
    ) -> WriteReport:
        history = () if target.base is None else target.base.manifest.history
        self.older = tuple(t.core.generation for t in history if t.core.generation < generation)
        return super()._report(entries, resumed, generation, started, target)

    def _facts(self, target: Target, entries: Sequence[FileEntry]) -> Facts:
        made = [record for record in target.records if record.state == "active"]
        new = [record.id for record in made if record.key_name in self._names]
        wrappings = [wrapped for kek_id in new for wrapped in target.wrappings[kek_id]]
        told: Facts = {
            "key_names": tuple(self._names),
            "master_keys": wrappings,
            "dataset": self._storage.url,
        }
        return facts_of(target, entries) | told


def _extends(files: FileList, before: FileList) -> bool:
    """Whether all that was done since is to append."""
    return same_shape(files, before) and files.files[: len(before.files)] == before.files
