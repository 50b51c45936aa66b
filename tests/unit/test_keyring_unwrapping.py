"""`DatasetKeys`: when a key service is asked, for which wrapping, how often, and what a failure means."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from scene import ended, forked
from specimen import DATASET_ID, KEK_IDS, master_keys, record

from encpipe.audit import OFF
from encpipe.config import Config
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    IntegrityError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    ManifestError,
    MissingExtraError,
    ShreddedError,
    StorageError,
    UntrustedKeyError,
    UnwrapError,
)
from encpipe.keyring import RENEWAL_PAUSE_SECONDS, DatasetKeys
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import KekRecord, check_commitment
from encpipe.testing import FaultyKms, InMemoryKms
from encpipe.testing.faultykms import KmsFault

PII = KEK_IDS["pii"]
CONTEXT = KeyContext(DATASET_ID, "pii", PII)
NAMES = ("a", "b", "c")
ALL = tuple(f"memory:{name}" for name in NAMES)


class World:
    """One KEK with a wrapping under each of three master keys, and a key service that can fail."""

    def __init__(self) -> None:
        self.inner = InMemoryKms(NAMES)
        self.kms = FaultyKms(self.inner)
        self.kek = Secret.random()
        self.record = record("pii", self.kek)
        self.wrapped = [self.inner.master_key(uri).wrap(self.kek, aad=CONTEXT) for uri in ALL]
        self.now = 1000.0

    def keys(
        self,
        *,
        trusted: Sequence[str] = ALL,
        wrappings: Iterable[WrappedKey] | None = None,
        state: str = "active",
        **settings: Any,
    ) -> DatasetKeys:
        held = KekRecord(**{**vars(self.record), "state": state})
        settings = {"check": lambda _, kek: check_commitment(held, kek), **settings}
        return DatasetKeys(
            DATASET_ID,
            [held],
            {PII: self.wrapped if wrappings is None else wrappings},
            settings.pop("master_keys", None) or master_keys(self.kms, *trusted),
            settings.pop("check"),
            clock=lambda: self.now,
            **settings,
        )


@pytest.fixture
def world() -> World:
    return World()


# Counts


def test_a_kek_is_asked_for_once_and_lazily(world: World) -> None:
    keys = world.keys()
    assert world.kms.unwraps == 0
    for _ in range(3):
        assert keys.kek(PII) == world.kek
    assert (keys.unwraps, keys.refusals, world.kms.unwraps) == (1, 0, 1)


def test_an_unknown_kek_is_refused_without_a_call(world: World) -> None:
    with pytest.raises(UnwrapError, match="no KEK") as refused:
        world.keys().kek("x" * 100_000)
    assert len(str(refused.value)) < 200
    assert world.kms.unwraps == 0


def test_a_kek_that_was_made_here_is_not_asked_for(world: World) -> None:
    keys = world.keys()
    keys.put(PII, world.kek)
    assert keys.kek(PII) is world.kek
    assert (keys.unwraps, world.kms.unwraps) == (0, 0)


def test_only_failures_are_counted_as_refusals(world: World) -> None:
    world.kms.fail("denied", "memory:a")
    keys = world.keys()
    keys.kek(PII)
    assert (keys.unwraps, keys.refusals, world.kms.unwraps) == (1, 1, 2)


# Threads


def run_together(world: World, keys: DatasetKeys, threads: int) -> list[Secret | EncpipeError]:
    """Call `kek` from many threads while the service is held until they all wait."""

    def call() -> Secret | EncpipeError:
        try:
            return keys.kek(PII)
        except EncpipeError as error:
            return error

    waiting = threading.Semaphore(0)
    keys._held[PII].lock = _TellingLock(waiting)  # type: ignore[assignment]  # tells who waits
    with ThreadPoolExecutor(threads) as pool, world.kms.hold() as held:
        futures = [pool.submit(call) for _ in range(threads)]
        assert held.arrived()
        for _ in range(threads):
            assert waiting.acquire(timeout=30)
        held.release()
        return [future.result(timeout=30) for future in futures]


class _TellingLock:
    """A lock that tells when somebody is about to take it."""

    def __init__(self, arrivals: threading.Semaphore) -> None:
        self._lock, self._arrivals = threading.Lock(), arrivals

    def __enter__(self) -> None:
        self._arrivals.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_many_threads_share_one_call(world: World) -> None:
    keys = world.keys()
    found = run_together(world, keys, 8)
    assert all(kek is found[0] for kek in found)
    assert (keys.unwraps, world.kms.unwraps) == (1, 1)


def test_many_threads_share_one_failure(world: World) -> None:
    """Each waiting out its own deadline would take minutes with sixteen threads."""
    world.kms.fail("unavailable")
    keys = world.keys()
    found = run_together(world, keys, 8)
    assert [type(error) for error in found] == [KmsUnavailableError] * 8
    assert len({id(error) for error in found}) == 8
    assert len({str(error) for error in found}) == 1
    assert (keys.unwraps, keys.refusals, world.kms.unwraps) == (0, 3, 3)


def test_a_failure_is_not_remembered(world: World) -> None:
    world.kms.fail("unavailable")
    keys = world.keys()
    for _ in range(2):
        with pytest.raises(KmsUnavailableError):
            keys.kek(PII)
    world.kms.heal()
    assert keys.kek(PII) == world.kek


def test_a_kept_failure_holds_no_traceback(world: World) -> None:
    """A traceback keeps frames alive, and these hold keys."""
    wrong = world.keys(check=_refuse)
    with pytest.raises(ManifestError):
        wrong.kek(PII)
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is ManifestError and o.message == "refused here"]


def _refuse(kek_id: str, kek: Secret) -> None:
    raise ManifestError("refused here")


# Order and trust


def test_wrappings_are_tried_in_the_order_of_the_configuration(world: World) -> None:
    order: list[str] = []

    class Source:
        def __init__(self) -> None:
            self.keys = master_keys(world.kms, "memory:c", "memory:a")
            self.audit = OFF

        def rank(self, uri: str, *, key_name: str) -> int:
            return self.keys.rank(uri, key_name=key_name)

        def get(self, uri: str, *, key_name: str) -> MasterKey:
            order.append(uri)
            return self.keys.get(uri, key_name=key_name)

    world.kms.fail("denied")
    with pytest.raises(KeyAccessDeniedError):
        world.keys(master_keys=Source()).kek(PII)
    assert order == ["memory:c", "memory:a", "memory:b"]


def test_any_one_wrapping_opens(world: World) -> None:
    for uri in ALL:
        assert world.keys(trusted=[uri]).kek(PII) == world.kek
    for name in ("a", "b"):
        world.inner.forget(name)
    assert world.keys().kek(PII) == world.kek


def test_a_key_that_is_not_trusted_is_never_asked(world: World) -> None:
    keys = world.keys(trusted=["memory:b"])
    assert keys.kek(PII) == world.kek
    assert (keys.unwraps, keys.refusals, world.kms.unwraps) == (1, 0, 1)
    nobody = world.keys(trusted=[])
    with pytest.raises(UntrustedKeyError, match="memory:a"):
        nobody.kek(PII)
    assert (nobody.unwraps, nobody.refusals, world.kms.unwraps) == (0, 0, 1)


def test_a_forged_kek_under_a_foreign_master_key_is_not_looked_at(world: World) -> None:
    mallory = InMemoryKms(["mallory"]).master_key("memory:mallory").wrap(Secret.random(), aad=CONTEXT)
    with pytest.raises(UntrustedKeyError, match="memory:mallory"):
        world.keys(wrappings=[mallory]).kek(PII)
    assert world.kms.unwraps == 0
    assert world.keys(wrappings=[mallory, *world.wrapped]).kek(PII) == world.kek


def test_a_forged_kek_under_a_trusted_master_key_does_not_fit_its_commitment(world: World) -> None:
    forged = world.inner.master_key("memory:a").wrap(Secret.random(), aad=CONTEXT)
    keys = world.keys(wrappings=[forged])
    with pytest.raises(UnwrapError, match="another KEK") as refused:
        keys.kek(PII)
    assert refused.value.code == "kek-commitment"
    assert (keys.unwraps, keys.refusals) == (0, 1)
    assert world.keys(wrappings=[forged, world.wrapped[1]]).kek(PII) == world.kek


def test_a_wrapping_of_another_place_does_not_open(world: World) -> None:
    master = world.inner.master_key("memory:a")
    for context in (
        KeyContext("e" * 32, "pii", PII),
        KeyContext(DATASET_ID, "footer", PII),
        KeyContext(DATASET_ID, "pii", "0" * 32),
    ):
        with pytest.raises(UnwrapError):
            world.keys(wrappings=[master.wrap(world.kek, aad=context)]).kek(PII)


def test_a_kek_of_another_length_is_refused(world: World) -> None:
    class Short:
        uri, binds_context = "memory:a", True

        def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
            raise NotImplementedError

        def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
            return Secret(b"short")

    with pytest.raises(UnwrapError, match="no 256-bit key"):
        world.keys(master_keys=_Fixed(lambda _, **__: Short()), check=lambda *_: None).kek(PII)


class _Fixed:
    def __init__(self, get: Callable[..., MasterKey]) -> None:
        self.get = get
        self.audit = OFF

    def rank(self, uri: str, *, key_name: str) -> int:
        return 0


def test_what_is_refused_by_the_check_is_never_held(world: World) -> None:
    keys = world.keys(check=_refuse)
    for _ in range(2):
        with pytest.raises(ManifestError, match="refused here"):
            keys.kek(PII)
    assert keys.unwraps == 0


# Failures


def test_shredded_needs_no_call(world: World) -> None:
    for keys in (world.keys(state="shredded"), world.keys(wrappings=[])):
        with pytest.raises(ShreddedError, match="'pii' were shredded") as refused:
            keys.kek(PII)
        assert refused.value.hint
    assert world.kms.unwraps == 0


def test_a_shredded_kek_is_not_revived_by_a_wrapping_put_back(world: World) -> None:
    with pytest.raises(ShreddedError):
        world.keys(state="shredded", wrappings=world.wrapped).kek(PII)


# For each set of failures, the one that is reported. `on_missing_key` acts on a denied, absent or untrusted
# key, so these are reported only when no wrapping failed in another way.
REPORTED: dict[str, tuple[list[EncpipeError], type[EncpipeError]]] = {
    "denied alone": ([KeyAccessDeniedError("x")], KeyAccessDeniedError),
    "denied and absent": ([KeyNotFoundError("x"), KeyAccessDeniedError("x")], KeyAccessDeniedError),
    "absent and untrusted": ([UntrustedKeyError("x"), KeyNotFoundError("x")], KeyNotFoundError),
    "shredded at the service and untrusted": ([UntrustedKeyError("x"), ShreddedError("x")], ShreddedError),
    "denied and an outage": ([KeyAccessDeniedError("x"), KmsUnavailableError("x")], KmsUnavailableError),
    "damaged and an outage": ([UnwrapError("x"), KmsUnavailableError("x")], KmsUnavailableError),
    "denied and damaged": ([KeyAccessDeniedError("x"), UnwrapError("x")], IntegrityError),
    "denied and an error of the service": ([KeyAccessDeniedError("x"), KmsError("x")], KmsError),
    "denied and an extra that is missing": (
        [KeyAccessDeniedError("x"), MissingExtraError("x")],
        MissingExtraError,
    ),
    "untrusted and a config that is wrong": ([UntrustedKeyError("x"), ConfigError("x")], ConfigError),
}


@pytest.mark.parametrize(("failures", "reported"), REPORTED.values(), ids=REPORTED)
@pytest.mark.parametrize("reverse", [False, True])
def test_of_several_failures_the_telling_one_is_reported(
    world: World, failures: list[EncpipeError], reported: type[EncpipeError], reverse: bool
) -> None:
    waiting = failures[::-1] if reverse else list(failures)

    def get(uri: str, *, key_name: str) -> MasterKey:
        raise waiting.pop(0)

    with pytest.raises(reported) as raised:
        world.keys(master_keys=_Fixed(get), wrappings=world.wrapped[: len(failures)]).kek(PII)
    assert isinstance(raised.value, reported)
    assert type(raised.value) in [type(failure) for failure in failures]
    if reported is not IntegrityError:
        assert type(raised.value) is reported
    assert not waiting


def test_a_back_end_that_cannot_be_loaded_does_not_hide_a_wrapping_that_opens(world: World) -> None:
    unknown = WrappedKey("no-such-scheme:x", b"x", "", "")
    keys = world.keys(trusted=["no-such-scheme:x", "memory:b"], wrappings=[unknown, *world.wrapped])
    assert keys.kek(PII) == world.kek


# Age: an outage is bridged, a denial is not


def aged(world: World, seconds: float, *, grace: float = 30.0) -> DatasetKeys:
    keys = world.keys(max_age=100.0, grace=grace)
    assert keys.kek(PII) == world.kek
    world.now += seconds
    return keys


def test_without_an_age_a_kek_is_kept_for_good(world: World) -> None:
    keys = world.keys()
    keys.kek(PII)
    world.now += 1e9
    world.kms.fail("denied")
    assert keys.kek(PII) == world.kek


def test_within_its_age_a_kek_is_not_asked_for(world: World) -> None:
    keys = aged(world, 100.0)
    world.kms.fail("denied")
    assert keys.kek(PII) == world.kek
    assert world.kms.unwraps == 1


def test_past_its_age_a_kek_is_asked_for_and_young_again(world: World) -> None:
    keys = aged(world, 100.1)
    assert keys.kek(PII) == world.kek
    assert (keys.unwraps, world.kms.unwraps) == (2, 2)
    world.now += 99.0
    keys.kek(PII)
    assert world.kms.unwraps == 2


@pytest.mark.parametrize("fault", ["denied", "absent", "error", "damaged", "wrong-key"])
def test_past_its_age_anything_but_an_outage_stops_at_once(world: World, fault: Any) -> None:
    keys = aged(world, 100.1)
    world.kms.fail(fault)
    for _ in range(2):
        with pytest.raises((KmsError, IntegrityError)):
            keys.kek(PII)
    world.kms.heal()
    assert keys.kek(PII) == world.kek


def test_an_outage_is_bridged_for_the_grace_time_and_no_longer(world: World) -> None:
    keys = aged(world, 100.1)
    world.kms.fail("unavailable")
    assert keys.kek(PII) == world.kek
    world.now += 29.8
    assert keys.kek(PII) == world.kek
    world.now += 0.2
    with pytest.raises(KmsUnavailableError):
        keys.kek(PII)
    world.now -= 20
    with pytest.raises(KmsUnavailableError):  # it was dropped, so going back in time does not help
        keys.kek(PII)


def test_without_grace_an_outage_stops(world: World) -> None:
    keys = aged(world, 100.1, grace=0.0)
    world.kms.fail("unavailable")
    with pytest.raises(KmsUnavailableError):
        keys.kek(PII)


def test_a_denial_during_the_grace_time_stops(world: World) -> None:
    keys = aged(world, 100.1)
    world.kms.fail("unavailable", times=3)
    assert keys.kek(PII) == world.kek
    world.kms.fail("denied")
    world.now += RENEWAL_PAUSE_SECONDS
    with pytest.raises(KeyAccessDeniedError):
        keys.kek(PII)


def test_while_an_outage_is_bridged_the_service_is_not_asked_for_every_page(world: World) -> None:
    """Each call may take the whole deadline; a reader would crawl."""
    keys = aged(world, 100.1)
    world.kms.fail("unavailable")
    for _ in range(50):
        keys.kek(PII)
    assert world.kms.unwraps == 1 + 3
    world.now += RENEWAL_PAUSE_SECONDS
    keys.kek(PII)
    assert world.kms.unwraps == 1 + 6
    world.kms.heal()
    world.now += RENEWAL_PAUSE_SECONDS
    keys.kek(PII)
    world.now += 90
    keys.kek(PII)
    assert world.kms.unwraps == 1 + 6 + 1


def test_a_pause_never_outlasts_the_grace_time(world: World) -> None:
    keys = aged(world, 100.1, grace=1.0)
    world.kms.fail("unavailable")
    assert keys.kek(PII) == world.kek
    world.now += 1.0
    with pytest.raises(KmsUnavailableError):
        keys.kek(PII)


def test_a_renewed_kek_is_checked_like_the_first(world: World) -> None:
    keys = aged(world, 100.1)
    world.kms.fail("wrong-key")
    with pytest.raises(UnwrapError, match="another KEK"):
        keys.kek(PII)


def test_a_kek_put_here_ages_too(world: World) -> None:
    keys = world.keys(max_age=100.0)
    keys.put(PII, world.kek)
    world.now += 101.0
    assert keys.kek(PII) == world.kek
    assert world.kms.unwraps == 1


def test_a_master_key_of_one_key_name_opens_no_other(world: World) -> None:
    config = Config(keys={"footer": ("memory:a",), "pii": ("memory:b",)})
    keys = MasterKeys(config, extra={"memory": world.kms})
    assert keys.get("memory:b", key_name="pii").uri == "memory:b"
    with pytest.raises(UntrustedKeyError, match="key name 'footer'"):
        keys.get("memory:b", key_name="footer")


def test_an_untrusted_scheme_loads_no_back_end(world: World) -> None:
    with pytest.raises(UntrustedKeyError):
        MasterKeys(Config()).get("no-such-scheme:x", key_name="footer")


def test_a_forked_child_keeps_keks_and_waits_for_no_lock_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    keys = world.keys()
    keys.kek(PII)
    locks = [held.lock for held in keys._process.get().held.values()]
    for lock in locks:
        lock.acquire()
    parent = os.getpid()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: parent + 1)  # what a fork changes, as the code sees it
        assert keys.kek(PII) == world.kek
        assert keys.unwraps == 0
    for lock in locks:
        lock.release()
    assert keys.unwraps == 1


# Wrappings that were replaced


class Storage:
    """What the storage holds now; counts how often it is read."""

    def __init__(self, *wrappings: WrappedKey) -> None:
        self.wrappings, self.reads = wrappings, 0

    def __call__(self) -> dict[str, tuple[WrappedKey, ...]]:
        self.reads += 1
        return {PII: self.wrappings}


def test_where_no_wrapping_opens_those_on_the_storage_are_tried_once(world: World) -> None:
    old, new, other = world.wrapped
    world.kms.fail("absent", old.master_key)
    keys = world.keys(wrappings=(old,), max_age=10.0)
    keys.reread = storage = Storage(new, other)
    assert keys.kek(PII) == world.kek
    assert (storage.reads, keys.unwraps, keys.refusals) == (1, 1, 1)
    assert keys.opened_by(PII) == new
    world.now += 11
    assert keys.kek(PII) == world.kek
    assert storage.reads == 1, "the new wrappings count from then on"


@pytest.mark.parametrize("fault", ["denied", "absent", "unavailable", "error", "damaged", "wrong-key"])
def test_whatever_the_old_one_fails_of(world: World, fault: KmsFault) -> None:
    old, new, _ = world.wrapped
    world.kms.fail(fault, old.master_key)
    keys = world.keys(wrappings=(old,))
    keys.reread = Storage(new)
    assert keys.kek(PII) == world.kek


def test_nothing_new_on_the_storage_leaves_the_failure_as_it_was(world: World) -> None:
    old = world.wrapped[0]
    world.kms.fail("denied")
    for now in ((old,), ()):
        keys = world.keys(wrappings=(old,))
        keys.reread = storage = Storage(*now)
        before = world.kms.unwraps
        with pytest.raises(KeyAccessDeniedError):
            keys.kek(PII)
        assert (storage.reads, world.kms.unwraps - before) == (1, 1)


def test_a_storage_that_does_not_answer_leaves_the_failure_as_it_was(world: World) -> None:
    def broken() -> dict[str, tuple[WrappedKey, ...]]:
        raise StorageError("gone")

    world.kms.fail("denied")
    keys = world.keys()
    keys.reread = broken
    with pytest.raises(KeyAccessDeniedError):
        keys.kek(PII)


def test_a_new_wrapping_of_another_key_is_found_out(world: World) -> None:
    old, new, _ = world.wrapped
    world.kms.fail("absent", old.master_key)
    world.kms.fail("wrong-key", new.master_key)
    keys = world.keys(wrappings=(old,))
    keys.reread = Storage(new)
    with pytest.raises(UnwrapError, match="another KEK"):
        keys.kek(PII)


def test_which_wrapping_opened_is_known_once_it_did(world: World) -> None:
    keys = world.keys()
    assert keys.opened_by(PII) is None
    keys.kek(PII)
    assert keys.opened_by(PII) == world.wrapped[0]
    pid = forked(lambda: _same(keys.opened_by(PII), world.wrapped[0]))
    assert ended(pid) == 0


def _same(one: object, other: object) -> None:
    assert one == other
