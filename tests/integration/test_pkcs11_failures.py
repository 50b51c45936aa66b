"""Keys on a PKCS#11 token: wrong PIN, locked PIN, token gone, key gone or unfit, forks, threads, other users.

What SoftHSM never says (an error of the device, a hang) is said by stand-ins where the SDK begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pkcs11
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from servers.softhsm import MODULE, PIN, SoftHsm

from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms import pkcs11_module, pkcs11_wrapping
from encpipe.kms.base import KmsSettings
from encpipe.kms.pkcs11 import Pkcs11Kms
from encpipe.kms.pkcs11_settings import KeyPlace

pytestmark = pytest.mark.system

CONTEXT = KeyContext("d" * 32, "footer", "e" * 32)
KEK = Secret(bytes(range(100, 132)))


@pytest.fixture(autouse=True)
def environment(softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_PIN", PIN)


def service(**table: Any) -> Pkcs11Kms:
    return Pkcs11Kms(KmsSettings({"module": str(MODULE), "pin": "env:TOKEN_PIN", **table}))


def key(label: str = "one", token: str = "main", **table: Any) -> MasterKey:
    return service(**table).master_key(f"pkcs11:token={token};object={label}")


def failed(ask: Callable[[], Any], error: type[EncpipeError], code: str | None = None) -> EncpipeError:
    """The error: exactly of this class, with a hint, and without the SDK's behind it."""
    with pytest.raises(error) as caught:
        ask()
    assert type(caught.value) is error
    assert caught.value.code == (code or error.default_code)
    assert caught.value.hint
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    text = f"{caught.value.message} {caught.value.hint}"
    assert PIN not in text
    assert KEK.reveal().hex() not in text
    return caught.value


def wrap(master: MasterKey) -> WrappedKey:
    return master.wrap(KEK, aad=CONTEXT)


def opens(master: MasterKey, wrapped: WrappedKey) -> bool:
    return master.unwrap(wrapped, aad=CONTEXT) == KEK


def tokens(label: str) -> list[pkcs11.Token]:
    """As the program itself finds them. A token that was taken out leaves a slot that says GeneralError."""
    found = []
    for slot in pkcs11.lib(str(MODULE)).get_slots():
        with contextlib.suppress(pkcs11.PKCS11Error):
            found.append(slot.get_token())
    return [token for token in found if token.label == label]


# The PIN


def test_a_wrong_pin_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logins: list[str] = []
    check = pkcs11_module._check_tries
    monkeypatch.setattr(
        pkcs11_module, "_check_tries", lambda token: (logins.append(token.label), check(token))
    )
    monkeypatch.setenv("TOKEN_PIN", "000000")
    master = key(token="wrong-pin")
    assert "refuses the PIN" in failed(lambda: wrap(master), KmsError, "credentials").message
    assert "not tried again" in failed(lambda: wrap(master), KmsError, "credentials").message
    failed(lambda: wrap(key(token="wrong-pin")), KmsError, "credentials")
    assert logins == ["wrong-pin"]
    monkeypatch.setenv("TOKEN_PIN", PIN)
    assert opens(master, wrap(master))


def test_threads_try_a_wrong_pin_once_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    logins: list[str] = []
    monkeypatch.setattr(pkcs11_module, "_check_tries", lambda token: logins.append(token.label))
    monkeypatch.setenv("TOKEN_PIN", "111111")
    master = key(token="wrong-pin")

    def refused(_: int) -> str:
        return failed(lambda: wrap(master), KmsError, "credentials").code

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(refused, range(8)))
    assert len(logins) == 1


def test_a_forked_child_does_not_try_a_refused_pin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_PIN", "222222")
    master = key(token="wrong-pin")
    failed(lambda: wrap(master), KmsError, "credentials")
    monkeypatch.setattr(pkcs11_module, "_check_tries", lambda token: os._exit(1))
    assert in_child(
        lambda: "not tried again" in failed(lambda: wrap(master), KmsError, "credentials").message
    )


