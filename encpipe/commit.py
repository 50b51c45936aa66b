"""Committing a write: the sealed list first, then the manifest, as one conditional replacement."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from encpipe import filelist, journal, manifest
from encpipe.core import PARTITION_KEKS
from encpipe.errors import ConflictError, EncpipeError, StorageError
from encpipe.filelist import FileEntry, FileList
from encpipe.keys import Secret, WrappedKey, new_id, utc_now
from encpipe.manifest import Core, KekRecord, Manifest, Sign
from encpipe.partitionkeks import PartitionKek
from encpipe.policy import Policy
from encpipe.state import MANIFEST_PATH, State, read_manifest
from encpipe.storage import Storage

MAX_REBASES = 20
"""How often an append tries again on top of what another writer committed."""


@dataclass(frozen=True)
class Target:
    """What a write commits to: the dataset's identity, its KEKs, and the state it replaces, if any."""

    dataset_id: str
    footer_key: str
    records: tuple[KekRecord, ...]
    wrappings: Mapping[str, tuple[WrappedKey, ...]]
    keks: Mapping[str, Secret]
    base: State | None

    def active(self, key_name: str) -> KekRecord:
        """The KEK that new data of a key name goes under."""
        return next(r for r in self.records if r.key_name == key_name and r.state == "active")


@dataclass(frozen=True)
class Contents:
    """What the new generation holds, but for the files.

    `schema` is the dataset's Arrow schema as an IPC message, partition columns last; `write_schema` that of
    the tables as the source gives them; `columns` maps leaf path to key name.
    """

    schema: bytes
    write_schema: pa.Schema
    columns: Mapping[str, str]
    partitions: tuple[str, ...]
    policy: Policy


def commit(
    storage: Storage,
    target: Target,
    contents: Contents,
    files: Sequence[FileEntry],
    writer_id: str,
    *,
    partition_keks: Sequence[PartitionKek] = (),
    sign: Sign | None = None,
) -> int:
    """Make `files`, under these `partition_keks`, the new generation, signed by `sign`; return its number.

    Where another run took the journal over and committed, that run's generation is returned: what it
    committed is this write. Raises `ConflictError` when the manifest is not the target's base any more, or
    the journal is gone; the dataset is then unchanged and the new list removed.
    """
    base = target.base
    done = None if base is None else _core_of(base.manifest, writer_id)
    if done is not None:
        return done.generation
    generation = 1 if base is None else base.manifest.core.generation + 1
    list_id = new_id()
    file_list = FileList(
        policy=contents.policy,
        schema=contents.schema,
        columns=contents.columns,
        partitions=contents.partitions,
        files=tuple(files),
        raw={} if base is None else base.files.raw,
        partition_keks=tuple(partition_keks),
    )
    sealed = filelist.seal(
        file_list,
        footer_kek=target.keks[target.active(target.footer_key).id],
        dataset_id=target.dataset_id,
        generation=generation,
        list_id=list_id,
    )
    core = Core(
        dataset_id=target.dataset_id,
        generation=generation,
        commit_id=writer_id,
        created=utc_now(),
        footer_key=target.footer_key,
        list_id=list_id,
        list_sha256=hashlib.sha256(sealed).digest(),
        keks=target.records,
        raw=_raw(base, contents.policy),
    )
    storage.create(core.list_name, sealed)
    try:
        _replace_manifest(storage, target, core, writer_id, sign)
    except EncpipeError as error:
        if error.code == "storage-unavailable":  # it may have happened: everything stays
            raise
        done = _settle(storage, core, writer_id)
        if done is None:
            raise
        return done.generation
    return generation


def _raw(base: State | None, policy: Policy) -> dict[str, Any]:
    """The fields of the base's core, and what a reader of the new one must know."""
    raw = {} if base is None else base.manifest.core.raw
    others = () if base is None else base.manifest.core.requires
    features = [name for name in others if name != PARTITION_KEKS]
    return {**raw, "requires": [*features, PARTITION_KEKS] if policy.partition_keys else features}


def _settle(storage: Storage, core: Core, writer_id: str) -> Core | None:
    """What of this writer is committed after all. The list of `core` goes, unless it may be of use."""
    try:
        found = _committed(storage)
    except EncpipeError:
        return None
    done = None if found is None else _core_of(found, writer_id)
    if done is None:
        useless = found is None or _reaches(found, core.generation - 1)
    else:
        useless = done.list_id != core.list_id
    if useless:
        with contextlib.suppress(EncpipeError):
            storage.delete(core.list_name)
    return done


