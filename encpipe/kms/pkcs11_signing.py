"""Ed25519 keys on a token: CKK_EC_EDWARDS, CKM_EDDSA (PKCS#11 3.0). Imported with python-pkcs11 only.

The private key is CKA_SENSITIVE, not CKA_EXTRACTABLE, and has CKA_SIGN. The public key is an object
of its own beside it, with the same label (and CKA_ID where the URI names it), as every tool makes it.
"""

from __future__ import annotations

from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import Object, Session, SignMixin

from encpipe.errors import ConfigError, KeyAccessDeniedError
from encpipe.kms.pkcs11_settings import KeyPlace
from encpipe.kms.signer import PUBLIC_KEY_BYTES

_ENCODINGS: Final = (b"", b"\x04\x20", b"\x03\x21\x00")
"""What may stand before the 32 bytes of CKA_EC_POINT: nothing, or the DER of an OCTET or a BIT STRING."""


def find_public(session: Session, place: KeyPlace) -> Object:
    """The public key. Raises the SDK's errors."""
    return _one(session, place, ObjectClass.PUBLIC_KEY)


def find_private(session: Session, place: KeyPlace) -> Object:
    """The private key. Raises `ConfigError` for one that could leave the token, and the SDK's errors."""
    key = _one(session, place, ObjectClass.PRIVATE_KEY)
    found = key.get_attributes([Attribute.SENSITIVE, Attribute.EXTRACTABLE])
    if not found.get(Attribute.SENSITIVE, False) or found.get(Attribute.EXTRACTABLE, True):
        raise ConfigError(
            f"the key {place.uri} can be read out of its token",
            hint="use one with CKA_SENSITIVE true and CKA_EXTRACTABLE false",
        )
    return key


def _one(session: Session, place: KeyPlace, kind: ObjectClass) -> Object:
    wanted: dict[Attribute, Any] = {
        Attribute.CLASS: kind,
        Attribute.KEY_TYPE: KeyType.EC_EDWARDS,
        Attribute.LABEL: place.object,
    }
    if place.id is not None:
        wanted[Attribute.ID] = place.id
    keys = list(session.get_objects(wanted))
    if not keys:
        raise pkcs11.NoSuchKey
    if len(keys) > 1:
        raise pkcs11.MultipleObjectsReturned
    return keys[0]


def read_public(key: Object, *, uri: str) -> bytes:
    """Its 32 bytes. Raises `ConfigError` for a key of another curve."""
    point = bytes(key[Attribute.EC_POINT])
    for before in _ENCODINGS:
        if len(point) == len(before) + PUBLIC_KEY_BYTES and point.startswith(before):
            return point[len(before) :]
    raise ConfigError(
        f"{uri} is not an Ed25519 key",
        hint="make one with: pkcs11-tool --keypairgen --key-type EC:edwards25519",
    )


def sign(key: Object, message: bytes, *, uri: str) -> bytes:
    """The signature. Raises the SDK's errors."""
    if not isinstance(key, SignMixin):
        raise KeyAccessDeniedError(
            f"the token does not let {uri} sign: CKA_SIGN is false",
            hint="if that was not on purpose, set CKA_SIGN on the key",
        )
    signature = key.sign(message, mechanism=Mechanism.EDDSA)
    assert isinstance(signature, bytes)
    return signature
