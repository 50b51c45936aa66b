"""Ed25519 signing keys (RFC 8032): in a file, or in a key service that never lets them out.

Signed is label || 0 || SHA-256(data), some 50 bytes whatever `data` is, so every service takes it as it is.
A signer is named by its public key, `ed25519:` and base64url, so that a name cannot be given to another key.

A writer also signs its journal and a record for each finished file (docs/format.md, "Journal"). That would be
a call for each file, so a key in a service is asked once in a write: it signs the public half of a key that
only this process has, in memory, and that one signs journal and records. What it signs counts in the journal
of this one writer id, and nowhere else.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

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
from encpipe.core import TaggedCore
from encpipe.errors import ConfigError, KmsError, SignatureError
from encpipe.keys import SIGNER
from encpipe.kms import privatefile
from encpipe.kms.signer import Signer

MAX_KEY_FILE_BYTES: Final = 4096
"""Length of a signing key's file; one that encpipe made has 119 bytes."""
_SCHEME: Final = "ed25519:"
_WHAT: Final = "signing key"


class _PrivateKey(Protocol):
    """What signs: `Ed25519PrivateKey`, or one in a service."""

    def public_key(self) -> Ed25519PublicKey: ...
    def sign(self, data: bytes, /) -> bytes: ...


class SigningKey:
    """A private Ed25519 key, for signing only. Its repr is redacted; pickle and copy are refused."""

    def __init__(self, key: _PrivateKey) -> None:
        self._key = key
        self.signer = signer_of(key.public_key())
        """Its public name, for `trust.signers`."""
        self._lock = threading.Lock()
        self._delegates: dict[str, tuple[Ed25519PrivateKey, str]] = {}

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

    @classmethod
    def in_service(cls, key: Signer, trusted: Sequence[str] = ()) -> SigningKey:
        """A key that a service holds: its newest version among the signers `trusted`, else its newest.

        So a key that was rotated signs as before until `trust.signers` names its new version. One call, for
        the public keys. Each signature is checked under the public key before it is used. Raises as `Signer`.
        """
        versions = [_InService(key, one.version, one.raw) for one in key.public_keys()]
        known = (one for one in versions if signer_of(one.public_key()) in trusted)
        return cls(next(known, versions[0]))

    def sign(self, view: TaggedCore) -> dict[str, str]:
        """The signature of a core, as it stands in the manifest."""
        return {"signer": self.signer, "signature": self.sign_bytes(Label.CORE_SIGNATURE, view.line)}

    def sign_bytes(self, label: Label, data: bytes) -> str:
        """The signature of label || 0 || SHA-256(data), base64url. One call where a service holds the key."""
        return aead.to_text(self._key.sign(signed_message(label, data)))

    def check_bytes(self, label: Label, data: bytes, signature: str) -> None:
        """Raise `SignatureError` unless this very key made the signature. No call."""
        self._check(self._key.public_key(), signed_message(label, data), signature)

    def sign_journal(self, writer_id: str, data: bytes) -> str:
        """The signature of something in the journal of this writer: base64url, and from a key in a service
        three parts with dots between: delegate, its delegation, and what it signed."""
        if not isinstance(self._key, _InService):
            return self.sign_bytes(Label.JOURNAL_SIGNATURE, data)
        delegate, shown = self._delegate(writer_id)
        signature = delegate.sign(signed_message(Label.JOURNAL_SIGNATURE, data))
        return f"{shown}.{aead.to_text(signature)}"

    def check_journal(self, writer_id: str, data: bytes, signature: str) -> None:
        """Raise `SignatureError` unless this key signed it, or one that it delegated this journal to."""
        if "." not in signature:
            self.check_bytes(Label.JOURNAL_SIGNATURE, data, signature)
            return
        public, _, rest = signature.partition(".")
        delegation, _, own = rest.partition(".")
        try:
            raw = aead.from_text(public)
            delegate = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError:
            raise self._not_signed() from None
        self.check_bytes(Label.JOURNAL_DELEGATE, bytes.fromhex(writer_id) + raw, delegation)
        self._check(delegate, signed_message(Label.JOURNAL_SIGNATURE, data), own)

    def _delegate(self, writer_id: str) -> tuple[Ed25519PrivateKey, str]:
        with self._lock:
            if writer_id not in self._delegates:
                key = Ed25519PrivateKey.generate()
                raw = key.public_key().public_bytes_raw()
                delegation = self.sign_bytes(Label.JOURNAL_DELEGATE, bytes.fromhex(writer_id) + raw)
                self._delegates[writer_id] = key, f"{aead.to_text(raw)}.{delegation}"
            return self._delegates[writer_id]

    def _check(self, key: Ed25519PublicKey, message: bytes, signature: str) -> None:
        try:
            key.verify(aead.from_text(signature), message)
        except (InvalidSignature, ValueError):
            raise self._not_signed() from None

    def _not_signed(self) -> SignatureError:
        return SignatureError(f"this was not signed by {self.signer}")

    def __repr__(self) -> str:
        return f"SigningKey({self.signer})"

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a SigningKey is never pickled or copied: name it in the configuration")

    __reduce_ex__ = _refuse
    __reduce__ = _refuse
    __getstate__ = _refuse
    __copy__ = _refuse
    __deepcopy__ = _refuse


class _InService:
    """One version of a key in a service."""

    def __init__(self, key: Signer, version: str, raw: bytes) -> None:
        self._signer, self._version = key, version
        self._public = Ed25519PublicKey.from_public_bytes(raw)

    def public_key(self) -> Ed25519PublicKey:
        return self._public

    def sign(self, data: bytes, /) -> bytes:
        signature = self._signer.sign(data, version=self._version)
        try:
            self._public.verify(signature, data)
        except InvalidSignature:
            raise KmsError(
                f"{self._signer.uri} made a signature that does not fit its own public key",
                hint="nothing was signed; is this the service you mean? if it is, do not trust it before you "
                "know why",
            ) from None
        return signature


def create_key_file(path: Path) -> str:
    """Make a signing key in a new file of mode 0600; the signer.

    Raises `ConfigError` `exists` rather than overwrite, `StorageError` when the disk fails.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    privatefile.write_new(path, pem, what=_WHAT)
    return SigningKey(key).signer


def signer_of(key: Ed25519PublicKey) -> str:
    """How a public key is named."""
    return _SCHEME + aead.to_text(key.public_bytes_raw())


def public_key(signer: str) -> Ed25519PublicKey:
    """The key of a signer's name. Raises `ConfigError` for what is no signer."""
    if not SIGNER.fullmatch(signer):
        raise ConfigError(
            f"{signer[:60]!r} is not a signer", hint='a signer is "ed25519:" and 43 characters of base64url'
        )
    return Ed25519PublicKey.from_public_bytes(aead.from_text(signer.removeprefix(_SCHEME)))


def signed_message(label: Label, data: bytes) -> bytes:
    """What is signed for `data`."""
    return label.encode() + b"\0" + hashlib.sha256(data).digest()
