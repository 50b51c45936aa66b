"""Unlocking the local keyring: where the key comes from, how often, and what is refused."""

from __future__ import annotations

import base64
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from encpipe import Config, MasterKeys, Policy, aead, open_dataset, write_dataset
from encpipe.config import KeyringConfig
from encpipe.errors import (
    ConfigError,
    IntegrityError,
    KeyNotFoundError,
    KmsError,
    StorageError,
    UnwrapError,
)
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.keyringformat import KdfParams
from encpipe.kms.local import LocalKms
from encpipe.kms.unlock import PassphraseUnlock, create_key_file
from encpipe.testing import InMemoryKms

CONTEXT = KeyContext("0" * 32, "footer", "1" * 32)
PASSPHRASE = "correct horse"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "keyring.json"
    KeyringFile(made, PassphraseUnlock(lambda _: PASSPHRASE)).create("default", kdf=KdfParams.FAST_FOR_TESTS)
    return made


def service(path: Path, unlock: str = "prompt", ask: object = None) -> LocalKms:
    return LocalKms(KmsSettings(keyring=KeyringConfig(path, unlock), ask_passphrase=ask))  # type: ignore[arg-type]  # one stub for both


def use(kms: LocalKms, uri: str = "local:default") -> WrappedKey:
    key, kek = kms.master_key(uri), Secret.random()
    wrapped = key.wrap(kek, aad=CONTEXT)
    assert key.unwrap(wrapped, aad=CONTEXT) == kek
    return wrapped


def refusal(kms: LocalKms, error: type[Exception], uri: str = "local:default") -> str:
    with pytest.raises(error) as caught:
        use(kms, uri)
    assert PASSPHRASE not in str(caught.value)
    return str(getattr(caught.value, "code", ""))


def ask_at_module_level(_: str) -> str:
    """Can be pickled, so that what refuses is not the stub."""
    return PASSPHRASE


def private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def test_a_passphrase_may_be_asked_for_or_stand_in_a_variable_or_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PASSPHRASE", PASSPHRASE)
    for end in ("", "\n", "\r\n"):
        private(tmp_path / "passphrase", PASSPHRASE + end)
        use(service(path, f"file:{tmp_path / 'passphrase'}"))
    use(service(path, "env:TEST_PASSPHRASE"))
    use(service(path, "prompt", lambda _: PASSPHRASE))


def test_a_passphrase_file_that_is_not_text_is_refused(path: Path, tmp_path: Path) -> None:
    private(tmp_path / "passphrase", "").write_bytes(b"\xff\xfe")
    assert refusal(service(path, f"file:{tmp_path / 'passphrase'}"), ConfigError) == "config"


def test_a_passphrase_opens_however_its_characters_are_composed(tmp_path: Path) -> None:
    made = tmp_path / "keyring.json"
    KeyringFile(made, PassphraseUnlock(lambda _: "caf\u00e9")).create("default", kdf=KdfParams.FAST_FOR_TESTS)
    use(service(made, "prompt", lambda _: "cafe\u0301"))


def test_the_person_asked_is_told_what_for(path: Path) -> None:
    asked: list[str] = []
    use(service(path, "prompt", lambda what: asked.append(what) or PASSPHRASE))
    assert asked == [f"passphrase of the keyring {str(path)!r}"]


@pytest.mark.parametrize("wrong", ["", "Correct horse", PASSPHRASE + " ", "x" * 2000, "\udc80"])
def test_a_wrong_passphrase_is_refused(path: Path, wrong: str) -> None:
    with pytest.raises((KmsError, ConfigError)):
        use(service(path, "prompt", lambda _: wrong))


def test_a_wrong_passphrase_and_damage_are_told_apart(path: Path) -> None:
    assert refusal(service(path, "prompt", lambda _: "wrong"), KmsError) == "passphrase-wrong"
    path.write_bytes(path.read_bytes().replace(b'"commitment":"', b'"commitment":"A', 1))
    assert refusal(service(path, "prompt", lambda _: PASSPHRASE), IntegrityError) == "keyring-damaged"


def test_a_wrong_passphrase_is_no_missing_key(path: Path, tmp_path: Path) -> None:
    """A denied key's columns may be skipped; a typing mistake must not look like that."""
    keys = {"footer": ("memory:main",), "pii": ("local:default",)}
    memory = InMemoryKms(["main"])

    def access(passphrase: str) -> dict[str, Any]:
        private(tmp_path / "passphrase", passphrase)
        config = Config(keyring=KeyringConfig(path, f"file:{tmp_path / 'passphrase'}"), keys=keys)
        return {"config": config, "master_keys": MasterKeys(config, extra={"memory": memory})}

    table, url = pa.table({"id": [1], "name": ["n"]}), tmp_path / "dataset"
    write_dataset(table, url, policy=Policy(columns={"pii": ("name",)}), **access(PASSPHRASE))
    for outcome in ("error", "skip", "null"):
        with (
            pytest.raises(KmsError) as refused,
            open_dataset(url, on_missing_key=outcome, **access("wrong")) as dataset,
        ):
            dataset.to_table()
        assert type(refused.value) is KmsError
        assert refused.value.code == "passphrase-wrong"


