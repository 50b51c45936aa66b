"""A key service in memory that counts what it is asked, and a wrapper that makes any service fail."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from encpipe import aead
from encpipe.aead import Label
from encpipe.errors import (
    ConfigError,
    DecryptionError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.keys import KEY_BYTES, KEY_NAME, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Kms

_SCHEME: Final = "memory"
_HEAD_BYTES: Final = 4

KmsFault = Literal["denied", "absent", "unavailable", "error", "damaged", "wrong-key"]
"""What a `FaultyKms` answers: one of the errors, or (`wrong-key`) another key than was wrapped."""


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


class FaultyKms:
    """Any key service, with faults to order: `fail` and `hold` act on every call from then on.

        kms = FaultyKms(InMemoryKms(["a", "b"]))
        kms.fail("denied", "memory:a")         # this key only; without a URI all keys
        kms.fail("unavailable", times=2)       # the next two calls
        with kms.hold() as held: ...           # calls wait inside until the block ends

    `wraps` and `unwraps` count the calls that arrive here, whatever they meet.
    """

    def __init__(self, inner: Kms) -> None:
        self._inner = inner
        self._faults: list[_Ordered] = []
        self._lock = threading.Lock()
        self._hold: Held | None = None
        self.counts = Counts()

    @property
    def wraps(self) -> int:
        return self.counts.wraps

    @property
    def unwraps(self) -> int:
        return self.counts.unwraps

    def fail(self, fault: KmsFault, uri: str | None = None, *, times: int | None = None) -> None:
        """Answer with `fault`, for one key or all, `times` times or until `heal`; the first ordered acts."""
        with self._lock:
            self._faults.append(_Ordered(fault, uri, times))

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def hold(self) -> Held:
        """Make the service slow: calls wait until the returned object is released or its block ends."""
        self._hold = Held()
        return self._hold

    def master_key(self, uri: str) -> MasterKey:
        return _FaultyKey(self, self._inner.master_key(uri))

    def trusts(self, uri: str) -> bool:
        return self._inner.trusts(uri)

    def meet(self, uri: str) -> KmsFault | None:
        """Wait if held; the fault that this call meets."""
        if self._hold is not None:
            self._hold.wait()
        with self._lock:
            for ordered in self._faults:
                if ordered.uri in (None, uri) and ordered.times != 0:
                    if ordered.times is not None:
                        ordered.times -= 1
                    return ordered.fault
        return None


@dataclass
class _Ordered:
    fault: KmsFault
    uri: str | None
    times: int | None


class Held:
    """Calls that wait. `arrived(n)` blocks until `n` of them do, so that a test needs no sleep."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = 0
        self._released = False

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def arrived(self, calls: int = 1, *, timeout: float = 30.0) -> bool:
        """Whether `calls` calls have arrived within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting >= calls, timeout)

    def wait(self) -> None:
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released)


class _FaultyKey:
    def __init__(self, kms: FaultyKms, inner: MasterKey) -> None:
        self._kms = kms
        self._inner = inner

    @property
    def uri(self) -> str:
        return self._inner.uri

    @property
    def binds_context(self) -> bool:
        return self._inner.binds_context

    def __repr__(self) -> str:
        return f"<faulty {self._inner!r}>"

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        self._kms.counts.wrap()
        fault = self._kms.meet(self.uri)
        if fault == "wrong-key":
            return self._inner.wrap(Secret.random(), aad=aad)
        if fault is not None:
            raise _error(fault, self.uri)
        return self._inner.wrap(kek, aad=aad)

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        self._kms.counts.unwrap()
        fault = self._kms.meet(self.uri)
        if fault == "wrong-key":
            return Secret.random()
        if fault is not None:
            raise _error(fault, self.uri)
        return self._inner.unwrap(wrapped, aad=aad)


def _error(fault: KmsFault, uri: str) -> EncpipeError:
    errors: dict[str, type[EncpipeError]] = {
        "denied": KeyAccessDeniedError,
        "absent": KeyNotFoundError,
        "unavailable": KmsUnavailableError,
        "error": KmsError,
        "damaged": UnwrapError,
    }
    return errors[fault](f"{uri}: ordered by a test: {fault}")
