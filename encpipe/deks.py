"""DEKs: wrapped by a KEK for one file, and committed to.

AES-256-GCM under HKDF-Expand(KEK, dek-wrap label || 0 || file id) (docs/format.md, "DEK wrapping").
"""

from __future__ import annotations

from typing import Final

from encpipe import aead
from encpipe.aead import Label
from encpipe.errors import DecryptionError, UnwrapError
from encpipe.keys import ID_BYTES, KEY_BYTES, Secret

_WRAP_VERSION: Final = b"\x01"
_HEADER_BYTES: Final = 1 + ID_BYTES
WRAPPED_DEK_CHARACTERS: Final = 103
"""Length of a wrapped DEK: base64url of 0x01, file id, nonce, 32 bytes of ciphertext and the tag."""


def wrap_dek(kek: Secret, dek: bytes, *, file_id: str, key_id: str) -> str:
    """103 characters, bound to the file and the KEK's name. Raises `ValueError` for a DEK not of 256 bits."""
    if len(dek) != KEY_BYTES:
        raise ValueError(f"a DEK has {KEY_BYTES} bytes")
    header = _WRAP_VERSION + bytes.fromhex(file_id)
    key = aead.derive(kek, Label.DEK_WRAP, header[1:])
    return aead.to_text(header + aead.seal(key, dek, aad=header + key_id.encode()))


def unwrap_dek(kek: Secret, wrapped: str, *, file_id: str, key_id: str) -> bytes:
    """The DEK. Raises `UnwrapError` for another file, KEK, key id, or other bytes."""
    try:
        data = aead.from_text(wrapped) if len(wrapped) == WRAPPED_DEK_CHARACTERS else b""
    except ValueError:
        data = b""
    header = _WRAP_VERSION + bytes.fromhex(file_id)
    if data[:_HEADER_BYTES] != header:
        raise UnwrapError(
            f"a data key of file {file_id} is not of this file: the file was swapped or edited",
            hint="restore the file from a copy you trust",
        )
    try:
        key = aead.derive(kek, Label.DEK_WRAP, header[1:])
        return aead.open_sealed(key, data[_HEADER_BYTES:], aad=header + key_id.encode())
    except DecryptionError:
        raise UnwrapError(
            f"a data key of file {file_id} does not open: the file was edited or is of another dataset",
            hint="restore the file from a copy you trust",
        ) from None


def dek_commitment(file_id: str, dek: bytes) -> bytes:
    """SHA-256(dek-commitment label || 0 || file id || DEK)."""
    return aead.digest(Label.DEK_COMMITMENT, bytes.fromhex(file_id), dek)
