"""How a KEK is wrapped by a key on a token. Imported with python-pkcs11 only.

    aes-gcm        0x01 || nonce (12) || ciphertext (32) || tag (16)    AAD = `aead.context_aad`
    aes-key-wrap   0x02 || RFC 3394 of KEK || SHA-256(that AAD) (72)    by C_WrapKey and C_UnwrapKey

AES-GCM nonces are random, one for each wrap: the limit of 2**32 draws under one master key is far away.
AES key wrap has none: the same KEK under the same key and context gives the same bytes. For it the KEK stands
on the token for the time of the call, as a session object.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, ObjectClass
from pkcs11.types import DecryptMixin, EncryptMixin, SecretKey, Session, UnwrapMixin, WrapMixin

from encpipe import aead
from encpipe.errors import KeyAccessDeniedError
from encpipe.keys import KEY_BYTES, KeyContext, Secret
from encpipe.kms import binding
from encpipe.kms import pkcs11_errors as errors
from encpipe.kms.pkcs11_settings import HEADS

GCM_BYTES: Final = 1 + aead.SEAL_OVERHEAD + KEY_BYTES
KEY_WRAP_BYTES: Final = 1 + binding.BOUND_BYTES + 8
_NONCE_END: Final = 1 + aead.NONCE_BYTES

_PASSING_OBJECT: Final[dict[Attribute, Any]] = {
    Attribute.TOKEN: False,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: False,
    Attribute.EXTRACTABLE: True,
}
"""A KEK on the token: gone with the session at the latest, and readable, for it is ours anyway."""


def wrap_gcm(session: Session, key: SecretKey, kek: Secret, aad: KeyContext, *, uri: str) -> bytes:  # noqa: ARG001  # as `wrap_key_wrap`
    """61 bytes. Raises the SDK's errors."""
    if not isinstance(key, EncryptMixin):
        raise _denied(uri, "wrap", "CKA_ENCRYPT")
    params = GCMParams(os.urandom(aead.NONCE_BYTES), aead.context_aad(aad))
    sealed = key.encrypt(kek.reveal(), mechanism=Mechanism.AES_GCM, mechanism_param=params)
    assert isinstance(sealed, bytes)
    # read from `params` afterwards: a token in FIPS mode draws the nonce itself, and writes it there
    return HEADS["aes-gcm"] + params.nonce + sealed


def open_gcm(session: Session, key: SecretKey, blob: bytes, aad: KeyContext, *, uri: str) -> Secret:  # noqa: ARG001  # as `open_key_wrap`
    """The KEK. Raises `UnwrapError`, and the SDK's errors."""
    if not isinstance(key, DecryptMixin):
        raise _denied(uri, "unwrap", "CKA_DECRYPT")
    if len(blob) != GCM_BYTES:
        raise errors.does_not_open(uri)
    params = GCMParams(blob[1:_NONCE_END], aead.context_aad(aad))
    try:
        kek = key.decrypt(blob[_NONCE_END:], mechanism=Mechanism.AES_GCM, mechanism_param=params)
    except errors.FAILING:
        if not _works(key, lambda: _gcm_round_trip(key)):
            raise
    else:
        assert isinstance(kek, bytes)
        return Secret(kek)
    raise errors.does_not_open(uri)


def _works(key: SecretKey, round_trip: Callable[[], bool]) -> bool:
    """Whether the token opens what it has just made: if so, it is the wrapping that is at fault.

    With a key that may only open, whether the token still answers.
    """
    try:
        return round_trip() and bool(key[Attribute.LABEL])
    except pkcs11.PKCS11Error:
        return False


def _gcm_round_trip(key: SecretKey) -> bool:
    if not (isinstance(key, EncryptMixin) and isinstance(key, DecryptMixin)):
        return True
    probe, params = os.urandom(KEY_BYTES), GCMParams(os.urandom(aead.NONCE_BYTES))
    sealed = key.encrypt(probe, mechanism=Mechanism.AES_GCM, mechanism_param=params)
    return bool(key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=params) == probe)


def wrap_key_wrap(session: Session, key: SecretKey, kek: Secret, aad: KeyContext, *, uri: str) -> bytes:
    """73 bytes. Raises the SDK's errors."""
    if not isinstance(key, WrapMixin):
        raise _denied(uri, "wrap", "CKA_WRAP")
    return HEADS["aes-key-wrap"] + _key_wrapped(session, key, binding.bind(kek, aad))


def open_key_wrap(session: Session, key: SecretKey, blob: bytes, aad: KeyContext, *, uri: str) -> Secret:
    """The KEK. Raises `UnwrapError`, and the SDK's errors."""
    if not isinstance(key, UnwrapMixin):
        raise _denied(uri, "unwrap", "CKA_UNWRAP")
    if len(blob) != KEY_WRAP_BYTES:
        raise errors.does_not_open(uri)
    try:
        bound = _key_unwrapped(key, blob[1:])
    except errors.FAILING:
        if not _works(key, lambda: _key_wrap_round_trip(session, key)):
            raise
    else:
        return binding.unbind(bound, aad, uri=uri)
    raise errors.does_not_open(uri)


def _key_wrapped(session: Session, key: WrapMixin, value: bytes) -> bytes:
    passing = session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
            Attribute.VALUE: value,
            **_PASSING_OBJECT,
        }
    )
    try:
        assert isinstance(passing, SecretKey)
        return bytes(key.wrap_key(passing, mechanism=Mechanism.AES_KEY_WRAP))
    finally:
        passing.destroy()


def _key_unwrapped(key: UnwrapMixin, wrapped: bytes) -> bytes:
    passing = key.unwrap_key(
        ObjectClass.SECRET_KEY,
        KeyType.GENERIC_SECRET,
        wrapped,
        mechanism=Mechanism.AES_KEY_WRAP,
        template=_PASSING_OBJECT,
    )
    try:
        return bytes(passing[Attribute.VALUE])
    finally:
        passing.destroy()


def _key_wrap_round_trip(session: Session, key: SecretKey) -> bool:
    if not (isinstance(key, WrapMixin) and isinstance(key, UnwrapMixin)):
        return True
    probe = os.urandom(binding.BOUND_BYTES)
    return _key_unwrapped(key, _key_wrapped(session, key, probe)) == probe


def _denied(uri: str, action: str, attribute: str) -> KeyAccessDeniedError:
    return KeyAccessDeniedError(
        f"the token does not let {uri} {action}: {attribute} is false",
        hint=f"if that was not on purpose, set {attribute} on the key",
    )
