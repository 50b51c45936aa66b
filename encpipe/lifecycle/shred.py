"""Shred: destroy every wrapping of a dataset's KEKs, or of those of some key names or partitions.

Order: what stays moves away from a master key that is to be destroyed; the manifest is replaced, by a
tombstone or by a new generation without the key names, so that commits in flight lose; copies of wrappings go
(journals, temp files, older versions); master keys are destroyed; a fresh process tries to open what was
shredded; what is left is looked for. A stop at any point leaves a whole manifest, and the same command does
the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from encpipe import signing
from encpipe.access import Access, AnyPath, open_access
from encpipe.audit import Facts
from encpipe.config import Config
from encpipe.core import KekRecord
from encpipe.errors import ConfigError
from encpipe.keys import WrappedKey, utc_now
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.keysline import Leftover, kek_records
from encpipe.lifecycle.shredchecks import wrapped_by
from encpipe.lifecycle.shredcommit import check_confirmed, replace_manifest
from encpipe.lifecycle.shredcopies import Copies
from encpipe.lifecycle.shredmaster import Retirement
from encpipe.lifecycle.shredpartitions import PartitionShred
from encpipe.lifecycle.shredreport import (
    NOT_TRIED,
    NOTE_COPIES,
    NOTE_MISSING,
    NOTE_OPEN,
    RetiredMaster,
    ShredReport,
    Verdict,
)
from encpipe.lifecycle.shredtrial import Trial, try_afresh
from encpipe.lifecycle.tombstone import Made, doomed_keks, is_shredded, tombstone, without
from encpipe.manifest import Manifest
from encpipe.signing import writer_signing
from encpipe.state import load_state, read_manifest

__all__ = ["ShredReport", "shred"]


def shred(
    url: AnyPath,
    *,
    confirm: str | None = None,
    key_names: Sequence[str] | None = None,
    partitions: Sequence[Mapping[str, str | None]] | None = None,
    retire_master: Mapping[str, str] | None = None,
    also: Sequence[AnyPath] = (),
    dry_run: bool = False,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ShredReport:
    """Make the dataset at `url`, the columns under `key_names`, or `partitions`, unreadable, for good.

    `confirm` is the dataset id; only a dry run goes without. A dataset becomes a tombstone: no key of it is
    needed for that, and its data files stay, as bytes that nobody opens. With `key_names` there is a new
    generation, and the retained ones stay, too, all without these; that needs every other key name.
    Signs as writes do.

    `partitions` are values of the policy's `partition_keys`, as `{"year": "2020"}`; columns that are not
    named may have any. There is a new generation without the files and KEKs of these partitions; older ones
    that have them leave, and stopped writes go. Needs every key name. Files stay until `gc` removes them.

    `retire_master` maps master keys, as `inspect` shows them, to others ("" where nothing moves): they are
    destroyed after what stays of the dataset, and all of the datasets `also`, has moved. Whatever else they
    wrapped is lost. Only so a shred reaches copies made before it.

    Once more on what is shredded it removes what is left. Raises `ConfigError`, `KmsError`, `IntegrityError`,
    `StorageError`; when the manifest was not replaced, nothing is shredded. What could not be done after that
    is in the report, as `remaining`; an outage is raised.
    """
    names = None if key_names is None else tuple(dict.fromkeys(key_names))
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    audit = access.master_keys.audit
    with contextlib.closing(access.storage), audit.refusals("shred", dataset=access.storage.url):
        work: _Shred | PartitionShred
        if partitions is None:
            work = _Shred(access, names, Retirement(access, retire_master or {}, also))
        elif names is not None or retire_master or also:
            raise ConfigError(
                "partitions are shredded under all key names, and the master keys stay in use",
                hint="shred without key_names=, retire_master= and also=",
                code="usage",
            )
        else:
            work = PartitionShred(access, partitions)
        work.check(confirm, dry_run=dry_run)
        return work.plan() if dry_run else work.run()


class _Shred:
    """One call of `shred`. `keks` and `wrappings` are those that were there at first, or were met later."""

    def __init__(self, access: Access, names: tuple[str, ...] | None, retirement: Retirement) -> None:
        self._access, self._storage = access, access.storage
        self._audit = access.master_keys.audit
        self._names, self._retirement = names, retirement
        self._signing = writer_signing(access.master_keys)
        _, self._found = read_manifest(self._storage)
        self._copies = Copies(self._storage, self._found.core.dataset_id, names)
        self._keks = doomed_keks(self._found, names)
        self._meet(self._found)

    def check(self, confirm: str | None, *, dry_run: bool) -> None:
        """Raise `ConfigError` for a call that is not to be done, before anything is changed."""
        core = self._found.core
        check_confirmed(self._access, core.dataset_id, confirm, dry_run=dry_run)
        known = sorted({record.key_name for record in kek_records(self._found).values()})
        for name in self._names or ():
            if name not in known:
                raise ConfigError(
                    f"this dataset has no key name {name[:40]!r}; it has: {', '.join(known)}",
                    hint="`encpipe inspect` shows them",
                )
            if name == core.footer_key:
                raise ConfigError(
                    f"without the footer key {name!r} nothing of the dataset can be read",
                    hint="shred the whole dataset: without --key-name, key_names=None",
                    code="usage",
                )
        if self._names == ():
            raise ConfigError("no key name is given", hint="None is the whole dataset", code="usage")
        self._check_retirement()

    def _check_retirement(self) -> None:
        wrapped: set[str] = set()
        found = self._found
        if self._retirement.uris:
            self._copies.find()
            wrapped = wrapped_by(found) | {w.master_key for _, w in self._copies.held}
        self._retirement.check(
            found.core.dataset_id,
            wrapped,
            wrapped_by(found, self._keks),
            again=is_shredded(found, self._names),
        )

    def plan(self) -> ShredReport:
        """What would be done."""
        for copy in self._copies.find():
            self._copies.removed.append(copy.place)
        return self._report((), self._retirement.planned(), Trial(), dry_run=True)

    def run(self) -> ShredReport:
        """Do it."""
        self._audit.check()
        records = kek_records(self._found).values()
        left = {record.key_name for record in records if record.state != "shredded"}
        staying = left - set(self._names or ())
        moving = sorted(staying) if self._names is not None else ()
        self._retirement.begin(self._found.core.dataset_id, moving)
        self._commit()
        self._copies.remove()
        retired = self._retirement.destroy()
        trial = self._try(retired)
        return self._report(self._copies.left(), retired, trial).signed(self._signing.key)

    # The manifest

    def _commit(self) -> None:
        self._found = replace_manifest(
            self._access,
            self._found.core.dataset_id,
            self._make,
            lambda found: is_shredded(found, self._names),
            self._facts,
        )

    def _make(self, data: bytes, found: Manifest) -> Made | None:
        """What to commit in the place of `found`; None where it is not the newest any more."""
        self._meet(found)
        if self._names is None:
            signing.check(found.head, self._signing.signers)
            return tombstone(found, self._signing.sign)
        state = load_state(self._storage, self._access.master_keys, signers=self._signing.signers)
        return without(state, self._names, self._signing.sign) if state.manifest_bytes == data else None

    def _meet(self, found: Manifest) -> None:
        self._keks |= doomed_keks(found, self._names)
        for kek_id, record in self._keks.items():
            self._copies.held |= {(kek_id, wrapped): record for wrapped in found.wrappings.get(kek_id, ())}

    def _facts(self, found: Manifest) -> Facts:
        return {
            "how": self._scope,
            "dataset": self._storage.url,
            "dataset_id": found.core.dataset_id,
            "generation": found.core.generation + 1,
            "revision": found.revision + 1,
            "key_names": sorted({record.key_name for record in self._keks.values()}),
            "master_keys": [wrapped for _, wrapped in self._copies.held],
        }

    # What it led to

    @property
    def _scope(self) -> str:
        return "dataset" if self._names is None else "key-names"

    def _try(self, retired: Sequence[RetiredMaster]) -> Trial:
        """The dataset or its shredded KEKs; the old wrappings where their master keys were destroyed."""
        held: dict[str, tuple[WrappedKey, ...]] = {}
        destroyed = {master.uri for master in retired if not master.failed}
        for kek_id, wrapped in self._copies.held:
            if wrapped.master_key in destroyed:
                held[kek_id] = (*held.get(kek_id, ()), wrapped)
        keks: dict[str, KekRecord] = {} if self._names is None else self._keks
        names = {kek_id: record.key_name for (kek_id, _), record in self._copies.held.items()}
        return try_afresh(self._access, self._found.core.dataset_id, keks, held, names)

    def _report(
        self,
        left: tuple[Leftover, ...],
        retired: tuple[RetiredMaster, ...],
        trial: Trial,
        *,
        dry_run: bool = False,
    ) -> ShredReport:
        gone = {master.uri for master in retired if master.is_gone}
        remaining = (*(one for one in left if one.master_key not in gone), *_not_done(retired, trial))
        by = tuple(dict.fromkeys(wrapped.master_key for _, wrapped in self._copies.held))
        verdict: Verdict = "incomplete" if remaining else "removed"
        if verdict == "removed" and by and gone.issuperset(by) and _none_opens(trial):
            verdict = "destroyed"
        return ShredReport(
            url=self._storage.url,
            dataset_id=self._found.core.dataset_id,
            generation=self._found.core.generation,
            revision=self._found.revision,
            scope=self._scope,
            key_names=tuple(sorted({record.key_name for record in self._keks.values()})),
            keks=tuple(self._keks),
            master_keys=by,
            removed=tuple(self._copies.removed),
            remaining=() if dry_run else remaining,
            retired=retired,
            tried=trial.tried,
            notes=(*self._notes(retired, trial, verdict, dry_run=dry_run), *self._retirement.notes),
            verdict="" if dry_run else verdict,
            dry_run=dry_run,
            created=utc_now(),
        )

    def _notes(
        self, retired: Sequence[RetiredMaster], trial: Trial, verdict: Verdict, *, dry_run: bool
    ) -> list[str]:
        notes = [NOTE_OPEN]
        if verdict != "destroyed":
            notes.append(NOTE_COPIES)
        if trial.why_not and not dry_run:
            notes.append(f"{NOT_TRIED}: {trial.why_not}")
        for master in retired:
            if master.missing:
                notes.append(f"{master.uri} {NOTE_MISSING}")
            if master.until:
                notes.append(f"{master.uri} can be taken back until {master.until}: only then it is gone")
            if master.beyond:
                notes.append(f"{master.uri}: {master.beyond}")
        return notes


def _not_done(retired: Sequence[RetiredMaster], trial: Trial) -> list[Leftover]:
    """What stands against the verdict besides copies: what a fresh process opened, master keys that stay."""
    opened = [Leftover(one.what, "", "", "", "a fresh process opens it") for one in trial.tried if one.opened]
    stay = [
        Leftover(master.uri, "", master.uri, "", f"not destroyed: {master.failed}")
        for master in retired
        if master.failed
    ]
    return [*opened, *stay]


def _none_opens(trial: Trial) -> bool:
    """Whether a fresh process was told of every old wrapping that its master key is not there any more."""
    old = [one for one in trial.tried if one.what.startswith("an old wrapping")]
    return bool(old) and all(one.code == "key-not-found" for one in old)
