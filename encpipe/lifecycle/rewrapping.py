"""Re-wrap: the same KEKs, wrapped anew by a newer version of a master key, another key or another service.

Data files and line 1 of the manifest stay as they are; it costs the same whatever the number of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from encpipe.access import AnyPath, open_access
from encpipe.audit import Event
from encpipe.config import Config
from encpipe.errors import ConfigError
from encpipe.keys import MasterKey, WrappedKey
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.change import change_keys
from encpipe.lifecycle.due import Overdue, made_by, shown, why_due
from encpipe.lifecycle.keysline import KeysReport, OneKek, kek_records
from encpipe.state import read_manifest


def rewrap(
    url: AnyPath,
    *,
    to: Mapping[str, str | Sequence[str]] | None = None,
    key_names: Sequence[str] | None = None,
    older_than: timedelta | None = None,
    prove: bool = False,
    dry_run: bool = False,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> KeysReport:
    """Wrap the KEKs of a dataset anew: those of `key_names`, else those of `to`, else all.

    The master keys that wrap are `to[NAME]`, each of them trusted by being named here, else the first that
    the configuration names for the key name, in its newest version. A new wrapping takes the place of every
    older one by the same master key; with `to`, of those by the master key that the configuration names
    first; and where a KEK had a single wrapping by another master key, of that, unless the configuration
    names it as a further one and `to` does not name the key name. All others stay, those by a break-glass
    key too: the report lists them as `kept`, and `revoke` removes them.

    With `older_than`, KEKs are left alone that `needs_rewrap` does not name. With `prove` every new wrapping
    is unwrapped and checked before an old one goes: one more call for each, and the right to unwrap with the
    new master key. With `dry_run` KEKs are unwrapped and nothing is wrapped or written. Every KEK is checked
    against its commitment before it is wrapped. Two calls for each KEK and one new master key: unwrap, wrap.
    Permissions needed: those of unwrapping under the old master key, of wrapping under the new one, and to
    write the storage.

    This is rotation: whoever holds a KEK already still reads the data. Raises `ConfigError`, `KmsError`,
    `IntegrityError`, `StorageError`; nothing is changed then, but after `storage-unavailable` it may be.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    given = {name: (uris,) if isinstance(uris, str) else tuple(uris) for name, uris in (to or {}).items()}
    names = key_names if key_names is not None else None if to is None else tuple(to)
    edit = Rewrap(access.master_keys, given, older_than=older_than, prove=prove, dry_run=dry_run)
    return change_keys(access, access.master_keys.trusting(given), edit, names, dry_run=dry_run)


class Rewrap:
    """The edit behind `rewrap`."""

    event: Event = "rewrap"

    def __init__(
        self,
        master_keys: MasterKeys,
        to: Mapping[str, Sequence[str]],
        *,
        older_than: timedelta | None,
        prove: bool,
        dry_run: bool,
    ) -> None:
        self._listed = master_keys.config.keys
        self._to = to
        self._master_keys = master_keys.trusting(to)
        self._older_than, self._prove, self._dry_run = older_than, prove, dry_run
        self.wraps = 0

    def __call__(self, kek: OneKek) -> tuple[WrappedKey, ...]:
        name = kek.record.key_name
        targets = targets_for(self._master_keys, self._listed, name, self._to)
        if self._older_than is not None and not any(self._is_due(kek, target) for target in targets):
            return kek.wrappings
        secret, _ = kek.open()
        fresh = []
        for target in targets:
            if self._dry_run:
                fresh.append(WrappedKey(target.uri, b"", "", ""))
                continue
            fresh.append(target.wrap(secret, aad=kek.context))
            self.wraps += 1
            if self._prove:
                kek.keys.prove(kek.record.id, fresh[-1:])
        again = {wrapped.master_key for wrapped in fresh}
        others = tuple(wrapped for wrapped in kek.wrappings if wrapped.master_key not in again)
        gone = self._moved_away(name, others, is_moved=len(others) == len(kek.wrappings))
        return (*fresh, *(wrapped for wrapped in others if wrapped not in gone))

    def _moved_away(
        self, key_name: str, others: tuple[WrappedKey, ...], *, is_moved: bool
    ) -> tuple[WrappedKey, ...]:
        """The wrappings by other master keys whose place is taken: by the one that the configuration names
        first where `to` moves away from it, else the only one there was. A break-glass key is never one of
        several that go."""
        if key_name in self._to:
            first = self._listed.get(key_name, ())[:1]
            masters = [self._master_keys.get(uri, key_name=key_name) for uri in first]
            gone = tuple(wrapped for wrapped in others if any(made_by(m, wrapped) for m in masters))
            if gone:
                return gone
        return others if is_moved and len(others) == 1 and not self._stays(key_name, others[0]) else ()

    def _stays(self, key_name: str, wrapped: WrappedKey) -> bool:
        """Whether the configuration names the master key as a further one for the key name."""
        further = () if key_name in self._to else self._listed.get(key_name, ())[1:]
        return any(made_by(self._master_keys.get(uri, key_name=key_name), wrapped) for uri in further)

    def _is_due(self, kek: OneKek, target: MasterKey) -> bool:
        return bool(why_due(kek.wrappings, target, older_than=self._older_than, now=datetime.now(UTC)))


def targets_for(
    master_keys: MasterKeys,
    listed: Mapping[str, Sequence[str]],
    key_name: str,
    to: Mapping[str, Sequence[str]],
) -> tuple[MasterKey, ...]:
    """What the KEKs of a key name are to be wrapped by. Raises `ConfigError` where none is named."""
    uris = tuple(to.get(key_name, ())) or tuple(listed.get(key_name, ()))[:1]
    if not uris:
        raise ConfigError(
            f"nothing names a master key to wrap key name {key_name!r} with",
            hint=f'add to the table "keys": {key_name} = ["local:NAME"], or re-wrap some key names only: '
            "--key NAME=URI",
            code="config-missing",
        )
    return tuple(master_keys.get(uri, key_name=key_name) for uri in uris)


def needs_rewrap(
    url: AnyPath,
    *,
    older_than: timedelta | None = None,
    ask_services: bool = False,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[Overdue, ...]:
    """The KEKs whose wrapping by the first master key of the configuration is missing, is of an older
    version, or is older than `older_than`.

    The local keyring tells its newest versions by itself. With `ask_services` Vault and Google Cloud KMS are
    asked for theirs, one call for each KEK; that needs `read` on `MOUNT/keys/NAME`, or
    `cloudkms.cryptoKeys.get`, and raises `KmsError` too. Without it no key service is called. Other services
    show no versions, or take more than one call to tell: there age decides. Nothing here is authenticated.

    Key names that the configuration names no master key for are left out. Raises `ConfigError`,
    `IntegrityError`, `StorageError`.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    _, found = read_manifest(access.storage)
    keys, now = access.master_keys, datetime.now(UTC)
    due = []
    for kek_id, record in kek_records(found).items():
        wrappings = found.wrappings.get(kek_id, ())
        if not wrappings or record.key_name not in keys.config.keys:
            continue
        (target,) = targets_for(keys, keys.config.keys, record.key_name, {})
        why = why_due(wrappings, target, older_than=older_than, now=now, ask_services=ask_services)
        if why:
            wrapped = shown(wrappings, target)
            due.append(
                Overdue(record.key_name, kek_id, wrapped.master_key, wrapped.version, wrapped.created, why)
            )
    return tuple(due)
