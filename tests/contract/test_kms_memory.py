"""The in-memory key service obeys the contract, and the faulty one does while it is healthy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from encpipe.config import Config
from encpipe.errors import (
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UntrustedKeyError,
    UnwrapError,
)
from encpipe.keys import KeyContext, MasterKey, Secret
from encpipe.kms import Kms, MasterKeys
from encpipe.testing import FaultyKms, InMemoryKms, KmsContract

CONTEXT = KeyContext("0" * 32, "footer", "1" * 32)


class TestInMemoryKms(KmsContract):
    malformed_uris = ("memory:", "memory:A", "memory:a/b", "local:a", "memory", "")
    destroys = True

    @pytest.fixture
    def kms(self) -> Kms:
        return InMemoryKms(["one", "two"])

    @pytest.fixture
    def master_key(self, kms: Kms) -> MasterKey:
        return kms.master_key("memory:one")

    @pytest.fixture
    def other_master_key(self, kms: Kms) -> MasterKey:
        return kms.master_key("memory:two")

    @pytest.fixture
    def doomed_master_key(self, other_master_key: MasterKey) -> MasterKey:
        return other_master_key


class TestHealthyFaultyKms(TestInMemoryKms):
    destroys = False

    @pytest.fixture
    def kms(self) -> Kms:
        return FaultyKms(InMemoryKms(["one", "two"]))


def test_calls_are_counted_by_all_threads() -> None:
    kms = InMemoryKms(["a"])
    key = kms.master_key("memory:a")
    wrapped = key.wrap(Secret.random(), aad=CONTEXT)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: key.unwrap(wrapped, aad=CONTEXT), range(200)))
    assert (kms.wraps, kms.unwraps) == (1, 200)


def test_old_versions_unwrap_after_a_rotation() -> None:
    kms, kek = InMemoryKms(["a"]), Secret.random()
    key = kms.master_key("memory:a")
    old = key.wrap(kek, aad=CONTEXT)
    kms.rotate("a")
    new = key.wrap(kek, aad=CONTEXT)
    assert (old.version, new.version) == ("1", "2")
    assert key.unwrap(old, aad=CONTEXT) == key.unwrap(new, aad=CONTEXT) == kek


def test_a_forgotten_key_is_not_found() -> None:
    kms = InMemoryKms(["a"])
    wrapped = kms.master_key("memory:a").wrap(Secret.random(), aad=CONTEXT)
    kms.forget("a")
    with pytest.raises(KeyNotFoundError):
        kms.master_key("memory:a").unwrap(wrapped, aad=CONTEXT)


def test_names_are_trusted_only_when_told_to() -> None:
    with pytest.raises(UntrustedKeyError):
        MasterKeys(Config(), extra={"memory": InMemoryKms(["a"])}).get("memory:a", key_name="footer")
    trusted = InMemoryKms(["a"], trusted=True)
    keys = MasterKeys(Config(), extra={"memory": trusted})
    assert keys.get("memory:a", key_name="footer").uri == "memory:a"
    assert not trusted.trusts("memory:b")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("denied", KeyAccessDeniedError),
        ("absent", KeyNotFoundError),
        ("unavailable", KmsUnavailableError),
        ("error", KmsError),
        ("damaged", UnwrapError),
    ],
)
def test_faults_raise_their_errors_until_healed(fault: str, error: type[EncpipeError]) -> None:
    kms = FaultyKms(InMemoryKms(["a"]))
    key, kek = kms.master_key("memory:a"), Secret.random()
    wrapped = key.wrap(kek, aad=CONTEXT)
    kms.fail(fault)
    for call in (lambda: key.unwrap(wrapped, aad=CONTEXT), lambda: key.wrap(kek, aad=CONTEXT)):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
    kms.heal()
    assert key.unwrap(wrapped, aad=CONTEXT) == kek
    assert (kms.wraps, kms.unwraps) == (2, 2)


def test_a_fault_may_hit_one_key_a_number_of_times() -> None:
    kms = FaultyKms(InMemoryKms(["a", "b"]))
    kms.fail("unavailable", "memory:a", times=2)
    kms.master_key("memory:b").wrap(Secret.random(), aad=CONTEXT)
    for _ in range(2):
        with pytest.raises(KmsUnavailableError):
            kms.master_key("memory:a").wrap(Secret.random(), aad=CONTEXT)
    kms.master_key("memory:a").wrap(Secret.random(), aad=CONTEXT)


def test_a_wrong_key_is_answered_on_demand() -> None:
    kms, kek = FaultyKms(InMemoryKms(["a"])), Secret.random()
    key = kms.master_key("memory:a")
    wrapped = key.wrap(kek, aad=CONTEXT)
    kms.fail("wrong-key", times=1)
    assert key.unwrap(wrapped, aad=CONTEXT) != kek
    kms.fail("wrong-key", times=1)
    other = key.wrap(kek, aad=CONTEXT)
    assert key.unwrap(other, aad=CONTEXT) != kek


def test_held_calls_wait_until_released() -> None:
    kms, kek = FaultyKms(InMemoryKms(["a"])), Secret.random()
    key = kms.master_key("memory:a")
    with ThreadPoolExecutor(2) as threads, kms.hold() as held:
        calls = [threads.submit(key.wrap, kek, aad=CONTEXT) for _ in range(2)]
        assert held.arrived(2)
        assert not any(call.done() for call in calls)
        held.release()
        assert {call.result(30).master_key for call in calls} == {"memory:a"}
