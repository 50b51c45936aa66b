"""What keys are here: `Secret` holds raw key bytes, `MasterKey` wraps a KEK, `WrappedKey` is the result.

Two one-method promises, `wrap` and `unwrap`, carry every key service.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol, runtime_checkable

KEY_BYTES: Final = 32
"""Length of every DEK, KEK and derived key: 256 bits."""

ID_BYTES: Final = 16
"""Length of every random id (dataset, KEK, file, list, commit): 128 bits, written as 32 hex digits."""

KEY_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
"""What a key name looks like; always used with `fullmatch`."""

SIGNER: Final = re.compile(r"ed25519:[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
"""A signer is named by its public key, 32 bytes in the one canonical base64url; used with `fullmatch`."""


def new_id() -> str:
    """A fresh random id: 32 lower-case hex digits."""
    return secrets.token_hex(ID_BYTES)


def utc_now() -> str:
    """The time as all formats write it: UTC, RFC 3339, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Secret:
    """Raw key bytes that do not leave by accident.

    The repr is redacted; pickle, copy and hashing are refused; comparison takes constant time; the bytes
    are overwritten on `wipe()` and on collection, as far as Python allows (copies made by a C library
    are out of reach).
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes | bytearray | memoryview) -> None:
        self._key = bytearray(key)

    @classmethod
    def random(cls, size: int = KEY_BYTES) -> Secret:
        """A fresh key of `size` bytes from the operating system's generator."""
        return cls(secrets.token_bytes(size))

    def reveal(self) -> bytes:
        """The raw bytes, for a cipher call. Do not store what this returns."""
        return bytes(self._key)

    def wipe(self) -> None:
        """Overwrite the bytes; the secret is empty afterwards."""
        for i in range(len(self._key)):
            self._key[i] = 0
        del self._key[:]

    def __len__(self) -> int:
        return len(self._key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._key, other._key)

    __hash__ = None  # type: ignore[assignment]  # a dict of secrets would compare them in variable time

    def __del__(self) -> None:
        if hasattr(self, "_key"):
            self.wipe()

    def __repr__(self) -> str:
        return f"Secret({len(self._key)} bytes, redacted)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied: pass the master key's URI and unwrap there")

    __reduce_ex__ = _refuse
    __reduce__ = _refuse
    __getstate__ = _refuse
    __copy__ = _refuse
    __deepcopy__ = _refuse


@dataclass(frozen=True)
class KeyContext:
    """What a wrapping is bound to. A wrapping opens only under the context it was made with."""

    dataset_id: str
    key_name: str
    kek_id: str

    def pairs(self) -> dict[str, str]:
        """The context as text pairs, as a KMS takes it (AWS: encryption context)."""
        return {
            "encpipe:wrap": "1",
            "encpipe:dataset-id": self.dataset_id,
            "encpipe:key-name": self.key_name,
            "encpipe:kek-id": self.kek_id,
        }


@dataclass(frozen=True)
class WrappedKey:
    """A KEK wrapped by one master key: public bytes, safe to store and to print.

    `master_key` is the URI that unwraps it, with aliases resolved; `version` is the master key's version
    where the service shows one, else empty; `created` is UTC, RFC 3339. `extra` keeps what a newer version
    stored with the wrapping.
    """

    master_key: str
    blob: bytes
    version: str
    created: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@runtime_checkable
class MasterKey(Protocol):
    """A key that never leaves its service and wraps KEKs.

    Guarantee: `unwrap(wrap(k, aad=c), aad=c) == k`; with any other context, or any other bytes, it raises
    `UnwrapError` and returns nothing. `binds_context` tells whether the service itself authenticates the
    context; where it is False the back end binds it by other means (docs/format.md, "KEK wrapping").

    A wrapping says that somebody who may wrap made it. Keys of which that is not true, as their public half
    is all it takes to wrap (RSA), say so: `public_key_wrap = True`. What they open counts only where a
    signature or a pin vouches for the KEK (`encpipe.keyring`).

    Both raise `KmsUnavailableError`, `KeyAccessDeniedError`, `KeyNotFoundError` or `KmsError`, never an
    error of the service's SDK. Both are safe to call from several threads.
    """

    @property
    def uri(self) -> str:
        """The URI that configs name this key by."""
        ...

    @property
    def binds_context(self) -> bool:
        """Whether the service authenticates the context itself."""
        ...

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """Wrap a 256-bit KEK, bound to `aad`."""
        ...

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """Open a wrapping made by `wrap` under the same context."""
        ...


def is_public_key_wrap(key: MasterKey) -> bool:
    """Whether a wrapping that this master key opens may be anybody's."""
    return bool(getattr(key, "public_key_wrap", False))
