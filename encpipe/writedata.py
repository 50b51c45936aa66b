"""The data files of one write: under which keys they are sealed, and the journal that they go with."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from encpipe import journal as journals
from encpipe.commit import Contents, Target
from encpipe.errors import ConflictError
from encpipe.journal import Journal
from encpipe.keyring import DatasetKeys
from encpipe.keys import new_id
from encpipe.kms.registry import MasterKeys
from encpipe.layouts import NewLayouts
from encpipe.parquet import Layout
from encpipe.sealing import SealJob
from encpipe.signing import SigningKey
from encpipe.state import State, read_manifest
from encpipe.storage import Storage


def start_journal(
    held: ExitStack, storage: Storage, target: Target, digest: bytes, key: SigningKey | None, *, created: str
) -> Journal:
    """A new journal for a write to `target`, signed by `key`; owned until `held` ends.

    `digest` stands for source and settings. Raises `EncpipeError` `unsupported`, `StorageError`; and
    `ConflictError` where what it builds upon was shredded or re-keyed meanwhile: who did may have looked for
    journals before this one was there.
    """
    base = target.base
    journal = Journal(
        writer_id=new_id(),
        dataset_id=target.dataset_id,
        base_core="" if base is None else base.view.digest,
        base_generation=0 if base is None else base.view.core.generation,
        created=created,
        owner=f"{socket.gethostname()}:{os.getpid()}",
        footer_key=target.footer_key,
        keks=target.records,
        wrappings=target.wrappings,
        digest=digest,
    ).signed(key)
    held.enter_context(storage.hold(journals.lock_path(journal.writer_id)))
    data = journal.as_bytes(target.keks[target.active(target.footer_key).id])
    storage.create(journals.journal_path(journal.writer_id), data)
    if base is not None and not _is_still_base(storage, base):
        journals.remove(storage, journal.writer_id)
        raise ConflictError(
            "another writer changed the dataset's keys in the meantime, or shredded what it builds upon",
            hint="nothing was changed; run the command again",
        )
    return journal


def _is_still_base(storage: Storage, base: State) -> bool:
    """Whether the dataset has the keys of `base` still; where partitions have their own, also its list."""
    found = read_manifest(storage)[1]
    if (found.core.dataset_id, found.core.keks) != (base.view.core.dataset_id, base.view.core.keks):
        return False
    cores = (found.head, *found.retained)
    return not base.files.policy.partition_keys or any(t.digest == base.view.digest for t in cores)


def seal_job(
    storage: Storage, master_keys: MasterKeys, target: Target, contents: Contents, compression: str
) -> SealJob:
    """How the files of a write to `target` are sealed, with the KEKs that it holds. Calls no key service."""
    names = set(contents.columns.values()) | {target.footer_key}
    keys = _keys_of(target, master_keys)
    layouts = NewLayouts(
        Layout(contents.columns, {n: target.active(n).id for n in names}, target.footer_key),
        keys,
        columns=contents.policy.partition_keys,
        known=() if target.base is None else target.base.files.partition_keks,
    )
    return SealJob(
        storage=storage,
        layouts=layouts,
        keys=keys,
        schema=contents.write_schema,
        plaintext_partitions=contents.policy.plaintext_partitions,
        compression=compression,
    )


def _keys_of(target: Target, master_keys: MasterKeys) -> DatasetKeys:
    keys = DatasetKeys(target.dataset_id, target.records, target.wrappings, master_keys, lambda *_: None)
    for kek_id, kek in target.keks.items():
        keys.put(kek_id, kek)
    return keys
