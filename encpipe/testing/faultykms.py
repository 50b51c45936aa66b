"""A wrapper that makes any key service fail."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

from encpipe.errors import (
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.base import Kms
from encpipe.testing.memory import Counts

KmsFault = Literal["denied", "absent", "unavailable", "error", "damaged", "wrong-key"]
"""What a `FaultyKms` answers: one of the errors, or (`wrong-key`) another key than was wrapped."""


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
