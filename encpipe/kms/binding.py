"""The context of a wrapping where the service has no AAD (docs/format.md, "KEK wrapping")."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from encpipe import aead
from encpipe.errors import UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, Secret

BOUND_BYTES: Final = 2 * KEY_BYTES
"""Length of KEK || SHA-256(AAD)."""


def bind(kek: Secret, context: KeyContext) -> bytes:
    """KEK || SHA-256(AAD): what such a service wraps. Raw key bytes, for one call to the service."""
    return kek.reveal() + _digest(context)


def unbind(bound: bytes, context: KeyContext, *, uri: str) -> Secret:
    """The KEK of what `bind` made. Raises `UnwrapError` for another context, or another length."""
    if len(bound) != BOUND_BYTES or not hmac.compare_digest(bound[KEY_BYTES:], _digest(context)):
        raise UnwrapError(
            f"{uri} opens the wrapping of key name {context.key_name!r} in dataset {context.dataset_id}, "
            "and it was made for another dataset, key name or KEK",
            hint="restore the manifest from a copy you trust",
        )
    return Secret(bound[:KEY_BYTES])


def _digest(context: KeyContext) -> bytes:
    return hashlib.sha256(aead.context_aad(context)).digest()