def test_a_wrong_passphrase_is_not_remembered(path: Path) -> None:
    answers = iter(["wrong", PASSPHRASE])
    kms = service(path, "prompt", lambda _: next(answers))
    assert refusal(kms, KmsError) == "passphrase-wrong"
    use(kms)


def test_unlocking_happens_once_for_all_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    asked: list[str] = []
    real = aead.argon2id

    def counted(*args: object, **kwargs: object) -> Secret:
        runs.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(aead, "argon2id", counted)
    kms = service(path, "prompt", lambda what: asked.append(what) or PASSPHRASE)
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: (start.wait(30), use(kms)), range(8)))
    use(kms)
    assert (len(runs), len(asked)) == (1, 1)


def test_threads_that_wait_for_a_failed_unlock_fail_with_it(path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()
    answers: list[str] = []

    def ask(_: str) -> str:
        answers.append("wrong")
        asked.set()
        assert go_on.wait(30)
        return "wrong"

    kms = service(path, "prompt", ask)
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(use, kms)
        assert asked.wait(30)
        others = [threads.submit(use, kms) for _ in range(3)]
        go_on.set()
        for call in (first, *others):
            assert isinstance(call.exception(30), KmsError)


def test_a_changed_passphrase_is_asked_for_again(path: Path) -> None:
    answers = iter([PASSPHRASE, "new"])
    kms = service(path, "prompt", lambda _: next(answers))
    use(kms)
    keyring = KeyringFile(path, PassphraseUnlock(lambda _: PASSPHRASE))
    keyring.change_protection(PassphraseUnlock(lambda _: "new"), kdf=KdfParams.FAST_FOR_TESTS)
    use(kms)
    use(kms)


def test_nothing_to_ask_or_read_is_a_config_error(path: Path, tmp_path: Path) -> None:
    assert refusal(service(path, "prompt"), ConfigError) == "config-missing"
    assert refusal(service(path, "env:NOT_SET_ANYWHERE"), ConfigError) == "config-missing"
    assert refusal(service(path, f"file:{tmp_path / 'none'}"), ConfigError) == "config-missing"
    assert refusal(service(path, "key-env:NOT_SET_ANYWHERE"), ConfigError, "local:env") == "config-missing"


def test_a_pipe_that_takes_nothing_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kms = service(path, "prompt", lambda _: PASSPHRASE)
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(KmsError):
        kms.send_unlocked(-1)


def test_an_absent_keyring_says_so_and_trusts_nothing(tmp_path: Path) -> None:
    kms = service(tmp_path / "none.json", "prompt", lambda _: pytest.fail("asked"))
    assert not kms.trusts("local:default")
    assert refusal(kms, ConfigError) == "config-missing"


def test_the_kind_of_protection_must_fit(path: Path, tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    assert refusal(service(path, f"key-file:{tmp_path / 'key'}"), ConfigError) == "config"
    KeyringFile.from_config(KeyringConfig(tmp_path / "by-file.json", f"key-file:{tmp_path / 'key'}")).create(
        "default"
    )
    assert refusal(service(tmp_path / "by-file.json", "prompt", lambda _: "x"), ConfigError) == "config"
    create_key_file(tmp_path / "other-key")
    other = service(tmp_path / "by-file.json", f"key-file:{tmp_path / 'other-key'}")
    assert refusal(other, KmsError) == "passphrase-wrong"


@pytest.mark.parametrize("unlock", ["", "env:", "file:", "prompt:x", "correct horse", "ENV:X"])
def test_an_unlock_setting_that_is_not_understood_is_not_repeated(tmp_path: Path, unlock: str) -> None:
    with pytest.raises(ConfigError) as caught:
        service(tmp_path / "keyring.json", unlock)
    assert "correct horse" not in str(caught.value)


def test_a_setting_in_the_wrong_table_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        LocalKms(KmsSettings(table={"path": "x"}))
    assert caught.value.code == "config-unknown-key"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o610, 0o644])
def test_files_that_others_may_use_are_refused(path: Path, tmp_path: Path, mode: int) -> None:
    passphrase = private(tmp_path / "passphrase", PASSPHRASE)
    create_key_file(tmp_path / "key")
    by_file = KeyringConfig(tmp_path / "by-file.json", f"key-file:{tmp_path / 'key'}")
    KeyringFile.from_config(by_file).create("default")
    for opened, kms in (
        (passphrase, service(path, f"file:{passphrase}")),
        (tmp_path / "key", LocalKms(KmsSettings(keyring=by_file))),
        (path, service(path, "prompt", lambda _: pytest.fail("asked"))),
    ):
        opened.chmod(mode)
        assert refusal(kms, ConfigError) == "keyring-permissions"
    with pytest.raises(ConfigError):
        service(path).trusts("local:default")