def test_a_pin_typed_wrong_is_asked_for_again() -> None:
    typed = iter(["333333", PIN])
    asking = KmsSettings({"module": str(MODULE)}, ask_passphrase=lambda what: next(typed))
    master = Pkcs11Kms(asking).master_key("pkcs11:token=wrong-pin;object=one")
    failed(lambda: wrap(master), KmsError, "credentials")
    assert opens(master, wrap(master))


def test_a_locked_pin() -> None:
    assert "security officer" in failed(lambda: wrap(key(token="locked")), KmsError, "pin-locked").hint


def test_the_last_try_before_the_lock_is_left_to_a_person() -> None:
    assert "one try left" in failed(lambda: wrap(key(token="last-try")), KmsError, "pin-locked").message


class StandIn:
    """A token that refuses to open a session."""

    label, flags = "stand-in", pkcs11.TokenFlag(0)

    def __init__(self, error: type[Exception]) -> None:
        self.error, self.opened = error, 0

    def open(self, **_: Any) -> NoReturn:
        self.opened += 1
        raise self.error


@pytest.mark.parametrize(
    ("said", "error", "code", "tries"),
    [
        (pkcs11.PinLocked, KmsError, "pin-locked", 1),
        (pkcs11.PinExpired, KmsError, "credentials", 1),
        (pkcs11.PinLenRange, KmsError, "credentials", 1),
        (pkcs11.UserPinNotInitialized, KmsError, "credentials", 1),
        (pkcs11.AnotherUserAlreadyLoggedIn, KmsError, "credentials", 1),
        (pkcs11.TokenNotPresent, KmsUnavailableError, "kms-unavailable", 1),
        (pkcs11.TokenNotRecognised, KmsUnavailableError, "kms-unavailable", 1),
        (pkcs11.FunctionRejected, KmsError, "kms", 1),
        (pkcs11.DeviceError, KmsUnavailableError, "kms-unavailable", 3),
        (pkcs11.SessionCount, KmsUnavailableError, "kms-unavailable", 3),
    ],
)
def test_what_a_token_says_to_a_login(
    monkeypatch: pytest.MonkeyPatch, said: type[Exception], error: type[EncpipeError], code: str, tries: int
) -> None:
    token = StandIn(said)
    monkeypatch.setattr(pkcs11_module.Module, "_token", lambda *_: token)
    failed(lambda: wrap(key(token=f"{said.__name__}", deadline=1)), error, code)
    assert token.opened == 1 if tries == 1 else token.opened >= tries


# Token and key


def test_a_token_taken_out_is_an_outage_and_loses_nothing(softhsm: SoftHsm, tmp_path: Path) -> None:
    master = key(token="removed")
    wrapped = wrap(master)
    place = softhsm.path_of("removed")
    place.rename(tmp_path / "pocket")
    try:
        start = time.monotonic()
        assert "not there" in failed(lambda: opens(master, wrapped), KmsUnavailableError).message
        assert "not there" in failed(lambda: wrap(master), KmsUnavailableError).message
        assert time.monotonic() - start < 5
        assert opens(key(), wrap(key()))  # others are still there
    finally:
        (tmp_path / "pocket").rename(place)
    assert in_child(lambda: opens(master, wrapped))  # SoftHSM itself looks again in a new process only


def test_a_token_that_is_not_there_is_an_outage() -> None:
    start = time.monotonic()
    error = failed(lambda: wrap(key(token="nowhere")), KmsUnavailableError)
    assert "'nowhere'" in error.message
    assert time.monotonic() - start < 2


def test_tokens_of_the_same_label_need_a_serial_number() -> None:
    assert "serial=" in failed(lambda: wrap(key(token="twin")), ConfigError).hint
    serials = [token.serial.decode() for token in tokens("twin")]
    uris = [f"pkcs11:token=twin;serial={serial};object=one" for serial in serials]
    found = [error_class(lambda uri=uri: wrap(service().master_key(uri))) for uri in uris]
    assert sorted(map(str, found)) == sorted(map(str, [None, KeyNotFoundError]))


