"""What a wrapping by an Azure key is made of. No I/O. Two algorithms of AES keys, and one of RSA keys:

    A256GCM        0x01 || iv (12) || ciphertext (32) || tag (16)                     encrypt, decrypt
    A256KW         0x02 || AES key wrap of KEK || SHA-256(AAD) (72)                   wrapkey, unwrapkey
    RSA-OAEP-256   0x03 || RSA-OAEP of KEK || SHA-256(AAD) (256, 384 or 512)          wrapkey, unwrapkey

The AAD is `aead.context_aad`. With A256GCM the service authenticates it; AES key wrap (RFC 3394) and OAEP
(RFC 8017, SHA-256 for hash and MGF1) have none that it would take, so the hash is wrapped with the KEK and
compared when it comes back (docs/format.md, "KEK wrapping").

With RSA the public half is all it takes to wrap, so anybody can make a wrapping (`public_key_wrap`).
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
RSA_BYTES: Final = (256, 384, 512)
"""Length of the modulus: the RSA keys of 2,048, 3,072 and 4,096 bits that Azure has."""
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
    @property
    def public_key_wrap(self) -> bool: ...

    def made(self, blob: bytes) -> bool:
        """Whether a wrapping has this algorithm's first byte and length."""
        ...

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
    public_key_wrap: bool = False
    blob_bytes: int = 1 + sum(_GCM_SIZES.values())

    def made(self, blob: bytes) -> bool:
        return blob.startswith(self.head) and len(blob) == self.blob_bytes

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
    """AES key wrap, and RSA-OAEP, which the service takes in the same way. `sizes`: of what it answers."""

    name: str
    head: bytes
    sizes: tuple[int, ...]
    public_key_wrap: bool = False
    wrap_with: str = "wrapkey"
    unwrap_with: str = "unwrapkey"
    binds_context: bool = False

    def made(self, blob: bytes) -> bool:
        return blob.startswith(self.head) and len(blob) - len(self.head) in self.sizes

    def to_wrap(self, kek: Secret, aad: KeyContext) -> Fields:
        return {"value": bind(kek, aad)}

    def blob(self, answer: Fields) -> bytes:
        blob = self.head + answer.get("value", b"")
        if not self.made(blob):
            raise ValueError(f"'value' has none of {self.sizes} bytes")
        return blob

    def to_unwrap(self, blob: bytes, aad: KeyContext) -> Fields:  # noqa: ARG002  # compared in `kek`
        return {"value": blob[len(self.head) :]}

    def kek(self, answer: Fields, aad: KeyContext, *, uri: str) -> Secret:
        return unbind(answer.get("value", b""), aad, uri=uri)


_GCM: Final = _Gcm()
_KEY_WRAP: Final = _KeyWrap("A256KW", b"\x02", (BOUND_BYTES + _KEY_WRAP_OVERHEAD,))
_RSA: Final = _KeyWrap("RSA-OAEP-256", b"\x03", RSA_BYTES, public_key_wrap=True)

ALGORITHMS: Final[Mapping[str, Algorithm]] = {made.name: made for made in (_GCM, _KEY_WRAP, _RSA)}
"""By the service's name. The first is the default."""


def algorithm_of(blob: bytes) -> Algorithm | None:
    """The algorithm that made a wrapping, by its first byte and length; None for what none of them made."""
    return next((algorithm for algorithm in ALGORITHMS.values() if algorithm.made(blob)), None)


def _key_id(uri: str) -> str:
    return uri.partition(":")[2]