def test_files_of_another_user_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert refusal(service(path, "prompt", lambda _: PASSPHRASE), ConfigError) == "keyring-permissions"


def test_a_pipe_or_folder_in_the_keyrings_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    assert refusal(service(tmp_path / "pipe"), ConfigError) == "keyring-permissions"
    with pytest.raises((ConfigError, StorageError)):
        use(service(tmp_path / "folder"))


@pytest.mark.parametrize(
    "text",
    ["", "x", "A" * 44, "A" * 43, "A" * 42 + "B=", base64.b64encode(b"k" * 31).decode(), "=" * 44, "k" * 99],
)
def test_a_key_that_is_not_32_bytes_in_base64_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("TEST_MASTER_KEY", text)
    with pytest.raises(ConfigError) as caught:
        use(service(tmp_path / "none.json", "key-env:TEST_MASTER_KEY"), "local:env")
    assert len(text) < 2 or text not in f"{caught.value.message} {caught.value.hint}"
    key_file = private(tmp_path / "key", text)
    with pytest.raises(ConfigError):
        KeyringFile.from_config(KeyringConfig(tmp_path / "k.json", f"key-file:{key_file}")).create("default")


def test_an_environment_key_needs_no_keyring_and_has_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MASTER_KEY", base64.b64encode(os.urandom(32)).decode() + "\n")
    kms = service(tmp_path / "none.json", "key-env:TEST_MASTER_KEY")
    assert use(kms, "local:env").version == "1"
    assert refusal(kms, KeyNotFoundError, "local:default") == "key-not-found"
    with pytest.raises(ConfigError):
        KeyringFile.from_config(KeyringConfig(unlock="key-env:TEST_MASTER_KEY"))
    assert list(tmp_path.iterdir()) == []


def test_a_version_the_keyring_does_not_have_yet_is_told_from_an_edited_one(path: Path) -> None:
    kms = service(path, "prompt", lambda _: PASSPHRASE)
    wrapped = use(kms)
    newer = bytearray(wrapped.blob)
    newer[4] = 2
    key = kms.master_key("local:default")
    with pytest.raises(UnwrapError):
        key.unwrap(WrappedKey(wrapped.master_key, bytes(newer), "1", ""), aad=CONTEXT)
    with pytest.raises(KeyNotFoundError):
        key.unwrap(WrappedKey(wrapped.master_key, bytes(newer), "2", ""), aad=CONTEXT)


def test_a_kek_of_another_length_is_not_wrapped(path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        service(path).master_key("local:default").wrap(Secret(b"short"), aad=CONTEXT)


def test_an_unlocked_service_is_not_pickled_and_shows_nothing(path: Path) -> None:
    kms = service(path, "prompt", ask_at_module_level)
    use(kms)
    for thing in (kms, kms.master_key("local:default"), kms.open_keyring()):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
    assert "redacted" not in repr(kms.open_keyring())
    assert str(path) in repr(kms)


def test_a_child_takes_over_what_its_parent_unlocked(path: Path) -> None:
    kek = Secret.random()
    parent = service(path, "prompt", lambda _: PASSPHRASE)
    wrapped = parent.master_key("local:default").wrap(kek, aad=CONTEXT)
    reader, writer = os.pipe()
    try:
        parent.send_unlocked(writer)
        child = service(path, "prompt", lambda _: pytest.fail("asked"))
        child.receive_unlocked(reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert child.master_key("local:default").unwrap(wrapped, aad=CONTEXT) == kek


def test_an_environment_key_is_handed_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_MASTER_KEY", base64.b64encode(os.urandom(32)).decode())
    parent = service(tmp_path / "none", "key-env:TEST_MASTER_KEY")
    child = service(tmp_path / "none", "key-env:TEST_MASTER_KEY")
    reader, writer = os.pipe()
    try:
        parent.send_unlocked(writer)
        monkeypatch.delenv("TEST_MASTER_KEY")
        child.receive_unlocked(reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert child.open_keyring().secret("env", 1) == parent.open_keyring().secret("env", 1)


@pytest.mark.parametrize("message", [b"", b"\x01", b"\x01" + b"k" * 31, b"\x02" + b"k" * 32])
def test_a_handover_that_breaks_off_is_refused(path: Path, message: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, message)
    os.close(writer)
    try:
        with pytest.raises(KmsError):
            service(path).receive_unlocked(reader)
    finally:
        os.close(reader)


def test_too_little_memory_to_unlock_is_said_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> Secret:
        raise MemoryError

    monkeypatch.setattr(aead, "argon2id", no_memory)
    assert refusal(service(path, "prompt", lambda _: PASSPHRASE), ConfigError) == "config"