def error_class(ask: Callable[[], Any]) -> type[EncpipeError] | None:
    try:
        ask()
    except EncpipeError as error:
        return type(error)
    return None


def test_keys_of_the_same_label_need_an_id() -> None:
    assert "id=" in failed(lambda: wrap(key("twin")), ConfigError).hint
    first, second = (service().master_key(f"pkcs11:token=main;object=twin;id=%0{n}") for n in (1, 2))
    wrapped = wrap(first)
    assert opens(first, wrapped)
    foreign = WrappedKey(second.uri, wrapped.blob, "", "")
    failed(lambda: opens(second, foreign), UnwrapError)


def test_a_key_that_is_not_there() -> None:
    master = key()
    assert opens(master, wrap(master))  # logged in
    assert "list-objects" in failed(lambda: wrap(key("nothing")), KeyNotFoundError).hint


def test_a_key_is_seen_once_made_and_missed_once_deleted(softhsm: SoftHsm) -> None:
    master = key("later")
    failed(lambda: wrap(master), KeyNotFoundError)
    softhsm.create_keys({"main": {"later": {}}})
    wrapped = wrap(master)
    assert opens(master, wrapped)
    delete_key("later")
    failed(lambda: opens(master, wrapped), KeyNotFoundError)
    softhsm.create_keys({"main": {"later": {}}})
    failed(lambda: opens(master, wrapped), UnwrapError)  # another key of the same label


def delete_key(label: str) -> None:
    with tokens("main")[0].open(rw=True) as session:
        session.get_key(label=label).destroy()


@pytest.mark.parametrize(
    ("label", "text"),
    [("extractable", "read out"), ("readable", "read out"), ("short", "256 bits")],
)
@pytest.mark.parametrize("mechanism", ["aes-gcm", "aes-key-wrap"])
def test_a_key_that_could_leave_its_token_or_is_short_is_refused(
    label: str, text: str, mechanism: str
) -> None:
    master = key(label, mechanism=mechanism)
    assert text in failed(lambda: wrap(master), ConfigError).message
    blob = {"aes-gcm": b"\1" + bytes(60), "aes-key-wrap": b"\2" + bytes(72)}[mechanism]
    failed(lambda: opens(master, WrappedKey(master.uri, blob, "", "")), ConfigError)


@pytest.mark.parametrize(
    ("label", "mechanism", "attribute"),
    [
        ("no-encrypt", "aes-gcm", "CKA_ENCRYPT"),
        ("no-decrypt", "aes-gcm", "CKA_DECRYPT"),
        ("no-wrap", "aes-key-wrap", "CKA_WRAP"),
        ("no-unwrap", "aes-key-wrap", "CKA_UNWRAP"),
    ],
)
def test_what_the_keys_attributes_forbid_is_denied(label: str, mechanism: str, attribute: str) -> None:
    master = key(label, mechanism=mechanism)

    def both() -> None:
        opens(master, wrap(master))

    assert attribute in failed(both, KeyAccessDeniedError).hint


def test_a_reader_needs_no_right_to_wrap() -> None:
    """What it opens with may be a copy of the key with other attributes: here, none that fits."""
    for mechanism, head, size in (("aes-gcm", b"\1", 60), ("aes-key-wrap", b"\2", 72)):
        master = key("read-only", mechanism=mechanism)
        failed(
            lambda m=master, h=head, s=size: opens(m, WrappedKey(m.uri, h + bytes(s), "", "")), UnwrapError
        )


