"""One call to a key service: retried where that can help, and over when its deadline is.

A service that is out is not called (`circuit`), and all tries of one key share one deadline.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Generic, TypeVar

from encpipe.errors import EncpipeError, KmsUnavailableError
from encpipe.kms.circuit import asking

MAX_ATTEMPTS: Final = 8
FIRST_DELAY: Final = 0.1
"""Seconds; doubled with every attempt, and drawn between half and all of it so that a fleet spreads out."""
MAX_DELAY: Final = 2.0
END_SECONDS: Final = 1.0
"""How long a thread that has nothing left to do may take to end. It takes a millisecond."""

Answer = TypeVar("Answer")

_ENDS: Final[ContextVar[dict[str, float] | None]] = ContextVar("encpipe-kms-ends", default=None)
"""Within `one_deadline`: service -> when calls to it have to be over, on the monotonic clock."""


@contextlib.contextmanager
def one_deadline() -> Iterator[None]:
    """Within the block, all calls that this thread makes to one service end by the deadline of the first.

    So a KEK with many wrappings that do not open costs no more time than one. Blocks may be nested.
    """
    if _ENDS.get() is not None:
        yield
        return
    token = _ENDS.set({})
    try:
        yield
    finally:
        _ENDS.reset(token)


@dataclass(eq=False)
class _Call(Generic[Answer]):
    """One call's state, shared by who waits and the thread that works."""

    attempt: Callable[[], Answer]
    ends: float
    over: threading.Event = field(default_factory=threading.Event)  # nobody waits any more
    done: threading.Event = field(default_factory=threading.Event)
    answer: list[Answer] = field(default_factory=list)
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer.append(self._tries())
        except BaseException as error:  # noqa: BLE001  # handed to the waiting thread, which raises it
            self.error = error.with_traceback(None)
        if self.over.is_set():
            self.answer.clear()  # it may be a key, and nobody takes it
        self.done.set()

    def _tries(self) -> Answer:
        draw = random.SystemRandom()
        for tried in range(MAX_ATTEMPTS):
            try:
                return self.attempt()
            except KmsUnavailableError as error:
                self.error, asked = error, error.retry_after
            delay = max(draw.uniform(0.5, 1) * min(FIRST_DELAY * 2**tried, MAX_DELAY), asked)
            if tried + 1 == MAX_ATTEMPTS or time.monotonic() + delay > self.ends or self.over.wait(delay):
                break
        assert self.error is not None
        raise self.error


def call_within(seconds: float, service: str, attempt: Callable[[], Answer]) -> Answer:
    """What `attempt` returns, tried up to `MAX_ATTEMPTS` times while it raises `KmsUnavailableError`.

    Every other error passes through at once. The next try waits for the error's `retry_after`, and there is
    none if that ends too late. After `seconds` in all it raises `KmsUnavailableError`, whatever the attempt
    is stuck in (name resolution, a server that sends one byte a second, a credential process); for that the
    attempts run in a thread of their own, which is left behind. `service` is for the message, and tells the
    services of `one_deadline` and `circuit` apart: both may end a call before it is made.
    """
    ends = _ends(seconds, service)
    with asking(service):
        return _call(ends, seconds, service, attempt)


def _ends(seconds: float, service: str) -> float:
    """When the call has to be over. Raises `KmsUnavailableError` where that is past."""
    now, shared = time.monotonic(), _ENDS.get()
    ends = now + seconds if shared is None else shared.setdefault(service, now + seconds)
    if ends <= now:
        raise KmsUnavailableError(
            f"{service}: the tries of one key took longer than {seconds:g} s, and the others were left out",
            hint="wrapped keys are safe; remove wrappings that nobody needs (encpipe revoke), or raise the "
            "deadline in the configuration",
        )
    return ends


def _call(ends: float, seconds: float, service: str, attempt: Callable[[], Answer]) -> Answer:
    call, left = _Call(attempt, ends), ends - time.monotonic()
    work = threading.Thread(target=call.run, name="encpipe-kms", daemon=True)
    work.start()
    try:
        done = call.done.wait(left)
    finally:
        call.over.set()
    if done:
        _see_off(work)
    if done and call.answer:
        return call.answer.pop()
    if done and call.error is not None:
        error, call.error = call.error, None
        try:
            raise error
        finally:
            del error  # it holds this frame, and with it what the attempt needed
    last = f" (before that: {call.error.message})" if isinstance(call.error, EncpipeError) else ""
    raise KmsUnavailableError(
        f"{service} did not answer within {seconds:g} s{last}",
        hint="try again later, check the network, or raise the deadline in the configuration",
    )


def _see_off(thread: threading.Thread) -> None:
    """Return when a finished thread is gone from the system, not only from Python.

    The last that it does is to free what OpenSSL keeps for it, under locks of OpenSSL. A process forked at
    that moment would find them locked for ever, at its first connection.
    """
    end = time.monotonic() + END_SECONDS
    thread.join(END_SECONDS)
    task = Path(f"/proc/self/task/{thread.native_id}")
    while task.exists() and time.monotonic() < end:
        time.sleep(0.0001)
