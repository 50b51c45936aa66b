"""Ed25519 signatures over the core (RFC 8032): who signed a generation, and what writes are signed with.

Signed are 47 bytes, `encpipe/1 core` || 0 || SHA-256(line 1). The core fixes the file list by its SHA-256 and
the KEKs by their commitments, and the list fixes policy, schema and every file's SHA-256: so a signature says
which data this is, also against those who hold every key of the dataset. It says nothing of which state is
the newest; pins do (docs/format.md, "Signatures").

A signer is named by its public key, `ed25519:` and base64url, so that a name cannot be given to another key.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from encpipe import aead
from encpipe.aead import Label
from encpipe.config import Config
from encpipe.core import TaggedCore
from encpipe.errors import ConfigError, SignatureError
from encpipe.keys import SIGNER
from encpipe.kms import privatefile

MAX_KEY_FILE_BYTES: Final = 4096
"""Length of a signing key's file; one that encpipe made has 119 bytes."""
_SCHEME: Final = "ed25519:"
_WHAT: Final = "signing key"


class SigningKey:
    """A private Ed25519 key, for `sign` only. Its repr is redacted; pickle and copy are refused."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.signer = _SCHEME + aead.to_text(key.public_key().public_bytes_raw())
        """Its public name, for `trust.signers`."""

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The key in a PKCS#8 PEM file that only its owner may read.

        Raises `ConfigError`: `config-missing`, `keyring-permissions`, or `config` for anything but an Ed25519
        key without a passphrase; `StorageError` when the disk fails.
        """
        data = privatefile.read(path, what=_WHAT, limit=MAX_KEY_FILE_BYTES)
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"{_WHAT} {str(path)!r} is not an Ed25519 key in PKCS#8 PEM without a passphrase",
                hint="make one with: encpipe keys create-signer FILE",
            )
        return cls(key)

    def sign(self, view: TaggedCore) -> dict[str, str]:
        """The signature of a core, as it stands in the manifest."""
        return {"signer": self.signer, "signature": self.sign_bytes(Label.CORE_SIGNATURE, view.line)}

    def sign_bytes(self, label: Label, data: bytes) -> str:
        """The signature of label || 0 || SHA-256(data), base64url."""
        return aead.to_text(self._key.sign(_message(label, data)))

    def check_bytes(self, label: Label, data: bytes, signature: str) -> None:
        """Raise `SignatureError` unless this very key made the signature."""
        try:
            self._key.public_key().verify(aead.from_text(signature), _message(label, data))
        except (InvalidSignature, ValueError):
            raise SignatureError(f"this was not signed by {self.signer}") from None

    def __repr__(self) -> str:
        return f"SigningKey({self.signer})"

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a SigningKey is never pickled or copied: name its file in the configuration")

    __reduce_ex__ = _refuse
    __reduce__ = _refuse
    __getstate__ = _refuse
    __copy__ = _refuse
    __deepcopy__ = _refuse


def create_key_file(path: Path) -> str:
    """Make a signing key in a new file of mode 0600; the signer.

    Raises `ConfigError` `exists` rather than overwrite, `StorageError` when the disk fails.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    privatefile.write_new(path, pem, what=_WHAT)
    return SigningKey(key).signer


def check(view: TaggedCore, signers: Sequence[str]) -> None:
    """Raise `SignatureError` unless one of `signers` signed this core; with no signers nothing is asked for.

    Needs no key of the dataset, so it comes before any call to a key service. Raises `ConfigError` for what
    is no signer.
    """
    if not signers:
        return
    keys = {signer: _public_key(signer) for signer in signers}
    wrong = ""
    for entry in view.signatures:
        signer = entry["signer"]
        if signer in keys:
            wrong = signer
            with contextlib.suppress(InvalidSignature, ValueError):
                keys[signer].verify(
                    aead.from_text(entry["signature"]), _message(Label.CORE_SIGNATURE, view.line)
                )
                return
    _raise_unsigned(view, wrong)


def _raise_unsigned(view: TaggedCore, wrong: str) -> NoReturn:
    what = f"generation {view.core.generation} of dataset {view.core.dataset_id}"
    if wrong:
        raise SignatureError(
            f"the signature of {wrong} does not fit {what}",
            hint="the dataset was changed or replaced after it was signed: restore the manifest from a copy "
            "you trust",
        )
    others = [entry["signer"] for entry in view.signatures if SIGNER.fullmatch(entry["signer"])]
    raise SignatureError(
        f"{what} is signed by none of the signers that this configuration trusts",
        hint=f"it names {others[0]}: if that is one of yours, add it to trust.signers"
        if others
        else "it has no signature: ask its writers to sign it (encpipe sign)",
    )


def valid_signers(view: TaggedCore) -> tuple[str, ...]:
    """Whose signatures fit this core, whether or not anybody trusts them."""
    found = []
    for entry in view.signatures:
        with contextlib.suppress(SignatureError, ConfigError):
            check(view, [entry["signer"]])
            found.append(entry["signer"])
    return tuple(dict.fromkeys(found))


def add(view: TaggedCore, key: SigningKey) -> tuple[Mapping[str, Any], ...]:
    """The signatures of a core with that of `key`, in place of any other under its name."""
    others = (entry for entry in view.signatures if entry["signer"] != key.signer)
    return (*others, key.sign(view))


def _public_key(signer: str) -> Ed25519PublicKey:
    if not SIGNER.fullmatch(signer):
        raise ConfigError(
            f"{signer[:60]!r} is not a signer", hint='a signer is "ed25519:" and 43 characters of base64url'
        )
    return Ed25519PublicKey.from_public_bytes(aead.from_text(signer.removeprefix(_SCHEME)))


def _message(label: Label, data: bytes) -> bytes:
    return label.encode() + b"\0" + hashlib.sha256(data).digest()


@dataclass(frozen=True)
class WriterSigning:
    """How a write signs, and what it builds upon: only a state that one of `signers` signed (any where there
    are none), so that nobody has his work signed by leaving it in the way of one who signs."""

    key: SigningKey | None
    signers: tuple[str, ...]

    @property
    def sign(self) -> Callable[[TaggedCore], Mapping[str, Any]] | None:
        """What a commit is signed by; None where it is not."""
        return None if self.key is None else self.key.sign


def writer_signing(config: Config) -> WriterSigning:
    """What the configuration says of signing. With a key and no `trust.signers` the key's own signer counts.

    Raises `ConfigError` where what is written would not be read under the same configuration: `trust.signers`
    without a key, or without this key's signer; and what `SigningKey.load` raises.
    """
    path, signers = config.signing.key_file, config.trust.signers
    if path is None:
        if not signers:
            return WriterSigning(None, ())
        raise ConfigError(
            "the configuration trusts only signed datasets (trust.signers), and names no key to sign with",
            hint='add [signing] key_file = "PATH"; encpipe keys create-signer PATH makes a key',
            code="config-missing",
        )
    key = SigningKey.load(path)
    if signers and key.signer not in signers:
        raise ConfigError(
            f"{_WHAT} {str(path)!r} is that of {key.signer}, which trust.signers does not name",
            hint="add it to trust.signers, or name the key of one of those",
        )
    return WriterSigning(key, signers or (key.signer,))