def _replace_manifest(
    storage: Storage, target: Target, core: Core, writer_id: str, sign: Sign | None
) -> None:
    base, keks = target.base, target.keks
    footer_before = None if base is None else base.manifest.core.footer_kek.id
    if base is not None and footer_before is not None:
        keks = {footer_before: base.keys.kek(footer_before), **keks}
    data = manifest.build(
        core,
        revision=1 if base is None else base.manifest.revision + 1,
        wrappings=target.wrappings,
        retained=() if base is None else base.manifest.history,
        keks=keks,
        keys_raw=None if base is None else base.manifest.keys_raw,
        sign=sign,
        footer_before=footer_before,
    )

    def check(current: bytes | None) -> None:
        if current != (None if base is None else base.manifest_bytes):
            raise ConflictError(
                "another writer committed to the dataset in the meantime",
                hint="nothing was changed; run the command again",
            )
        if not journal.still_there(storage, writer_id):
            raise ConflictError("the journal of this write was removed by another process")

    storage.commit(MANIFEST_PATH, data, check=check, is_ours=lambda found: _names(found, core))


def _names(data: bytes, core: Core) -> bool:
    """Whether a manifest is, or builds upon, just this core, not that of another run of the same write."""
    done = _core_of(manifest.parse(data), core.commit_id)
    return done is not None and done.list_id == core.list_id


def committed_as(storage: Storage, writer_id: str) -> int | None:
    """The generation that a writer committed, or None. Raises `StorageError` when it cannot be told."""
    found = _committed(storage)
    done = None if found is None else _core_of(found, writer_id)
    return None if done is None else done.generation


def surely_not_committed(storage: Storage, writer_id: str, since: int) -> bool:
    """Whether what a writer made on top of generation `since` may be deleted: all generations after it are
    in the manifest, and none is the writer's. False where that cannot be told."""
    try:
        found = _committed(storage)
    except EncpipeError:
        return False
    return found is None or (_core_of(found, writer_id) is None and _reaches(found, since))


def _committed(storage: Storage) -> Manifest | None:
    try:
        return read_manifest(storage)[1]
    except StorageError as error:
        if error.code != "not-found":
            raise
        return None


def _core_of(found: Manifest, commit_id: str) -> Core | None:
    cores = (tagged.core for tagged in (found.head, *found.retained))
    return next((core for core in cores if core.commit_id == commit_id), None)


def _reaches(found: Manifest, since: int) -> bool:
    """Whether the manifest holds every generation after `since`."""
    return found.core.generation - since <= 1 + len(found.retained)


def same_shape(one: FileList | Contents, other: FileList | Contents) -> bool:
    """Whether files made for one are files of the other: schema, columns, partitions and policy."""
    return (one.schema, tuple(one.columns.items()), one.partitions, one.policy) == (
        other.schema,
        tuple(other.columns.items()),
        other.partitions,
        other.policy,
    )


def partition_keks_of(
    target: Target, files: Iterable[FileEntry], made: Iterable[PartitionKek]
) -> tuple[PartitionKek, ...]:
    """The partition KEKs that files are under: those of the base, and those that the write made.

    Raises `ConflictError` where one is not there any more, or was replaced with its parent.
    """
    base = () if target.base is None else target.base.files.partition_keks
    in_use = {record.id for record in target.records if record.state == "active"}
    known = {kek.id: kek for kek in (*base, *made) if kek.parent in in_use}
    used = dict.fromkeys(kek_id for entry in files for kek_id in entry.partition_keks)
    if not used.keys() <= known.keys():
        raise ConflictError(
            "a partition that files of this write belong to was shredded or re-keyed in the meantime",
            hint="run the command again with --restart",
        )
    return tuple(known[kek_id] for kek_id in used)


def rebased(target: Target, current: State) -> Target:
    """The target on top of another base, with its own new KEKs.

    Raises `ConflictError` when keys or policy changed meanwhile.
    """
    base = target.base
    assert base is not None
    same = (
        base.manifest.core.dataset_id == current.manifest.core.dataset_id
        and base.manifest.core.keks == current.manifest.core.keks
        and same_shape(base.files, current.files)
        and _reaches(current.manifest, base.manifest.core.generation)
    )
    if not same:
        raise ConflictError(
            "another writer changed the dataset's keys, policy or schema in the meantime",
            hint="nothing was changed; run the command again with --restart",
        )
    new = {record.id for record in target.records if record.state == "active"}
    made = {kek_id: some for kek_id, some in target.wrappings.items() if kek_id in new}
    return replace(target, base=current, wrappings={**made, **current.manifest.wrappings})
