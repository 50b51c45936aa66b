"""What a wrapping by an Azure key is made of. No I/O. Two algorithms, both of AES keys:

    A256GCM   0x01 || iv (12) || ciphertext (32) || tag (16)        encrypt, decrypt
    A256KW    0x02 || AES key wrap of KEK || SHA-256(AAD) (72)      wrapkey, unwrapkey

The AAD is `aead.context_aad`. With A256GCM the service authenticates it; AES key wrap (RFC 3394) has none, so
the hash is wrapped with the KEK and compared when it comes back (docs/format.md, "KEK wrapping").

There is no RSA here, on purpose: the public half is all it takes to wrap, so anybody could forge a wrapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from encpipe import aead
from encpipe.errors import UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, Secret
from encpipe.kms.binding import BOUND_BYTES, bind, unbind

Fields = Mapping[str, bytes]
"""What a request or an answer carries besides names: `value`, `aad`, `iv`, `tag`. Raw bytes."""


@dataclass(frozen=True)
class Ask:
    """One call on one key: the operation, the key's version (empty: the newest) and what to send."""

    uri: str
    operation: str
    version: str
    algorithm: str
    fields: Fields = field(repr=False)

    @property
    def url(self) -> str:
        """Where to send it, without `api-version`."""
        return "/".join(part for part in (_key_id(self.uri), self.version, self.operation) if part)

    @property
    def service(self) -> str:
        """https://HOST or https://HOST:PORT."""
        return _key_id(self.uri).partition("/keys/")[0]

    @property
    def carries_key(self) -> bool:
        """Whether it holds a KEK: then nothing of what is answered may be shown."""
        return self.operation in {algorithm.wrap_with for algorithm in ALGORITHMS.values()}


@dataclass(frozen=True)
class Answer:
    """What the service says: the id of the key version that it used, and bytes."""

    kid: str
    fields: Fields = field(repr=False)


_KEY_WRAP_OVERHEAD: Final = 8
_GCM_SIZES: Final = {"iv": aead.NONCE_BYTES, "value": KEY_BYTES, "tag": aead.TAG_BYTES}


class Algorithm(Protocol):
    """One way to wrap a KEK. `wrap_with` and `unwrap_with` are the service's names of the two operations."""

    @property
    def name(self) -> str: ...
    @property
    def wrap_with(self) -> str: ...
    @property
    def unwrap_with(self) -> str: ...
    @property
    def binds_context(self) -> bool: ...

    def to_wrap(self, kek: Secret, aad: KeyContext) -> Fields:
        """What to send for a wrap. Holds the KEK."""
        ...

    def blob(self, answer: Fields) -> bytes:
        """The wrapping. Raises `ValueError` for an answer that cannot be one."""
        ...

    def to_unwrap(self, blob: bytes, aad: KeyContext) -> Fields:
        """What to send for an unwrap of a blob that `algorithm_of` knows."""
        ...

    def kek(self, answer: Fields, aad: KeyContext, *, uri: str) -> Secret:
        """The KEK. Raises `UnwrapError` for anything but a KEK wrapped under this context."""
        ...


@dataclass(frozen=True)
class _Gcm:
    name: str = "A256GCM"
    head: bytes = b"\x01"
    wrap_with: str = "encrypt"
    unwrap_with: str = "decrypt"
    binds_context: bool = True
    blob_bytes: int = 1 + sum(_GCM_SIZES.values())

    def to_wrap(self, kek: Secret, aad: KeyContext) -> Fields:
        return {"value": kek.reveal(), "aad": aead.context_aad(aad)}

    def blob(self, answer: Fields) -> bytes:
        for part, size in _GCM_SIZES.items():
            if len(answer.get(part, b"")) != size:
                raise ValueError(f"{part!r} has not {size} bytes")
        return self.head + b"".join(answer[part] for part in _GCM_SIZES)

    def to_unwrap(self, blob: bytes, aad: KeyContext) -> Fields:
        fields, start = {"aad": aead.context_aad(aad)}, len(self.head)
        for part, size in _GCM_SIZES.items():
            fields[part] = blob[start : start + size]
            start += size
        return fields

    def kek(self, answer: Fields, aad: KeyContext, *, uri: str) -> Secret:  # noqa: ARG002  # the service compared the context
        opened = Secret(answer.get("value", b""))
        if len(opened) != KEY_BYTES:
            raise UnwrapError(
                f"{uri} opened a wrapping to {len(opened)} bytes, and a KEK has {KEY_BYTES}",
                hint="check that the URI leads to the service you mean",
            )
        return opened


@dataclass(frozen=True)
class _KeyWrap:
    name: str = "A256KW"
    head: bytes = b"\x02"
    wrap_with: str = "wrapkey"
    unwrap_with: str = "unwrapkey"
    binds_context: bool = False
    blob_bytes: int = 1 + BOUND_BYTES + _KEY_WRAP_OVERHEAD

    def to_wrap(self, kek: Secret, aad: KeyContext) -> Fields:
        return {"value": bind(kek, aad)}

    def blob(self, answer: Fields) -> bytes:
        blob = self.head + answer.get("value", b"")
        if len(blob) != self.blob_bytes:
            raise ValueError(f"'value' has not {self.blob_bytes - 1} bytes")
        return blob

    def to_unwrap(self, blob: bytes, aad: KeyContext) -> Fields:  # noqa: ARG002  # compared in `kek`
        return {"value": blob[len(self.head) :]}

    def kek(self, answer: Fields, aad: KeyContext, *, uri: str) -> Secret:
        return unbind(answer.get("value", b""), aad, uri=uri)


_GCM: Final = _Gcm()
_KEY_WRAP: Final = _KeyWrap()

ALGORITHMS: Final[Mapping[str, Algorithm]] = {made.name: made for made in (_GCM, _KEY_WRAP)}
"""By the service's name. The first is the default."""


def algorithm_of(blob: bytes) -> Algorithm | None:
    """The algorithm that made a wrapping, by its first byte and length; None for what none of them made."""
    for algorithm in (_GCM, _KEY_WRAP):
        if blob.startswith(algorithm.head) and len(blob) == algorithm.blob_bytes:
            return algorithm
    return None


def _key_id(uri: str) -> str:
    return uri.partition(":")[2]
