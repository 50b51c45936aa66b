"""Attempts are repeated only where that can help, and nobody waits past the deadline."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from encpipe.errors import EncpipeError, KeyAccessDeniedError, KmsUnavailableError
from encpipe.keys import Secret
from encpipe.kms import deadline
from encpipe.kms.deadline import call_within


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(deadline, "MAX_DELAY", 0.004)


class Flaky:
    """Raises `error` the first `times` times."""

    def __init__(self, times: float, error: Callable[[], BaseException]) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error()
        return "answer"


def outage() -> EncpipeError:
    return KmsUnavailableError("throttled", hint="later")


def test_an_outage_that_passes_is_bridged() -> None:
    flaky = Flaky(3, outage)
    assert call_within(30, "service", flaky) == "answer"
    assert flaky.calls == 4


def test_attempts_are_bounded_and_the_last_error_is_raised() -> None:
    flaky = Flaky(float("inf"), outage)
    with pytest.raises(KmsUnavailableError, match="throttled"):
        call_within(30, "service", flaky)
    assert flaky.calls == deadline.MAX_ATTEMPTS


@pytest.mark.parametrize("error", [KeyAccessDeniedError("no"), RuntimeError("bug"), KeyboardInterrupt()])
def test_anything_but_an_outage_passes_through_at_once(error: BaseException) -> None:
    flaky = Flaky(1, lambda: error)
    with pytest.raises(type(error)) as caught:
        call_within(30, "service", flaky)
    assert caught.value is error
    assert flaky.calls == 1


def test_nobody_waits_for_an_attempt_that_hangs() -> None:
    release, left = threading.Event(), threading.Event()
    key = Secret.random()

    def hang() -> Secret:
        release.wait(30)
        left.set()
        return key

    start = time.monotonic()
    with pytest.raises(KmsUnavailableError, match=r"service did not answer within 0\.05 s") as late:
        call_within(0.05, "service", hang)
    assert time.monotonic() - start < 5
    assert late.value.hint
    release.set()
    assert left.wait(30)


def test_the_error_before_the_hang_is_told() -> None:
    release = threading.Event()

    def hang_at_second() -> None:
        if not flaky.calls:
            flaky()
        release.wait(30)

    flaky = Flaky(1, outage)
    with pytest.raises(KmsUnavailableError, match=r"within 0\.3 s \(before that: throttled\)"):
        call_within(0.3, "service", hang_at_second)
    release.set()


def test_no_attempt_starts_that_would_start_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "FIRST_DELAY", 60)
    monkeypatch.setattr(deadline, "MAX_DELAY", 60)
    flaky = Flaky(float("inf"), outage)
    with pytest.raises(KmsUnavailableError, match="throttled"):
        call_within(20, "service", flaky)
    assert flaky.calls == 1


def busy(seconds: float) -> Callable[[], EncpipeError]:
    def make() -> EncpipeError:
        error = KmsUnavailableError("throttled", hint="later")
        error.retry_after = seconds
        return error

    return make


def test_a_service_is_left_alone_for_as_long_as_it_asks() -> None:
    flaky, start = Flaky(1, busy(0.2)), time.monotonic()
    assert call_within(30, "service", flaky) == "answer"
    assert 0.2 <= time.monotonic() - start < 10
    assert flaky.calls == 2


def test_a_service_that_asks_for_more_than_is_left_is_not_tried_again() -> None:
    flaky, start = Flaky(1, busy(60)), time.monotonic()
    with pytest.raises(KmsUnavailableError, match="throttled"):
        call_within(30, "service", flaky)
    assert time.monotonic() - start < 10
    assert flaky.calls == 1


def test_its_thread_is_gone_when_it_returns() -> None:
    """From the system, too: a child forked now must not find a lock that the thread took while it ended."""

    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))  # noqa: PTH208  # names, not paths

    before = threads()
    for _ in range(200):
        assert call_within(5, "x", lambda: 1) == 1
        assert threads() <= before


class Slow:
    """Refuses, after `seconds` by the clock that `deadline` sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.seconds, self.calls, self.now = seconds, 0, 0.0
        monkeypatch.setattr(deadline, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def __call__(self) -> str:
        self.calls += 1
        self.now += self.seconds
        raise KeyAccessDeniedError("no")


def test_all_tries_of_one_key_share_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch, 6)
    with deadline.one_deadline():
        for _ in range(4):
            with pytest.raises(KeyAccessDeniedError):
                call_within(20, "one", slow)
        for _ in range(60):
            with deadline.one_deadline(), pytest.raises(KmsUnavailableError, match="left out") as late:
                call_within(20, "one", slow)
        assert slow.calls == 4
        assert late.value.hint
        with pytest.raises(KeyAccessDeniedError):  # a second region has a deadline of its own
            call_within(20, "other", slow)
    with pytest.raises(KeyAccessDeniedError):
        call_within(20, "one", slow)


def test_a_call_ends_by_the_deadline_that_others_began() -> None:
    release, start = threading.Event(), time.monotonic()
    with deadline.one_deadline():
        assert call_within(0.2, "one", lambda: 1) == 1
        with pytest.raises(KmsUnavailableError):
            call_within(60, "one", lambda: release.wait(60))
    release.set()
    assert time.monotonic() - start < 30
