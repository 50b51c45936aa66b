"""Master keys in a local keyring file, or in one environment variable: URIs `local:NAME`.

A wrapping, 65 bytes:

    0x01 || master key version (u32) || nonce (12) || ciphertext (32) || tag (16)

AES-256-GCM under HKDF-Expand(master key version, `encpipe/1 local-wrap` || 0 || context); AAD = the label
`encpipe/1 local-wrap` with the fields (first 5 bytes, master key name, context). The context is the AAD that
binds every KEK wrapping: `aead.context_aad` of dataset id, key name and KEK id.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import Final

from encpipe import aead
from encpipe.aead import Label
from encpipe.errors import ConfigError, DecryptionError, KmsError, UnwrapError
from encpipe.keys import KEY_BYTES, KEY_NAME, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Destroyed, KmsSettings
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.keyringformat import Protection, SealedKeyring
from encpipe.kms.keyringkeys import ENV_KEY_NAME, Keyring, KeyVersion
from encpipe.kms.unlock import EnvironmentKey, parse_unlock
from encpipe.perprocess import PerProcess

SCHEME: Final = "local"
_WRAP_VERSION: Final = b"\x01"
_HEAD_BYTES: Final = 5
WRAPPED_BYTES: Final = _HEAD_BYTES + aead.SEAL_OVERHEAD + KEY_BYTES
_HANDOVER_VERSION: Final = b"\x01"


class _Unlocked:
    """What one process knows of the root key: received from its parent, found, or being found."""

    def __init__(self, *, received: Secret | None = None, found: _Found | None = None) -> None:
        self.lock = threading.Lock()
        self.flight: tuple[Protection | None, Future[Secret]] | None = None
        self.received = received
        self.found = found

    def inherited(self) -> _Unlocked:
        """For a forked child: no unlock of the parent is under way there."""
        return _Unlocked(received=self.received, found=self.found)


_Found = tuple[Protection | None, Secret]
"""The root key with the protection it is for; None for the environment's key."""


class LocalKms:
    """The local keyring as a key service.

    The passphrase or key file is read on the first wrap or unwrap, once per process however many threads ask,
    and Argon2id runs once. The file itself is read each time, so a key made or rotated by another process is
    seen. With `keyring.unlock = "key-env:NAME"` there is no file: the variable holds the one master key,
    `local:env`, version 1. A forked child stays unlocked.
    """

    def __init__(self, settings: KmsSettings) -> None:
        if settings.table:
            raise ConfigError(
                f"kms.local has no setting {min(settings.table)[:40]!r}",
                hint='the local keyring is set up in the table "keyring"',
                code="config-unknown-key",
            )
        unlock = parse_unlock(settings.keyring.unlock, settings.ask_passphrase)
        self._env_key = unlock if isinstance(unlock, EnvironmentKey) else None
        self._file = (
            None if self._env_key else KeyringFile.from_config(settings.keyring, settings.ask_passphrase)
        )
        self._process = PerProcess(_Unlocked(), _Unlocked.inherited)

    def __repr__(self) -> str:
        where = str(self._file.path) if self._file else "environment key"
        return f"LocalKms({where!r})"

    def master_key(self, uri: str) -> MasterKey:
        """The master key of `local:NAME`. Whether the keyring has it shows on the first use."""
        scheme, _, name = uri.partition(":")
        if scheme != SCHEME or not KEY_NAME.fullmatch(name):
            raise ConfigError(
                f"{uri[:80]!r} does not name a key of the local keyring",
                hint="write local:NAME; NAME is a lower-case letter, then up to 31 of a-z, 0-9, _ and -",
            )
        return LocalMasterKey(self, name) if self._env_key else FileMasterKey(self, name)

    def trusts(self, uri: str) -> bool:
        """Whether the keyring has a key of this name. Needs no passphrase; without a keyring, False.

        The names stand in the clear header. Whoever adds one there gains nothing: the file no longer opens.
        """
        scheme, _, name = uri.partition(":")
        if scheme != SCHEME:
            return False
        if self._file is None:
            return name == ENV_KEY_NAME
        try:
            return name in self._file.list()
        except ConfigError as error:
            if error.code == "config-missing":
                return False
            raise

    def newest_version(self, name: str) -> str:
        """The version of a master key that wraps, by the clear header; empty where there is no such key."""
        if self._file is None:
            return "1"
        return next((str(v.version) for v in self._file.list().get(name, ()) if v.state == "active"), "")

    @property
    def unlocked(self) -> bool:
        """Whether this process has unlocked the keyring, or was handed it unlocked."""
        process = self._process.get()
        return process.received is not None or process.found is not None

    def send_unlocked(self, fd: int) -> None:
        """Write what unlocks the keyring to a pipe, for `receive_unlocked` in a child process.

        33 bytes, less than a pipe takes at once. Unlocks first if need be.
        """
        message = _HANDOVER_VERSION + self._root(self._file.read() if self._file else None).reveal()
        if os.write(fd, message) != len(message):
            raise KmsError("the unlocked keyring could not be handed to a child process")

    def receive_unlocked(self, fd: int) -> None:
        """Take over what the parent process sends on a pipe: no prompt, no Argon2id here."""
        message = b""
        while len(message) < 1 + KEY_BYTES and (more := os.read(fd, 1 + KEY_BYTES - len(message))):
            message += more
        if len(message) != 1 + KEY_BYTES or not message.startswith(_HANDOVER_VERSION):
            raise KmsError(
                "the parent process did not hand over the unlocked keyring",
                hint='set keyring.unlock to "env:NAME", "file:PATH" or "key-file:PATH"',
            )
        self._process.get().received = Secret(message[1:])

    def destroy(self, name: str) -> None:
        """Remove a master key from the keyring file, all its versions."""
        assert self._file is not None, "an environment key is not destroyed here"
        self._file.destroy_key(name, self._root(self._file.read()))

    def open_keyring(self) -> Keyring:
        """The master keys as they stand in the file now."""
        if self._file is None:
            only = {ENV_KEY_NAME: (KeyVersion(1, "", "active"),)}
            return Keyring(only, {(ENV_KEY_NAME, 1): self._root(None)})
        sealed = self._file.read()
        return sealed.open(self._root(sealed))

    def _root(self, sealed: SealedKeyring | None) -> Secret:
        """The root key for this file (or the environment's key): found once, waited for by all threads."""
        process = self._process.get()
        if process.received is not None:
            return process.received
        protection = sealed.protection if sealed else None
        with process.lock:
            if process.found is not None and process.found[0] == protection:
                return process.found[1]
            mine = process.flight is None or process.flight[0] != protection
            if mine:
                process.flight = (protection, Future())
            assert process.flight is not None
            flight = process.flight[1]
        if mine:
            self._find_root(process, sealed, flight)
        return flight.result()

    def _find_root(self, process: _Unlocked, sealed: SealedKeyring | None, flight: Future[Secret]) -> None:
        """Settle `flight`. A failure is told to those who wait now; the next call tries again."""
        root: Secret | None = None
        failure: BaseException | None = None
        try:
            root = self._unlock(sealed)
        except BaseException as error:  # noqa: BLE001 - whatever ends us, also Ctrl-C, must end those who wait
            failure = error
        with process.lock:
            if root is not None:
                process.found = (sealed.protection if sealed else None, root)
            if process.flight is not None and process.flight[1] is flight:
                process.flight = None
        if root is not None:
            flight.set_result(root)
        else:
            flight.set_exception(failure)

    def _unlock(self, sealed: SealedKeyring | None) -> Secret:
        if self._env_key is not None:
            return self._env_key.key()
        assert self._file is not None
        assert sealed is not None
        root = self._file.root(sealed)
        sealed.open(root)  # a wrong passphrase is not kept
        return root