def test_wrappings_are_as_the_page_has_them() -> None:
    """Opened with a key that the test knows, by another implementation."""
    known, kek = bytes(range(32)), KEK.reveal()
    aad = b"encpipe/1 kek-wrap\0" + b"".join(
        len(field).to_bytes(4, "big") + field for field in (b"d" * 32, b"footer", b"e" * 32)
    )
    gcm = wrap(key("known")).blob
    assert gcm[:1] == b"\1"
    assert AESGCM(known).decrypt(gcm[1:13], gcm[13:], aad) == kek
    key_wrap = wrap(key("known", mechanism="aes-key-wrap")).blob
    assert key_wrap[:1] == b"\2"
    assert aes_key_unwrap(known, key_wrap[1:]) == kek + hashlib.sha256(aad).digest()


@pytest.mark.parametrize("mechanism", ["aes-gcm", "aes-key-wrap"])
def test_a_token_without_the_mechanism(monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    class Without:
        AES_GCM = AES_KEY_WRAP = pkcs11.Mechanism.DES2_KEY_GEN

    params: Callable[..., Any] = lambda *_: type("Params", (bytes,), {"nonce": b"", "aad": b""})()  # noqa: E731
    monkeypatch.setattr(pkcs11_wrapping, "Mechanism", Without)
    monkeypatch.setattr(pkcs11_wrapping, "GCMParams", params)
    other = {"aes-gcm": "aes-key-wrap", "aes-key-wrap": "aes-gcm"}[mechanism]
    assert f'"{other}"' in failed(lambda: wrap(key(mechanism=mechanism)), ConfigError).hint


# Faults


class Faults:
    """Makes the search for a key fail: the first call of every wrap and unwrap."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.find, self.calls = pkcs11_module._find, 0
        self.next: list[Callable[[], None]] = []
        monkeypatch.setattr(pkcs11_module, "_find", self)

    def __call__(self, *asked: Any) -> Any:
        self.calls += 1
        if self.next:
            self.next.pop(0)()
        return self.find(*asked)

    def say(self, error: type[Exception], times: int = 1) -> None:
        def fail() -> None:
            raise error

        self.next += [fail] * times


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.mark.parametrize(
    "said",
    [
        pkcs11.SessionHandleInvalid,
        pkcs11.SessionClosed,
        pkcs11.UserNotLoggedIn,
        pkcs11.DeviceRemoved,
        pkcs11.DeviceError,
        pkcs11.OperationActive,
    ],
)
def test_a_session_that_broke_is_opened_anew(faults: Faults, said: type[Exception]) -> None:
    master = key()
    wrapped = wrap(master)
    faults.say(said)
    assert opens(master, wrapped)


@pytest.mark.parametrize(
    ("said", "error", "retried"),
    [
        (pkcs11.DeviceError, KmsUnavailableError, True),
        (pkcs11.GeneralError, KmsUnavailableError, True),
        (pkcs11.DeviceMemory, KmsUnavailableError, True),
        (pkcs11.DeviceRemoved, KmsUnavailableError, False),
        (pkcs11.SessionHandleInvalid, KmsUnavailableError, False),
        (pkcs11.FunctionRejected, KmsError, False),
        (MemoryError, KmsError, False),
    ],
)
def test_a_token_that_fails_for_good(
    faults: Faults, said: type[Exception], error: type[EncpipeError], retried: bool
) -> None:
    wrap(key())
    faults.calls = 0
    faults.say(said, times=99)
    failed(lambda: wrap(key(deadline=1)), error)
    assert faults.calls > 3 if retried else faults.calls <= 2


def test_a_hiccup_is_bridged(faults: Faults) -> None:
    faults.say(pkcs11.GeneralError, times=2)
    assert opens(key(), wrap(key()))


def test_a_stuck_token_is_given_up_at_the_deadline_and_used_again_later(faults: Faults) -> None:
    going_on = threading.Event()
    faults.next.append(lambda: bool(going_on.wait(30)) or None)
    master = key(deadline=0.3)
    start = time.monotonic()
    assert "0.3 s" in failed(lambda: wrap(master), KmsUnavailableError).message
    failed(lambda: wrap(master), KmsUnavailableError)  # the first call still holds the module
    assert time.monotonic() - start < 3
    going_on.set()
    assert opens(key(), wrap(key()))


HANGING = f"""
import os
from encpipe.errors import KmsUnavailableError
from encpipe.keys import KeyContext, Secret
from encpipe.kms.base import KmsSettings
from encpipe.kms.pkcs11 import Pkcs11Kms

settings = KmsSettings({{"module": "{MODULE}", "pin": "env:TOKEN_PIN", "deadline": 0.5}})
key = Pkcs11Kms(settings).master_key("pkcs11:token=hanging;object=one")
context = KeyContext("d" * 32, "footer", "e" * 32)
wrapped = key.wrap(Secret.random(), aad=context)
os.unlink("generation")
os.mkfifo("generation")  # SoftHSM opens it, and waits for ever
for _ in range(2):
    try:
        key.unwrap(wrapped, aad=context)
    except KmsUnavailableError as error:
        print(error.message)
"""


def test_a_call_that_never_returns_holds_up_neither_caller_nor_exit(softhsm: SoftHsm) -> None:
    command = [sys.executable, "-c", HANGING]
    place = softhsm.path_of("hanging")
    generation = (place / "generation").read_bytes()
    try:
        ended = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    finally:  # who loads the module after this reads every token
        (place / "generation").unlink()
        (place / "generation").write_bytes(generation)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second = ended.stdout.splitlines()
    assert "'hanging' did not answer within 0.5 s" in first
    assert "busy" in second or "did not answer" in second  # whichever of the two waits ends first


def test_a_busy_module_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    place = KeyPlace("main", "one")
    module = pkcs11_module.module(str(MODULE))
    with module.lock:
        failed(
            lambda: module.use(place, Secret(PIN.encode()), lambda *_: None, seconds=0.01),
            KmsUnavailableError,
        )


def test_a_plaintext_that_is_no_kek_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = wrap(key())
    monkeypatch.setattr(pkcs11_wrapping, "open_gcm", lambda *_, **__: Secret(b"short"))
    with pytest.raises(UnwrapError):
        key().unwrap(wrapped, aad=CONTEXT)


@pytest.mark.parametrize("mechanism", ["aes-gcm", "aes-key-wrap"])
def test_a_failing_token_is_told_from_a_wrapping_that_was_changed(
    monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    """SoftHSM has one word for both."""
    master = key(deadline=1, mechanism=mechanism)
    wrapped = wrap(master)
    changed = WrappedKey(wrapped.master_key, wrapped.blob[:-1] + bytes([wrapped.blob[-1] ^ 1]), "", "")
    failed(lambda: opens(master, changed), UnwrapError)
    monkeypatch.setattr(pkcs11_wrapping, "_works", lambda *_: False)
    failed(lambda: opens(master, changed), KmsUnavailableError)


def test_a_module_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    for path in (tmp_path / "missing.so", tmp_path / "text.so"):
        assert str(path) in failed(lambda path=path: wrap(key(module=str(path))), ConfigError).message


def test_debug_logs_hold_neither_key_nor_pin(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.NOTSET)
    for mechanism in ("aes-gcm", "aes-key-wrap"):
        master = key(mechanism=mechanism)
        assert opens(master, wrap(master))
    for spelling in (PIN, KEK.reveal().hex(), repr(KEK.reveal())[2:-1]):
        assert spelling not in caplog.text


# Other users of the token in this process, threads, forks


@pytest.fixture
def own_login() -> Iterator[Callable[[], pkcs11.Session]]:
    """Sessions that the program itself opens, logged in."""
    opened: list[pkcs11.Session] = []

    def open_session() -> pkcs11.Session:
        opened.append(tokens("shared")[0].open(user_pin=PIN))
        return opened[-1]

    yield open_session
    for session in opened:
        with contextlib.suppress(pkcs11.PKCS11Error):
            session.close()


def test_a_token_the_program_is_logged_in_to(own_login: Callable[[], pkcs11.Session]) -> None:
    session = own_login()
    master = key(token="shared")
    wrapped = wrap(master)
    session.close()  # logs out, and ours with it
    assert opens(master, wrapped)
    with pytest.raises(pkcs11.UserAlreadyLoggedIn):
        own_login()


def test_two_configurations_share_a_login_only_with_the_same_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    right, same = key(token="shared"), key(token="shared", deadline=3)
    wrapped = wrap(right)
    assert opens(same, wrapped)
    monkeypatch.setenv("OTHER_PIN", "444444")
    wrong = key(token="shared", pin="env:OTHER_PIN")
    failed(lambda: opens(wrong, wrapped), KmsError, "credentials")
    assert opens(right, wrapped)
    failed(lambda: opens(wrong, wrapped), KmsError, "credentials")
    assert opens(right, wrapped)


def test_many_threads_and_services_use_one_module() -> None:
    def round_trip(turn: int) -> bool:
        master = key("one" if turn % 2 else "other", mechanism=("aes-gcm", "aes-key-wrap")[turn % 3 == 0])
        kek = Secret.random()
        return master.unwrap(master.wrap(kek, aad=CONTEXT), aad=CONTEXT) == kek

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(round_trip, range(200)))


def in_child(work: Callable[[], bool]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_logs_in_anew_and_leaves_the_parent_alone() -> None:
    master = key()
    wrapped = wrap(master)
    sessions = pkcs11_module.module(str(MODULE))._logins
    before = {id(login.session) for login in sessions.values()}

    def child() -> bool:
        done = opens(master, wrapped) and opens(master, wrap(master))
        logins = pkcs11_module.module(str(MODULE))._logins
        return done and before.isdisjoint(id(login.session) for login in logins.values())

    assert in_child(child)
    assert in_child(lambda: in_child(child))  # a grandchild
    assert opens(master, wrapped)
    assert {id(login.session) for login in sessions.values()} == before


class Library:
    """A module as the SDK shows it. It writes down what is called; SoftHSM would go on without any of it."""

    def __init__(self, *, notices_forks: bool) -> None:
        self.calls: list[str] = []
        self._notices_forks = notices_forks

    def finalize(self) -> None:
        self.calls.append("finalize")
        if self._notices_forks:
            raise pkcs11.PKCS11Error("Initialisation error (not initialized). Should never see this.")

    def initialize(self) -> None:
        self.calls.append("initialize")

    def get_slots(self) -> list[Any]:
        self.calls.append("slots")
        return []


@pytest.mark.parametrize("notices_forks", [True, False])
def test_a_forked_child_initialises_the_module_once_before_anything_else(notices_forks: bool) -> None:
    library, place = Library(notices_forks=notices_forks), KeyPlace("main", "one")
    inherited = pkcs11_module.Module("/no/module.so", loaded=library).inherited()
    for _ in range(2):
        with pytest.raises(pkcs11.NoSuchToken):
            inherited.use(place, Secret(PIN.encode()), lambda *_: None, seconds=1)
    assert library.calls == ["finalize", "initialize", "slots", "slots"]


def test_forks_in_the_middle_of_calls() -> None:
    master = key()
    wrapped = wrap(master)
    stop = threading.Event()

    def keep_busy() -> bool:
        while not stop.is_set():
            assert opens(master, wrapped)
        return True

    with ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(keep_busy) for _ in range(3)]
        try:
            assert all(in_child(lambda: opens(key(deadline=5), wrapped)) for _ in range(10))
        finally:
            stop.set()
        assert all(future.result(timeout=30) for future in busy)


def test_a_fork_does_not_wait_for_a_stuck_token(faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pkcs11_module, "FORK_WAIT_SECONDS", 0.1)
    going_on = threading.Event()
    faults.next.append(lambda: bool(going_on.wait(30)) or None)
    failed(lambda: wrap(key(deadline=0.2)), KmsUnavailableError)
    assert in_child(lambda: opens(key(), wrap(key())))
    going_on.set()
    assert opens(key(), wrap(key()))
