"""A key service in memory that counts what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from encpipe import aead
from encpipe.aead import Label
from encpipe.errors import (
    ConfigError,
    DecryptionError,
    KeyNotFoundError,
    UnwrapError,
)
from encpipe.keys import KEY_BYTES, KEY_NAME, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Destroyed

_SCHEME: Final = "memory"
_HEAD_BYTES: Final = 4


@dataclass
class Counts:
    """Calls so far, failed ones included."""

    wraps: int = 0
    unwraps: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def wrap(self) -> None:
        with self._lock:
            self.wraps += 1

    def unwrap(self) -> None:
        with self._lock:
            self.unwraps += 1


class InMemoryKms:
    """Master keys `memory:NAME` that live as long as this object. The cryptography is real.

    Pass it as `MasterKeys(config, extra={"memory": kms})`. `trusted=True` makes it vouch for its own names,
    as the local keyring does. `wraps` and `unwraps` count calls, also those that are refused.
    """

    def __init__(self, names: Iterable[str] = ("default",), *, trusted: bool = False) -> None:
        self._trusted = trusted
        self._keys: dict[str, dict[int, Secret]] = {}
        self._lock = threading.Lock()
        self.counts = Counts()
        for name in names:
            self.create(name)

    @property
    def wraps(self) -> int:
        return self.counts.wraps

    @property
    def unwraps(self) -> int:
        return self.counts.unwraps

    def create(self, name: str) -> MasterKey:
        """A new master key."""
        key = self.master_key(f"{_SCHEME}:{name}")
        with self._lock:
            self._keys[name] = {1: Secret.random()}
        return key

    def rotate(self, name: str) -> None:
        """A new version; the ones before still unwrap."""
        with self._lock:
            self._keys[name][max(self._keys[name]) + 1] = Secret.random()

    def forget(self, name: str) -> None:
        """Destroy a master key: what it wrapped is lost."""
        with self._lock:
            del self._keys[name]

    def master_key(self, uri: str) -> MasterKey:
        """The master key of `memory:NAME`, whether or not there is one."""
        scheme, _, name = uri.partition(":")
        if scheme != _SCHEME or not KEY_NAME.fullmatch(name):
            raise ConfigError(f"{uri[:80]!r} does not name an in-memory key", hint="write memory:NAME")
        return _MemoryKey(self, name)

    def trusts(self, uri: str) -> bool:
        scheme, _, name = uri.partition(":")
        return self._trusted and scheme == _SCHEME and name in self._keys

    def versions(self, name: str) -> dict[int, Secret]:
        """All versions of a master key. Raises `KeyNotFoundError`."""
        with self._lock:
            if name not in self._keys:
                raise KeyNotFoundError(f"there is no in-memory key {name!r}")
            return dict(self._keys[name])


class _MemoryKey:
    """Wrapping: version (u32) || nonce || ciphertext || tag; AAD = the first 4 bytes, name and context."""

    binds_context = True

    def __init__(self, kms: InMemoryKms, name: str) -> None:
        self._kms = kms
        self._name = name

    @property
    def uri(self) -> str:
        return f"{_SCHEME}:{self._name}"

    def __repr__(self) -> str:
        return f"<in-memory key {self.uri}>"

    def newest_version(self) -> str:
        """The version that wraps."""
        return str(max(self._kms.versions(self._name)))

    def check_destroyable(self) -> None:
        """Raise `KeyNotFoundError`."""
        self._kms.versions(self._name)

    def destroy(self) -> Destroyed:
        """Destroy all versions. Raises `KeyNotFoundError`."""
        self.check_destroyable()
        self._kms.forget(self._name)
        return Destroyed(self.uri)

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        self._kms.counts.wrap()
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")
        version, key = max(self._kms.versions(self._name).items(), key=lambda item: item[0])
        head = version.to_bytes(_HEAD_BYTES, "big")
        blob = head + aead.seal(key, kek.reveal(), aad=self._aad(head, aad))
        return WrappedKey(self.uri, blob, str(version), utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        self._kms.counts.unwrap()
        versions = self._kms.versions(self._name)
        head, sealed = wrapped.blob[:_HEAD_BYTES], wrapped.blob[_HEAD_BYTES:]
        key = versions.get(int.from_bytes(head, "big"))
        if key is None or len(sealed) != aead.SEAL_OVERHEAD + KEY_BYTES:
            raise UnwrapError(f"{self.uri} made no such wrapping")
        try:
            return Secret(aead.open_sealed(key, sealed, aad=self._aad(head, aad)))
        except DecryptionError:
            raise UnwrapError(f"{self.uri} does not open this wrapping") from None

    def _aad(self, head: bytes, context: KeyContext) -> bytes:
        return aead.encode_aad(Label.LOCAL_WRAP, head, self.uri.encode(), aead.context_aad(context))
