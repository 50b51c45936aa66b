"""Grant and revoke: one master key's wrapping of a key name's KEKs more, or less; one that works stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from encpipe.access import AnyPath, open_access
from encpipe.audit import Event
from encpipe.config import Config
from encpipe.errors import ConfigError, EncpipeError, IntegrityError, KmsError
from encpipe.keys import WrappedKey
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.change import change_keys
from encpipe.lifecycle.keysline import KeysReport, OneKek, kek_records
from encpipe.lifecycle.rekeying import rekey as rekey_dataset
from encpipe.manifest import Manifest
from encpipe.sealing import ProgressCallback
from encpipe.state import read_manifest


def grant(
    url: AnyPath,
    key_name: str,
    uri: str,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> KeysReport:
    """Let the master key `uri` open the KEKs of `key_name`, too: for a second region, another service, a
    break-glass key kept offline, or another group of readers.

    Naming the URI here trusts it for this call; readers have to trust it in their own configuration. A
    wrapping that it had before is replaced. All other wrappings stay. Two calls for each KEK: unwrap (checked
    against the commitment), wrap. Whoever is to read columns under another key name needs the footer key,
    too.

    Raises `ConfigError`, `KmsError`, `IntegrityError`, `StorageError`; nothing is changed then, but after
    `storage-unavailable` it may be.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    trusting = access.master_keys.trusting({key_name: (uri,)})
    return change_keys(access, trusting, _Grant(trusting, uri), (key_name,), dry_run=False)


class _Grant:
    event: Event = "grant"

    def __init__(self, master_keys: MasterKeys, uri: str) -> None:
        self._master_keys, self._uri = master_keys, uri
        self.wraps = 0

    def __call__(self, kek: OneKek) -> tuple[WrappedKey, ...]:
        master = self._master_keys.get(self._uri, key_name=kek.record.key_name)
        secret, _ = kek.open()
        fresh = master.wrap(secret, aad=kek.context)
        self.wraps += 1
        return (*(w for w in kek.wrappings if w.master_key != fresh.master_key), fresh)


def revoke(
    url: AnyPath,
    key_name: str,
    uri: str,
    *,
    rekey: bool = False,
    workers: int | None = None,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> KeysReport:
    """Remove the wrappings by the master key `uri` (as `inspect` shows it) of the KEKs of `key_name`.

    Who has only that master key cannot open the dataset from then on. It makes nobody forget: who unwrapped a
    KEK before, or kept the old manifest, still reads what is there. One call for each KEK, in which a
    wrapping that stays opens it and is checked against the commitment; one more for the footer key where the
    revoked master key is tried first.

    With `rekey` the key name then gets a new KEK under the master keys that stay, and the data is encrypted
    again (see `encpipe.rekey`, also for `workers` and `progress`): who kept the old one reads nothing that is
    written from then on, and the older generations until `gc` removes them. Where that is stopped or fails,
    the master key is revoked, and `encpipe.rekey` of the key name goes on with the rest.

    Raises `ConfigError` `last-wrapping` where no wrapping would be left, or none of those left is seen to
    open the KEK (to this configuration, now), `no-wrapping` where the master key opens none, and what `grant`
    raises; nothing is changed then, but after `storage-unavailable` it may be.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    with access.master_keys.audit.refusals("revoke", dataset=access.storage.url):
        found = read_manifest(access.storage)[1]
        _check_opens(found, key_name, uri)
    report = change_keys(access, access.master_keys, _Revoke(uri), (key_name,), dry_run=dry_run)
    if not rekey:
        return report
    try:
        rekeyed = rekey_dataset(
            url,
            key_names=(key_name,),
            to=_staying(found, key_name, uri) if dry_run else None,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
            config=access.config,
            master_keys=access.master_keys,
            storage_options=storage_options,
        )
    except EncpipeError as error:
        if not dry_run:
            more = f"{uri} is revoked; what is left to do: encpipe rekey URL --key-name {key_name}"
            error.hint = f"{error.hint}; {more}" if error.hint else more
        raise
    return replace(report, rekeyed=rekeyed)


def _staying(found: Manifest, key_name: str, uri: str) -> dict[str, list[str]]:
    """The master keys that would wrap a new KEK of the key name without `uri`."""
    if key_name not in found.core.key_names:
        return {}
    wrappings = found.wrappings[found.core.active(key_name).id]
    return {key_name: [wrapped.master_key for wrapped in wrappings if wrapped.master_key != uri]}


class _Revoke:
    event: Event = "revoke"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.wraps = 0

    def __call__(self, kek: OneKek) -> tuple[WrappedKey, ...]:
        left = tuple(wrapped for wrapped in kek.wrappings if wrapped.master_key != self._uri)
        if not left:
            raise ConfigError(
                f"only {self._uri} opens a KEK of key name {kek.record.key_name!r}: "
                "without it nobody reads the data",
                hint="grant another master key first: encpipe grant URL --key NAME=URI",
                code="last-wrapping",
            )
        try:
            kek.keys.prove(kek.record.id, left)
        except (ConfigError, IntegrityError, KmsError) as error:
            raise ConfigError(
                f"without {self._uri} nothing is seen to open a KEK of key name {kek.record.key_name!r}: "
                f"{error.message}",
                hint="revoke as somebody whose configuration opens it by a master key that keeps it; or "
                "grant one that works: encpipe grant URL --key NAME=URI",
                code="last-wrapping",
            ) from None
        return left


def _check_opens(found: Manifest, key_name: str, uri: str) -> None:
    keks = [kek_id for kek_id, record in kek_records(found).items() if record.key_name == key_name]
    opening = {wrapped.master_key for kek_id in keks for wrapped in found.wrappings.get(kek_id, ())}
    if keks and uri not in opening:
        listed = ", ".join(sorted(opening))
        raise ConfigError(
            f"{uri[:300]!r} opens no KEK of key name {key_name!r}; these do: {listed}",
            hint="name the master key as `encpipe inspect` shows it; where it was revoked and re-keying was "
            f"stopped, go on with: encpipe rekey URL --key-name {key_name}",
            code="no-wrapping",
        )
