"""Re-key: new KEKs and new DEKs, the data encrypted again. What to do when a key may be in wrong hands."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from encpipe.access import Access, AnyPath, open_access
from encpipe.config import Config
from encpipe.errors import ConfigError
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.rekeyed import Rekeyed
from encpipe.lifecycle.rekeysession import RekeySession
from encpipe.projection import list_of_names
from encpipe.sealing import ProgressCallback
from encpipe.signing import writer_signing
from encpipe.state import State, load_state
from encpipe.writekeys import rekey_masters
from encpipe.writereport import WriteReport


def rekey(
    url: AnyPath,
    *,
    key_names: Sequence[str] | None = None,
    to: Mapping[str, str | Sequence[str]] | None = None,
    workers: int | None = None,
    restart: bool = False,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Rekeyed:
    """Give `key_names` (None: all) new KEKs, and encrypt every file again under new DEKs, as a new
    generation.

    A new KEK is wrapped by the master keys `to[NAME]`, each of them trusted by being named here, else by all
    that wrap the key name's KEK now, in their newest versions. Rows, row groups, partitions, order and
    compression stay; every file is checked to be the committed one, byte for byte, before it is used. Needs
    every key name of the dataset, whichever are replaced. `workers` files are encrypted at once (default: one
    a core).

    Older generations stay readable with the old KEKs until `gc` removes them: whoever kept an old KEK reads
    old files until then, and copies of them for ever. The new core is MACed under the old footer KEK, too, so
    that pin stores follow.

    A re-key that was stopped is resumed by the same call (`restart` throws its work away). What others append
    meanwhile is encrypted anew as well; after an overwrite this is a `ConflictError`.

    Raises `ConfigError`, `KmsError` (`ShreddedError` for a dataset with a shredded key name),
    `IntegrityError`, `StorageError`; the old state is then unchanged, but after `storage-unavailable` it may
    be re-keyed. With `dry_run` every KEK is unwrapped, and nothing is wrapped or written.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    given = {name: (uris,) if isinstance(uris, str) else tuple(uris) for name, uris in (to or {}).items()}
    with contextlib.closing(access.storage):
        access = _trusting(access, given)
        signing = writer_signing(access.master_keys)
        state = load_state(access.storage, access.master_keys, signers=signing.signers)
        names = _names(state, key_names, given)
        if dry_run:
            return _planned(access, state, names, given)
        session = RekeySession(
            access,
            state,
            names,
            given,
            workers=workers or os.cpu_count() or 1,
            restart=restart,
            progress=progress,
            signing=signing,
        )
        return _rekeyed(session.run(), names, session.older)


def _trusting(access: Access, to: Mapping[str, Sequence[str]]) -> Access:
    return replace(access, master_keys=access.master_keys.trusting(to))


def _names(state: State, asked: Sequence[str] | None, to: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The key names to replace the KEKs of, in the order of the core."""
    known = state.view.core.key_names
    wanted = known if asked is None else list_of_names(asked, "key_names")
    for name in (*wanted, *to):
        if name not in known:
            raise ConfigError(
                f"this dataset has no key name {name[:40]!r}; it has: {', '.join(known)}",
                hint="`encpipe inspect` shows them",
            )
    if not wanted or not set(to) <= set(wanted):
        raise ConfigError(
            f"a master key is named for {', '.join(sorted(set(to) - set(wanted))) or 'nothing'}, "
            f"and re-keyed would be: {', '.join(wanted) or 'nothing'}",
            hint="name each key name to re-key by --key-name (key_names=), or none of them for all",
        )
    return tuple(name for name in known if name in wanted)


def _planned(access: Access, state: State, names: Sequence[str], to: Mapping[str, Sequence[str]]) -> Rekeyed:
    """What a re-key would do, after every KEK was seen to open."""
    started, core, files = time.monotonic(), state.view.core, state.files.files
    for name in core.key_names:
        state.keys.kek(core.active(name).id)
    masters = {}
    for name in names:
        wrappings = state.manifest.wrappings[core.active(name).id]
        masters[name] = tuple(m.uri for m in rekey_masters(name, wrappings, to, access.master_keys))
    return Rekeyed(
        url=access.storage.url,
        dataset_id=core.dataset_id,
        generation=core.generation + 1,
        key_names=tuple(names),
        master_keys=masters,
        files=len(files),
        resumed_files=0,
        rows=sum(entry.rows for entry in files),
        bytes_in=sum(entry.size for entry in files),
        bytes_out=0,
        seconds=time.monotonic() - started,
        kms_calls=state.keys.unwraps,
        older_generations=tuple(tagged.core.generation for tagged in state.manifest.history),
        dry_run=True,
    )


def _rekeyed(report: WriteReport, names: Sequence[str], older: Sequence[int]) -> Rekeyed:
    return Rekeyed(
        url=report.url,
        dataset_id=report.dataset_id,
        generation=report.generation,
        key_names=tuple(names),
        master_keys={name: report.master_keys[name] for name in names},
        files=report.files,
        resumed_files=report.resumed_files,
        rows=report.rows,
        bytes_in=report.bytes_in,
        bytes_out=report.bytes_out,
        seconds=report.seconds,
        kms_calls=report.kms_calls,
        older_generations=tuple(older),
        dry_run=False,
    )
