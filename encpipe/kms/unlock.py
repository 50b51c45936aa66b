"""How a keyring is unlocked: the passphrase or key file that gives its root key.

    prompt          a person is asked              env:NAME     a passphrase in an environment variable
    file:PATH       a passphrase in a file         key-file:PATH   32 random bytes, base64, in a file
    key-env:NAME    32 bytes, base64, in an environment variable: the one master key itself, no keyring file

Nothing is read before a key is needed, and what is read is never part of an error.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from encpipe import aead
from encpipe.errors import ConfigError
from encpipe.keys import KEY_BYTES, Secret
from encpipe.kms import privatefile
from encpipe.kms.base import AskPassphrase
from encpipe.kms.keyringformat import SALT_BYTES, KdfParams, Protection

MAX_PASSPHRASE_BYTES: Final = 1024
_KEY_TEXT_BYTES: Final = 44
"""base64 of 32 bytes, with padding."""


class Unlock(Protocol):
    """A way to unlock a keyring."""

    def root(self, protection: Protection, *, what: str) -> Secret:
        """The root key for an existing keyring; Argon2id runs here.

        Raises `ConfigError` when there is nothing to read it from, or the keyring is protected otherwise.
        Whether it is the right key shows when the keyring is opened.
        """
        ...

    def protect(self, kdf: KdfParams, *, what: str) -> tuple[Protection, Secret]:
        """Fresh protection for a keyring to be written, and its root key."""
        ...


@dataclass(frozen=True)
class PassphraseUnlock:
    """A passphrase; `read` gets it and is called once for each use, with what it is for."""

    read: Callable[[str], str] = field(repr=False)

    def root(self, protection: Protection, *, what: str) -> Secret:
        if protection.kdf is None:
            raise ConfigError(
                f"{what} is protected by a key file, not by a passphrase",
                hint='set keyring.unlock = "key-file:PATH"',
            )
        return _stretch(self.read(f"passphrase of {what}"), protection.salt, protection.kdf)

    def protect(self, kdf: KdfParams, *, what: str) -> tuple[Protection, Secret]:
        salt = secrets.token_bytes(SALT_BYTES)
        root = _stretch(self.read(f"new passphrase of {what}"), salt, kdf)
        return Protection("passphrase", salt, kdf), root


@dataclass(frozen=True)
class KeyFileUnlock:
    """A separate key file: 32 random bytes, base64. `create_key_file` makes one."""

    path: Path

    def root(self, protection: Protection, *, what: str) -> Secret:
        if protection.kdf is not None:
            raise ConfigError(
                f"{what} is protected by a passphrase, not by a key file",
                hint='set keyring.unlock = "prompt", "env:NAME" or "file:PATH"',
            )
        text = privatefile.read(self.path, what="key file", limit=_KEY_TEXT_BYTES + 2)
        return key_from_text(text, what=f"the key file {str(self.path)!r}")

    def protect(self, kdf: KdfParams, *, what: str) -> tuple[Protection, Secret]:
        del kdf  # random bytes need no stretching
        protection = Protection("key-file", secrets.token_bytes(SALT_BYTES))
        return protection, self.root(protection, what=what)


@dataclass(frozen=True)
class EnvironmentKey:
    """`key-env:NAME`: the variable holds the one master key; there is no keyring file to unlock."""

    name: str

    def key(self) -> Secret:
        """The master key. Raises `ConfigError` when the variable is not set or not 32 bytes in base64."""
        what = f"the environment variable {self.name}"
        return key_from_text(_variable(self.name).encode("utf-8", "surrogateescape"), what=what)


def parse_unlock(text: str, ask: AskPassphrase | None) -> Unlock | EnvironmentKey:
    """The way that the setting `unlock` names. Reads nothing; `ask` is needed for `prompt` only."""
    kind, _, rest = text.partition(":")
    if text == "prompt":
        return PassphraseUnlock(ask or _nobody_to_ask)
    if rest and kind == "env":
        return PassphraseUnlock(lambda _: _variable(rest))
    if rest and kind == "file":
        return PassphraseUnlock(lambda _: _passphrase_file(Path(rest)))
    if rest and kind == "key-file":
        return KeyFileUnlock(Path(rest))
    if rest and kind == "key-env":
        return EnvironmentKey(rest)
    raise ConfigError(  # the text itself is not shown: it may be a passphrase put in the wrong place
        "keyring.unlock is not understood",
        hint="one of: prompt, env:NAME, file:PATH, key-env:NAME, key-file:PATH",
    )


def create_key_file(path: Path) -> None:
    """Write a new key file of mode 0600. Raises `ConfigError` `exists` rather than overwrite."""
    text = base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n"
    privatefile.write_new(path, text, what="key file")


def key_from_text(text: bytes, *, what: str) -> Secret:
    """Exactly 32 bytes from standard base64, blanks around it allowed. Raises `ConfigError`."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES or base64.b64encode(key) != text.strip():
        raise ConfigError(
            f"{what} does not hold exactly {KEY_BYTES} bytes in base64",
            hint=f"make one with: openssl rand -base64 {KEY_BYTES}",
        )
    return Secret(key)


def _stretch(passphrase: str, salt: bytes, kdf: KdfParams) -> Secret:
    try:
        # the same characters typed on another system may come composed otherwise
        data = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise ConfigError("the passphrase is not UTF-8 text") from None
    if not 0 < len(data) <= MAX_PASSPHRASE_BYTES:
        raise ConfigError(f"the passphrase is empty, or longer than {MAX_PASSPHRASE_BYTES} bytes")
    try:
        return aead.argon2id(data, salt=salt, memory_kib=kdf.memory_kib, passes=kdf.passes, lanes=kdf.lanes)
    except MemoryError:
        raise ConfigError(
            f"unlocking the keyring needs {kdf.memory_kib >> 10} MiB of memory, which is not free",
            hint="free some memory, or protect the keyring by a key file",
        ) from None


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigError(
            f"the environment variable {name} is not set",
            hint="set it, or change keyring.unlock",
            code="config-missing",
        )
    return value


def _passphrase_file(path: Path) -> str:
    data = privatefile.read(path, what="passphrase file", limit=MAX_PASSPHRASE_BYTES + 2)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"passphrase file {str(path)!r} is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def _nobody_to_ask(what: str) -> str:
    raise ConfigError(
        f"{what} is needed, and there is nobody to ask",
        hint='set keyring.unlock to "env:NAME", "file:PATH" or "key-file:PATH"',
        code="config-missing",
    )
