"""Every raw cipher call but Parquet's own: seal, open, MAC, derive.

AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces, HKDF-Expand-SHA256 (RFC 5869), HMAC-SHA256
(RFC 2104), Argon2id (RFC 9106). Nothing else, and no options.

No KEK is a cipher key itself. Every use derives its own key under a label of `Label`, so that two uses can
never meet in one key. Keys that seal are derived for one object each (its random id is the context), so a
random nonce is never drawn often enough under one key to matter (the limit is 2**32 draws).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from encpipe.errors import DecryptionError, EncpipeError, ManifestError
from encpipe.keys import KEY_BYTES, KeyContext, Secret

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SEAL_OVERHEAD: Final = NONCE_BYTES + TAG_BYTES
MAX_SEALED_BYTES: Final = (1 << 31) - 1
"""Length of one sealed object: what one call of the cipher takes."""
_SPEED_BYTES: Final = 1_000_000
_SPEED_CALLS: Final = 40


class Label(StrEnum):
    """All labels. A label is used for one purpose only and never changes its meaning."""

    DEK_WRAP = "encpipe/1 dek-wrap"
    FILE_LIST = "encpipe/1 file-list"
    JOURNAL = "encpipe/1 journal"
    JOURNAL_FILE = "encpipe/1 journal-file"
    JOURNAL_SIGNATURE = "encpipe/1 journal-signature"
    JOURNAL_DELEGATE = "encpipe/1 journal-delegate"
    CORE_MAC = "encpipe/1 core-mac"
    MANIFEST_MAC = "encpipe/1 manifest-mac"
    KEK_COMMITMENT = "encpipe/1 kek-commitment"
    DEK_COMMITMENT = "encpipe/1 dek-commitment"
    DEK_VECTOR = "encpipe/1 dek-vector"
    KEK_WRAP = "encpipe/1 kek-wrap"
    PARTITION_KEK_WRAP = "encpipe/1 partition-kek-wrap"
    CORE_SIGNATURE = "encpipe/1 core"
    SHRED_REPORT = "encpipe/1 shred-report"
    KEYRING_SEAL = "encpipe/1 keyring-seal"
    KEYRING_COMMITMENT = "encpipe/1 keyring-commitment"
    LOCAL_WRAP = "encpipe/1 local-wrap"
    GATEWAY_TICKET = "encpipe/1 gateway-ticket"


def encode_aad(label: Label, *fields: bytes) -> bytes:
    """label || 0, then u32 big-endian length || bytes for each field: no two field lists encode alike."""
    parts = [label.encode(), b"\0"]
    for field in fields:
        parts += (len(field).to_bytes(4, "big"), field)
    return b"".join(parts)


def context_aad(context: KeyContext) -> bytes:
    """The AAD that binds a KEK wrapping to its dataset, key name and KEK id."""
    fields = (context.dataset_id, context.key_name, context.kek_id)
    return encode_aad(Label.KEK_WRAP, *(f.encode() for f in fields))


def derive(key: Secret, label: Label, context: bytes) -> Secret:
    """HKDF-Expand-SHA256(key, label || 0 || context, 32). `key` must be uniformly random."""
    info = label.encode() + b"\0" + context
    return Secret(HKDFExpand(SHA256(), KEY_BYTES, info).derive(key.reveal()))


def seal(key: Secret, plaintext: bytes, *, aad: bytes) -> bytes:
    """nonce (12, random) || ciphertext || tag (16), AES-256-GCM.

    Raises `EncpipeError` `unsupported` when that would be longer than `MAX_SEALED_BYTES`.
    """
    if len(plaintext) > MAX_SEALED_BYTES - SEAL_OVERHEAD:
        raise EncpipeError(f"{len(plaintext)} bytes are too many to seal as one object", code="unsupported")
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plaintext, aad)


def open_sealed(key: Secret, sealed: bytes, *, aad: bytes) -> bytes:
    """The plaintext of what `seal` made. Raises `DecryptionError` for any other bytes, key or AAD."""
    if not SEAL_OVERHEAD <= len(sealed) <= MAX_SEALED_BYTES:
        raise DecryptionError(f"sealed bytes cannot be {len(sealed)} bytes long")
    try:
        return AESGCM(key.reveal()).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
    except InvalidTag:
        raise DecryptionError("sealed bytes do not open: they were changed, or belong elsewhere") from None


def open_speed() -> float:
    """Bytes per second at which one core opens sealed data: the best of some calls of 1 MB, about 20 ms."""
    cipher, nonce = AESGCM(bytes(KEY_BYTES)), bytes(NONCE_BYTES)
    sealed = cipher.encrypt(nonce, bytes(_SPEED_BYTES), None)
    times = []
    for _ in range(_SPEED_CALLS):
        start = time.perf_counter()
        cipher.decrypt(nonce, sealed, None)
        times.append(time.perf_counter() - start)
    return _SPEED_BYTES / min(times)


def mac(key: Secret, message: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes."""
    return hmac.digest(key.reveal(), message, "sha256")


def check_mac(key: Secret, message: bytes, tag: bytes, *, what: str) -> None:
    """Raise `ManifestError` unless `tag` is the MAC of `message`. Takes constant time."""
    if not hmac.compare_digest(mac(key, message), tag):
        raise ManifestError(
            f"the MAC of {what} does not fit its bytes: they were changed after they were written",
            hint="restore the object from a copy you trust; nothing was read from the dataset",
            code="manifest-mac",
        )


def digest(label: Label, *parts: bytes) -> bytes:
    """SHA-256(label || 0 || parts): a commitment to fixed-length parts, or to one part of any length."""
    return hashlib.sha256(b"".join((label.encode(), b"\0", *parts))).digest()


def argon2id(passphrase: bytes, *, salt: bytes, memory_kib: int, passes: int, lanes: int) -> Secret:
    """Argon2id (RFC 9106) to 32 bytes. The caller bounds the parameters before it trusts them."""
    kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib)
    return Secret(kdf.derive(passphrase))


def to_text(data: bytes) -> str:
    """base64url without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_text(text: str) -> bytes:
    """The bytes of `to_text`. Raises `ValueError` unless `text` is the one canonical spelling."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not base64url") from None
    if to_text(data) != text:
        raise ValueError("not canonical base64url")
    return data