class LocalMasterKey:
    """One named master key of the keyring. The newest version wraps, every version unwraps."""

    binds_context = True

    def __init__(self, kms: LocalKms, name: str) -> None:
        self._kms = kms
        self._name = name

    @property
    def uri(self) -> str:
        return f"{SCHEME}:{self._name}"

    def __repr__(self) -> str:
        return f"LocalMasterKey({self.uri!r})"

    def newest_version(self) -> str:
        """The version that wraps. Nothing is unlocked, so nothing authenticated."""
        return self._kms.newest_version(self._name)

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """65 bytes under the active version. Raises what unlocking raises, and `KeyNotFoundError`."""
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")
        keyring = self._kms.open_keyring()
        version = keyring.active(self._name).version
        head = _WRAP_VERSION + version.to_bytes(_HEAD_BYTES - 1, "big")
        key = _wrapping_key(keyring.secret(self._name, version), aad)
        blob = head + aead.seal(key, kek.reveal(), aad=self._aad(head, aad))
        return WrappedKey(self.uri, blob, str(version), utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """The KEK. Raises `UnwrapError`, `KeyNotFoundError`, and what unlocking raises."""
        head = wrapped.blob[:_HEAD_BYTES]
        version = int.from_bytes(head[1:], "big")
        if len(wrapped.blob) != WRAPPED_BYTES or head[:1] != _WRAP_VERSION or str(version) != wrapped.version:
            raise self._refusal(aad)
        key = _wrapping_key(self._kms.open_keyring().secret(self._name, version), aad)
        try:
            return Secret(aead.open_sealed(key, wrapped.blob[_HEAD_BYTES:], aad=self._aad(head, aad)))
        except DecryptionError:
            raise self._refusal(aad) from None

    def _aad(self, head: bytes, context: KeyContext) -> bytes:
        return aead.encode_aad(Label.LOCAL_WRAP, head, self._name.encode(), aead.context_aad(context))

    def _refusal(self, aad: KeyContext) -> UnwrapError:
        return UnwrapError(
            f"{self.uri} does not open the wrapping of key name {aad.key_name!r} in dataset {aad.dataset_id}",
            hint="the wrapping was changed, belongs elsewhere, or was made by another keyring's "
            f"{self._name!r}: use the keyring that wrote the dataset, or restore the manifest",
        )


class FileMasterKey(LocalMasterKey):
    """One of a keyring file: it can be removed from there."""

    def check_destroyable(self) -> None:
        """Raise `KeyNotFoundError`, and what unlocking raises."""
        self._kms.open_keyring().active(self._name)

    def destroy(self) -> Destroyed:
        """Write the keyring file anew without this key. Raises as `check_destroyable`, and `StorageError`."""
        self._kms.destroy(self._name)
        copies = "backups and exports of the keyring, and what the disk keeps of the file before"
        return Destroyed(self.uri, beyond=copies)


def _wrapping_key(master: Secret, context: KeyContext) -> Secret:
    return aead.derive(master, Label.LOCAL_WRAP, aead.context_aad(context))
