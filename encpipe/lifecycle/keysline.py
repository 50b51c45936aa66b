"""Changing the wrappings of a dataset's KEKs: one conditional replacement of the manifest.

Line 1 stays byte for byte, so pins, resume states and signatures hold on, and no data file is touched. A
crash leaves the manifest as it was or as it was to be. Where another writer commits in between, the change is
made again on top of what he committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from encpipe import manifest
from encpipe.audit import Event, Facts
from encpipe.errors import ConfigError, ConflictError, ShreddedError
from encpipe.keyring import DatasetKeys
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.rekeyed import Rekeyed
from encpipe.manifest import KekRecord, Manifest
from encpipe.state import MANIFEST_PATH, load_keys
from encpipe.storage import Storage

MAX_TRIES: Final = 20
"""How often a change is made again on top of what another writer committed."""

Wrappings = Mapping[str, tuple[WrappedKey, ...]]
"""KEK id -> its wrappings."""


@dataclass(frozen=True)
class OneKek:
    """One KEK whose wrappings are to be changed. `keys` checks it (commitment, core MACs) when opened."""

    dataset_id: str
    record: KekRecord
    wrappings: tuple[WrappedKey, ...]
    keys: DatasetKeys

    @property
    def context(self) -> KeyContext:
        """What its wrappings are bound to."""
        return KeyContext(self.dataset_id, self.record.key_name, self.record.id)

    def open(self) -> tuple[Secret, WrappedKey | None]:
        """The KEK and the wrapping that gave it. One KMS call. Raises what `DatasetKeys.kek` raises."""
        kek = self.keys.kek(self.record.id)
        return kek, self.keys.opened_by(self.record.id)


class Edit(Protocol):
    """What becomes of the wrappings of a KEK. `wraps` counts the calls it made to wrap; `event` is what the
    audit log calls it."""

    wraps: int
    event: Event

    def __call__(self, kek: OneKek) -> tuple[WrappedKey, ...]:
        """The wrappings it is to have; those it has, unchanged, leave it alone. Never none."""
        ...


@dataclass(frozen=True)
class WrappingChange:
    """One KEK: the master keys that now open it anew, that no longer do, and that do as before.

    Each as (URI, version); the version is empty where the service shows none.
    """

    key_name: str
    kek_id: str
    added: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Leftover:
    """A copy of a wrapping that is not, or no more, in the manifest. `place` is a path below the dataset.

    Key name, master key and version are empty for what may hold such wrappings and cannot be read.
    """

    place: str
    key_name: str
    master_key: str
    version: str
    why: str


@dataclass(frozen=True)
class KeysReport:
    """What a change of the wrappings did; with `dry_run` what it would do.

    `leftovers` are other wrappings of the same key names, under other master keys or versions than the
    manifest now holds, that were found in journals, temp files and older object versions; empty is the proof
    that none is left there. Backups are out of reach. `rekeyed` is what a re-key after it did.
    """

    url: str
    dataset_id: str
    generation: int
    revision: int
    core_digest: str
    dry_run: bool
    changes: tuple[WrappingChange, ...]
    leftovers: tuple[Leftover, ...]
    kms_calls: int
    bytes_written: int
    rekeyed: Rekeyed | None = None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Changed:
    """A manifest before and after; `found` and `keys` are of before."""

    found: Manifest
    keys: DatasetKeys
    after: Wrappings
    revision: int
    kms_calls: int
    bytes_written: int

    def changes(self) -> tuple[WrappingChange, ...]:
        """The KEKs whose wrappings changed, in the order of the core."""
        return tuple(
            _change(record, self.found.wrappings[kek_id], self.after[kek_id])
            for kek_id, record in kek_records(self.found).items()
            if self.after.get(kek_id) != self.found.wrappings.get(kek_id)
        )


def replace_wrappings(
    storage: Storage, master_keys: MasterKeys, edit: Edit, key_names: Iterable[str] | None, *, dry_run: bool
) -> Changed:
    """Put what `edit` makes of every KEK of `key_names` (None: all) into the manifest, in one write.

    The manifest is checked first. With `dry_run` nothing is written. Raises `ConfigError` for a key name that
    the dataset does not have, `ShreddedError` for one that was shredded, `ConflictError` where other writers
    were always first, and what loading, `edit` and the storage raise; the manifest is then as it was, but
    after `storage-unavailable` it may be changed.
    """
    wanted = None if key_names is None else tuple(key_names)
    done: dict[str, tuple[tuple[WrappedKey, ...], tuple[WrappedKey, ...]]] = {}
    calls = 0
    for _ in range(MAX_TRIES):
        data, found, keys = load_keys(storage, master_keys)
        after = _edited(found, keys, edit, wanted, done)
        calls += keys.unwraps + keys.refusals
        if dry_run or after == found.wrappings:
            return Changed(found, keys, after, found.revision, calls + edit.wraps, 0)
        new = manifest.rebuild(
            found,
            revision=found.revision + 1,
            wrappings=after,
            retained=found.retained,
            footer_kek=keys.kek(found.core.footer_kek.id),
        )
        told = _told(storage, found, after)
        master_keys.audit.record(edit.event, **told)
        try:
            storage.commit(MANIFEST_PATH, new, check=only(data), is_ours=_having(after, found.wrappings))
        except ConflictError as error:
            master_keys.audit.refuse(edit.event, error, **told)
            continue
        return Changed(found, keys, after, found.revision + 1, calls + edit.wraps, len(new))
    raise ConflictError(f"other writers were first {MAX_TRIES} times", hint="run the command again")


def kek_records(found: Manifest) -> dict[str, KekRecord]:
    """The KEKs of all generations by id, as the newest that names them says."""
    return {kek.id: kek for tagged in (*found.retained, found.head) for kek in tagged.core.keks}


def _edited(
    found: Manifest,
    keys: DatasetKeys,
    edit: Edit,
    wanted: tuple[str, ...] | None,
    done: dict[str, tuple[tuple[WrappedKey, ...], tuple[WrappedKey, ...]]],
) -> Wrappings:
    records = kek_records(found)
    known = {record.key_name for record in records.values()}
    left = {record.key_name for record in records.values() if record.state != "shredded"}
    for name in wanted or ():
        if name not in known:
            raise ConfigError(
                f"this dataset has no key name {name[:40]!r}; it has: {', '.join(sorted(known))}",
                hint="`encpipe inspect` shows them",
            )
        if name not in left:
            raise ShreddedError(
                f"the keys of key name {name!r} were shredded",
                hint="the data under them cannot be read any more, by anyone",
            )
    after = dict(found.wrappings)
    for kek_id, record in records.items():
        before = after.get(kek_id, ())
        if not before or (wanted is not None and record.key_name not in wanted):
            continue
        if kek_id not in done or done[kek_id][0] != before:
            done[kek_id] = before, edit(OneKek(found.core.dataset_id, record, before, keys))
        after[kek_id] = done[kek_id][1]
    return after


def wrappings_told(records: Mapping[str, KekRecord], before: Wrappings, after: Wrappings) -> Facts:
    """What the audit log is told of a change: the wrappings that come, or where none does those that go."""
    changed = [kek_id for kek_id, some in after.items() if some != before[kek_id]]
    come = [w for kek_id in changed for w in after[kek_id] if w not in before[kek_id]]
    go = [w for kek_id in changed for w in before[kek_id] if w not in after[kek_id]]
    return {
        "key_names": sorted({records[kek_id].key_name for kek_id in changed}),
        "master_keys": come or go,
    }


def _told(storage: Storage, found: Manifest, after: Wrappings) -> Facts:
    return wrappings_told(kek_records(found), found.wrappings, after) | {
        "dataset": storage.url,
        "dataset_id": found.core.dataset_id,
        "generation": found.core.generation,
        "revision": found.revision + 1,
    }


def only(seen: bytes) -> Callable[[bytes | None], None]:
    """The check of a commit that replaces just these bytes."""

    def check(current: bytes | None) -> None:
        if current != seen:
            raise ConflictError("another writer changed it in the meantime")

    return check


def _having(after: Wrappings, before: Wrappings) -> Callable[[bytes], bool]:
    """Whether a manifest is, or builds upon, the one with these wrappings."""

    def is_ours(data: bytes) -> bool:
        found = manifest.parse(data).wrappings
        return all(found.get(kek_id) == some for kek_id, some in after.items() if some != before[kek_id])

    return is_ours


def _change(
    record: KekRecord, before: tuple[WrappedKey, ...], after: tuple[WrappedKey, ...]
) -> WrappingChange:
    def named(some: Iterable[WrappedKey]) -> tuple[tuple[str, str], ...]:
        return tuple((wrapped.master_key, wrapped.version) for wrapped in some)

    return WrappingChange(
        record.key_name,
        record.id,
        added=named(w for w in after if w not in before),
        removed=named(w for w in before if w not in after),
        kept=named(w for w in after if w in before),
    )
