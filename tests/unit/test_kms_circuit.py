"""A key service that is out is left alone, tried again once, and taken back when it answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from encpipe.errors import EncpipeError, KeyAccessDeniedError, KmsUnavailableError
from encpipe.kms import circuit, deadline
from encpipe.kms.deadline import call_within


class Clock:
    """Stands in for the monotonic clock of the circuit."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(circuit, "time", made)
    return made


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "MAX_ATTEMPTS", 1)


class Service:
    """Answers, or raises what `error` makes; counts."""

    def __init__(self) -> None:
        self.error: Callable[[], BaseException] | None = out
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error()
        return "answer"


def out(retry_after: float = 0.0, *, of_service: bool = True) -> EncpipeError:
    error = KmsUnavailableError("no answer", hint="later")
    error.retry_after, error.of_service = retry_after, of_service
    return error


@pytest.fixture
def service() -> Service:
    return Service()


def fail(service: Service, times: int, name: str = "the service") -> KmsUnavailableError:
    for _ in range(times):
        with pytest.raises(KmsUnavailableError) as caught:
            call_within(30, name, service)
    return caught.value


def test_after_outages_in_a_row_it_is_not_asked_until_the_pause_is_over(
    clock: Clock, service: Service
) -> None:
    fail(service, circuit.OUTAGES)
    refused = fail(service, 5)
    assert service.calls == circuit.OUTAGES
    assert refused.code == "kms-unavailable"
    assert "the service is not asked for another 10 s: 3 calls in a row" in refused.message
    assert "no answer" in refused.message
    assert refused.hint
    assert refused.retry_after == circuit.PAUSE_SECONDS
    clock.now += circuit.PAUSE_SECONDS
    service.error = None
    assert call_within(30, "the service", service) == "answer"
    fail_once_more(service)


def fail_once_more(service: Service) -> None:
    """The count began anew."""
    service.error, before = out, service.calls
    fail(service, circuit.OUTAGES + 1)
    assert service.calls == before + circuit.OUTAGES


def test_one_failed_try_after_the_pause_starts_the_next_pause(clock: Clock, service: Service) -> None:
    fail(service, circuit.OUTAGES)
    clock.now += circuit.PAUSE_SECONDS
    fail(service, 3)
    assert service.calls == circuit.OUTAGES + 1


def test_only_one_call_tries_while_the_others_fail(clock: Clock, service: Service) -> None:
    fail(service, circuit.OUTAGES)
    clock.now += circuit.PAUSE_SECONDS
    arrived, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        arrived.set()
        go_on.wait(30)
        return "answer"

    with ThreadPoolExecutor(1) as thread:
        trying = thread.submit(call_within, 30, "the service", slow)
        assert arrived.wait(30)
        fail(service, 2)
        go_on.set()
        assert trying.result(30) == "answer"
    assert service.calls == circuit.OUTAGES
    service.error = None
    assert call_within(30, "the service", service) == "answer"


def test_the_service_says_how_long(clock: Clock, service: Service) -> None:
    service.error = lambda: out(60)
    fail(service, circuit.OUTAGES)
    clock.now += 59
    fail(service, 1)
    assert service.calls == circuit.OUTAGES
    clock.now += 2
    fail(service, 1)
    assert service.calls == circuit.OUTAGES + 1
    service.error = lambda: out(1e9)
    clock.now += 61
    fail(service, 1)
    clock.now += circuit.MAX_PAUSE_SECONDS + 1
    service.error = None
    assert call_within(30, "the service", service) == "answer"


@pytest.mark.parametrize("answer", [lambda: KeyAccessDeniedError("no"), lambda: out(of_service=False)])
def test_a_refusal_and_an_outage_of_one_key_are_answers(
    service: Service, answer: Callable[[], EncpipeError]
) -> None:
    for _ in range(3):
        service.error = out
        fail(service, circuit.OUTAGES - 1)
        service.error = answer
        with pytest.raises(EncpipeError):
            call_within(30, "the service", service)
    service.error = answer
    for _ in range(circuit.OUTAGES + 1):
        with pytest.raises(EncpipeError):
            call_within(30, "the service", service)
    assert service.calls == 3 * circuit.OUTAGES + circuit.OUTAGES + 1


def test_what_says_nothing_of_the_service_changes_nothing(clock: Clock, service: Service) -> None:
    fail(service, circuit.OUTAGES - 1)
    service.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        call_within(30, "the service", service)
    service.error = out
    fail(service, 2)
    assert service.calls == circuit.OUTAGES + 1
    clock.now += circuit.PAUSE_SECONDS
    service.error = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        call_within(30, "the service", service)
    service.error = None
    assert call_within(30, "the service", service) == "answer"


def test_services_are_told_apart(service: Service) -> None:
    fail(service, circuit.OUTAGES + 1, "one")
    service.error = None
    assert call_within(30, "other", service) == "answer"


def test_a_forked_child_goes_on_with_what_is_known(service: Service) -> None:
    fail(service, circuit.OUTAGES)
    known = circuit.CIRCUITS.get().of("the service")
    with known.lock:  # as if another thread were in it
        child = circuit.CIRCUITS.get().inherited().of("the service")
        assert (child.outages, child.again) == (known.outages, known.again)
        assert not child.lock.locked()


def test_a_call_from_a_forked_child_fails_at_once_too(service: Service) -> None:
    fail(service, circuit.OUTAGES)
    if (child := os.fork()) == 0:
        try:
            call_within(30, "the service", service)
        except KmsUnavailableError:
            os._exit(0 if service.calls == circuit.OUTAGES else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
