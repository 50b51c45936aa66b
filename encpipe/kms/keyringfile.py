"""The local keyring file: create, change, export, import, back up. docs/keyring.md tells what is in it.

Every change unlocks first, then takes the lock, reads the file again and replaces it as a whole, so two
changes at once both survive. A lost keyring is lost data: nothing else holds its master keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from encpipe.config import KeyringConfig
from encpipe.errors import ConfigError, ConflictError
from encpipe.keys import Secret, utc_now
from encpipe.kms import keyringformat, privatefile
from encpipe.kms.base import AskPassphrase
from encpipe.kms.keyringformat import MAX_FILE_BYTES, KdfParams, Protection, SealedKeyring
from encpipe.kms.keyringkeys import Keyring, KeyVersion
from encpipe.kms.unlock import EnvironmentKey, Unlock, parse_unlock

STRONG: Final = KdfParams()


def default_path(env: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_DATA_HOME/encpipe/keyring.json`; by the XDG rules a relative variable does not count."""
    data = Path(env.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "encpipe" / "keyring.json"


class KeyringFile:
    """One keyring file and the way to unlock it.

    All methods raise `ConfigError` (`config-missing`, `exists`, `keyring-permissions`), `IntegrityError`
    (`keyring-damaged`, `format-newer`) or `StorageError`; those that unlock also `KmsError`
    (`passphrase-wrong`), and those that name a key `KeyNotFoundError`. What fails changes nothing.
    """

    def __init__(self, path: Path, unlock: Unlock) -> None:
        self.path = Path(
            os.path.realpath(path)
        )  # a change must replace what a symbolic link names, not the link
        self.unlock = unlock
        self.what = f"the keyring {str(path)!r}"

    @classmethod
    def from_config(cls, config: KeyringConfig, ask: AskPassphrase | None = None) -> KeyringFile:
        """The keyring of a configuration. Raises `ConfigError` where a variable gives the only key."""
        unlock = parse_unlock(config.unlock, ask)
        if isinstance(unlock, EnvironmentKey):
            raise ConfigError(
                f"the environment variable {unlock.name} is the master key: there is no keyring file",
                hint=f'unset {unlock.name}, or set keyring.unlock to another form than "key-env:"',
            )
        return cls(config.path or default_path(), unlock)

    def create(self, *names: str, kdf: KdfParams = STRONG) -> None:
        """Write a new keyring with a fresh master key for each of `names`. Raises `exists` for an old one."""
        keyring = Keyring()
        for name in names:
            keyring = keyring.with_key(name, created=utc_now())
        if os.path.lexists(self.path):  # said before a passphrase is asked for; write_new decides
            raise ConfigError(f"{self.what} exists and is not overwritten", code="exists")
        _write_new(self.path, keyring, self.unlock, kdf)

    def read(self) -> SealedKeyring:
        """The file, parsed and not opened. Asks for nothing."""
        try:
            data = privatefile.read(self.path, what="keyring", limit=MAX_FILE_BYTES)
        except ConfigError as error:
            if error.code == "config-missing":
                error.hint = "make one with: encpipe init, or restore a backup"
            raise
        return keyringformat.parse(data, what=self.what)

    def list(self) -> Mapping[str, tuple[KeyVersion, ...]]:
        """Name -> versions, oldest first. Needs no passphrase, so what it says is not authenticated."""
        return self.read().keys

    def root(self, sealed: SealedKeyring) -> Secret:
        """The root key that `unlock` gives for this file. Costs one Argon2id run for a passphrase."""
        return self.unlock.root(sealed.protection, what=self.what)

    def create_key(self, name: str) -> KeyVersion:
        """Add a fresh master key, version 1."""
        return self._change(lambda keyring: keyring.with_key(name, created=utc_now())).active(name)

    def rotate(self, name: str) -> KeyVersion:
        """Add a fresh version of a master key; it wraps from now on. Re-wrap datasets to use it for them."""
        return self._change(lambda keyring: keyring.rotated(name, created=utc_now())).active(name)

    def destroy_key(self, name: str, root: Secret | None = None) -> None:
        """Remove a master key, all its versions. Copies of the file made before keep it.

        `root` is the root key of this file, where it is known: nobody is asked then.
        """
        self._change(lambda keyring: keyring.without(name), root)

    def export_key(self, name: str, target: Path, unlock: Unlock, *, kdf: KdfParams = STRONG) -> None:
        """Write one master key, all its versions, to a keyring file of its own, protected by `unlock`."""
        _write_new(target, self._open().only(name), unlock, kdf)

    def import_keys(self, source: Path, unlock: Unlock) -> tuple[str, ...]:
        """Add all master keys of another keyring file. Returns their names.

        Raises `ConfigError` `exists` when a name and version stand for different keys in the two files.
        """
        other = KeyringFile(source, unlock)._open()
        self._change(lambda keyring: keyring.merged(other))
        return tuple(other.versions)

    def backup(self, target: Path, unlock: Unlock | None = None, *, kdf: KdfParams = STRONG) -> None:
        """Write a copy: the same bytes, or sealed anew under another passphrase or key file.

        The keyring is opened first, so a backup is known to open.
        """
        if unlock is not None:
            _write_new(target, self._open(), unlock, kdf)
            return
        data = privatefile.read(self.path, what="keyring", limit=MAX_FILE_BYTES)
        sealed = keyringformat.parse(data, what=self.what)
        sealed.open(self.root(sealed))
        privatefile.write_new(target, data, what="keyring")

    def change_protection(self, unlock: Unlock, *, kdf: KdfParams = STRONG) -> None:
        """Seal the keyring under another passphrase or key file. Copies made before keep the old one."""
        before, root = self._unlocked()  # first, so that nobody chooses a passphrase in vain
        protection, new_root = unlock.protect(kdf, what=self.what)
        self._replace(before, root, lambda keyring: keyring, protection, new_root)
        self.unlock = unlock

    def _open(self) -> Keyring:
        sealed = self.read()
        return sealed.open(self.root(sealed))

    def _change(self, edit: Callable[[Keyring], Keyring], root: Secret | None = None) -> Keyring:
        before, found = self._unlocked(root)  # before the lock: a person may be typing
        return self._replace(before, found, edit)

    def _unlocked(self, root: Secret | None = None) -> tuple[SealedKeyring, Secret]:
        sealed = self.read()
        root = self.root(sealed) if root is None else root
        sealed.open(root)
        return sealed, root

    def _replace(
        self,
        before: SealedKeyring,
        root: Secret,
        edit: Callable[[Keyring], Keyring],
        protection: Protection | None = None,
        new_root: Secret | None = None,
    ) -> Keyring:
        with privatefile.locked(self.path, what=self.what):
            sealed = self.read()
            if sealed.protection != before.protection:
                raise ConflictError(
                    f"the protection of {self.what} was changed meanwhile", hint="run the command again"
                )
            keyring = edit(sealed.open(root))
            data = keyringformat.seal(keyring, new_root or root, protection or sealed.protection)
            privatefile.replace(self.path, data, what="keyring")
        return keyring


def _write_new(target: Path, keyring: Keyring, unlock: Unlock, kdf: KdfParams) -> None:
    protection, root = unlock.protect(kdf, what=f"the keyring {str(target)!r}")
    privatefile.write_new(target, keyringformat.seal(keyring, root, protection), what="keyring")
