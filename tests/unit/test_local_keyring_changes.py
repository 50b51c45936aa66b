"""Creating, rotating, exporting, importing, backing up and re-protecting the local keyring."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from encpipe.config import KeyringConfig
from encpipe.errors import (
    ConfigError,
    ConflictError,
    IntegrityError,
    KeyNotFoundError,
    KmsError,
    StorageError,
)
from encpipe.keys import KeyContext, Secret
from encpipe.kms import keyringkeys, privatefile
from encpipe.kms.base import KmsSettings
from encpipe.kms.keyringfile import KeyringFile, default_path
from encpipe.kms.keyringformat import KdfParams
from encpipe.kms.local import LocalKms
from encpipe.kms.unlock import KeyFileUnlock, PassphraseUnlock, create_key_file

FAST = KdfParams.FAST_FOR_TESTS
CONTEXT = KeyContext("0" * 32, "footer", "1" * 32)


def passphrase(text: str) -> PassphraseUnlock:
    return PassphraseUnlock(lambda _: text)


def service(path: Path, text: str = "correct horse") -> LocalKms:
    return LocalKms(KmsSettings(keyring=KeyringConfig(path), ask_passphrase=lambda _: text))


@pytest.fixture
def keyring(tmp_path: Path) -> KeyringFile:
    made = KeyringFile(tmp_path / "folder" / "keyring.json", passphrase("correct horse"))
    made.create("default", kdf=FAST)
    return made


def test_default_parameters_are_the_strong_ones(tmp_path: Path) -> None:
    made = KeyringFile(tmp_path / "keyring.json", passphrase("x"))
    made.create("default")
    kdf = made.read().protection.kdf
    assert kdf == KdfParams(memory_kib=65536, passes=3, lanes=4)


def test_a_new_keyring_is_private_and_alone_in_its_folder(keyring: KeyringFile) -> None:
    assert stat.S_IMODE(keyring.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keyring.path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in keyring.path.parent.iterdir()] == ["keyring.json"]


def test_an_existing_keyring_is_not_overwritten(keyring: KeyringFile) -> None:
    before = keyring.path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        keyring.create("default", kdf=FAST)
    assert caught.value.code == "exists"
    assert keyring.path.read_bytes() == before


def test_a_keyring_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"

    def answer_late(_: str) -> str:
        path.write_text("someone else's")
        return "x"

    with pytest.raises(ConfigError) as caught:
        KeyringFile(path, PassphraseUnlock(answer_late)).create("default", kdf=FAST)
    assert caught.value.code == "exists"
    assert path.read_text() == "someone else's"
    assert list(tmp_path.iterdir()) == [path]


def test_keys_are_listed_without_unlocking(keyring: KeyringFile) -> None:
    keyring.create_key("other")
    keyring.rotate("other")
    locked = KeyringFile(keyring.path, PassphraseUnlock(lambda _: pytest.fail("asked")))
    listed = {name: [(v.version, v.state) for v in versions] for name, versions in locked.list().items()}
    assert listed == {"default": [(1, "active")], "other": [(1, "retired"), (2, "active")]}
    assert all(v.created.endswith("Z") for versions in locked.list().values() for v in versions)


def test_old_versions_open_after_a_rotation_by_another_process(keyring: KeyringFile) -> None:
    kms, kek = service(keyring.path), Secret.random()
    key = kms.master_key("local:default")
    old = key.wrap(kek, aad=CONTEXT)
    assert keyring.rotate("default").version == 2
    new = key.wrap(kek, aad=CONTEXT)
    assert (old.version, new.version) == ("1", "2")
    assert key.unwrap(old, aad=CONTEXT) == key.unwrap(new, aad=CONTEXT) == kek


@pytest.mark.parametrize("name", ["", "Upper", "a b", "a" * 33, "../a", "env", "ключ"])
def test_names_that_no_uri_could_spell_are_refused(keyring: KeyringFile, name: str) -> None:
    with pytest.raises(ConfigError):
        keyring.create_key(name)


def test_a_taken_name_is_refused(keyring: KeyringFile) -> None:
    with pytest.raises(ConfigError) as caught:
        keyring.create_key("default")
    assert caught.value.code == "exists"


def test_an_unknown_key_is_not_rotated_or_exported(keyring: KeyringFile, tmp_path: Path) -> None:
    with pytest.raises(KeyNotFoundError):
        keyring.rotate("other")
    with pytest.raises(KeyNotFoundError):
        keyring.export_key("other", tmp_path / "export.json", passphrase("y"), kdf=FAST)
    assert not (tmp_path / "export.json").exists()


def test_an_export_opens_elsewhere_what_the_original_wrapped(keyring: KeyringFile, tmp_path: Path) -> None:
    keyring.create_key("other")
    kek = Secret.random()
    first = service(keyring.path).master_key("local:other").wrap(kek, aad=CONTEXT)
    keyring.rotate("other")
    second = service(keyring.path).master_key("local:other").wrap(kek, aad=CONTEXT)
    keyring.export_key("other", tmp_path / "export.json", passphrase("for export"), kdf=FAST)
    assert list(KeyringFile(tmp_path / "export.json", passphrase("")).list()) == ["other"]

    elsewhere = KeyringFile(tmp_path / "elsewhere.json", passphrase("elsewhere"))
    elsewhere.create("mine", kdf=FAST)
    assert elsewhere.import_keys(tmp_path / "export.json", passphrase("for export")) == ("other",)
    assert list(elsewhere.list()) == ["mine", "other"]
    key = service(elsewhere.path, "elsewhere").master_key("local:other")
    assert key.unwrap(first, aad=CONTEXT) == key.unwrap(second, aad=CONTEXT) == kek


def test_an_import_adds_newer_versions_and_is_repeatable(keyring: KeyringFile, tmp_path: Path) -> None:
    keyring.backup(tmp_path / "old.json")
    keyring.rotate("default")
    keyring.export_key("default", tmp_path / "new.json", passphrase("y"), kdf=FAST)
    old = KeyringFile(tmp_path / "old.json", passphrase("correct horse"))
    for _ in range(2):
        old.import_keys(tmp_path / "new.json", passphrase("y"))
        assert old.list() == keyring.list()
    keyring.import_keys(old.path, passphrase("correct horse"))
    assert keyring.list() == old.list()


def test_an_import_never_replaces_another_key(keyring: KeyringFile, tmp_path: Path) -> None:
    other = KeyringFile(tmp_path / "other.json", passphrase("y"))
    other.create("default", "extra", kdf=FAST)
    before = keyring.path.read_bytes()
    with pytest.raises(ConfigError) as caught:
        keyring.import_keys(other.path, passphrase("y"))
    assert caught.value.code == "exists"
    assert keyring.path.read_bytes() == before


def test_a_backup_is_a_copy_or_sealed_anew(keyring: KeyringFile, tmp_path: Path) -> None:
    keyring.backup(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == keyring.path.read_bytes()
    create_key_file(tmp_path / "key")
    keyring.backup(tmp_path / "anew.json", KeyFileUnlock(tmp_path / "key"))
    assert KeyringFile(tmp_path / "anew.json", KeyFileUnlock(tmp_path / "key")).list() == keyring.list()
    with pytest.raises(ConfigError) as caught:
        keyring.backup(tmp_path / "copy.json")
    assert caught.value.code == "exists"


def test_a_backup_that_nobody_could_open_is_not_made(keyring: KeyringFile, tmp_path: Path) -> None:
    with pytest.raises(KmsError):
        KeyringFile(keyring.path, passphrase("wrong")).backup(tmp_path / "copy.json")
    assert not (tmp_path / "copy.json").exists()


def test_the_passphrase_and_the_kind_of_protection_can_be_changed(
    keyring: KeyringFile, tmp_path: Path
) -> None:
    kek = Secret.random()
    wrapped = service(keyring.path).master_key("local:default").wrap(kek, aad=CONTEXT)
    keyring.change_protection(passphrase("new"), kdf=FAST)
    assert service(keyring.path, "new").master_key("local:default").unwrap(wrapped, aad=CONTEXT) == kek
    with pytest.raises(KmsError):
        service(keyring.path).master_key("local:default").unwrap(wrapped, aad=CONTEXT)
    create_key_file(tmp_path / "key")
    keyring.change_protection(KeyFileUnlock(tmp_path / "key"))
    keyring.create_key("other")  # unlocked the new way from here on
    by_file = LocalKms(KmsSettings(keyring=KeyringConfig(keyring.path, f"key-file:{tmp_path / 'key'}")))
    assert by_file.master_key("local:default").unwrap(wrapped, aad=CONTEXT) == kek


def test_a_change_under_an_outdated_passphrase_is_refused(keyring: KeyringFile, tmp_path: Path) -> None:
    rival = KeyringFile(keyring.path, passphrase("correct horse"))

    def rival_is_faster(_: str) -> str:
        rival.change_protection(passphrase("new"), kdf=FAST)
        return "correct horse"

    with pytest.raises(ConflictError):
        KeyringFile(keyring.path, PassphraseUnlock(rival_is_faster)).create_key("other")
    assert list(keyring.list()) == ["default"]


def test_a_keyring_has_limits(keyring: KeyringFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = KeyringFile(tmp_path / "other.json", passphrase("y"))
    other.create("other", kdf=FAST)
    monkeypatch.setattr(keyringkeys, "MAX_KEYS", 1)
    monkeypatch.setattr(keyringkeys, "MAX_VERSIONS", 1)
    for change in (
        lambda: keyring.create_key("other"),
        lambda: keyring.rotate("default"),
        lambda: keyring.import_keys(other.path, passphrase("y")),
    ):
        with pytest.raises(ConfigError):
            change()
    assert list(keyring.list()) == ["default"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EACCES, "storage-denied"),
        (errno.EROFS, "storage-denied"),
        (errno.EDQUOT, "storage-full"),
        (errno.EIO, "storage"),
    ],
)
def test_what_the_system_refuses_is_a_storage_error(
    keyring: KeyringFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    before = keyring.path.read_bytes()

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    for call, fail in (
        ("os.open", keyring.read),
        ("os.link", lambda: keyring.backup(tmp_path / "copy.json")),
        ("fcntl.flock", lambda: keyring.create_key("other")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(call, refuse)
            with pytest.raises(StorageError) as caught:
                fail()
        assert caught.value.code == code
    assert keyring.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [keyring.path.parent]


def test_a_lock_that_cannot_be_made_is_a_storage_error(keyring: KeyringFile) -> None:
    keyring.path.with_name("keyring.json.lock").symlink_to("/nowhere")
    with pytest.raises(StorageError):
        keyring.create_key("other")


@pytest.mark.parametrize("change", ["create_key", "rotate"])
def test_a_wrong_passphrase_changes_nothing(keyring: KeyringFile, change: str) -> None:
    before = keyring.path.read_bytes()
    with pytest.raises(KmsError) as caught:
        getattr(KeyringFile(keyring.path, passphrase("wrong")), change)("default")
    assert caught.value.code == "passphrase-wrong"
    assert keyring.path.read_bytes() == before


def test_a_damaged_keyring_is_not_written_over(keyring: KeyringFile) -> None:
    keyring.path.write_bytes(keyring.path.read_bytes()[:-10])
    before = keyring.path.read_bytes()
    with pytest.raises(IntegrityError) as caught:
        keyring.create_key("other")
    assert caught.value.code == "keyring-damaged"
    assert keyring.path.read_bytes() == before


CREATE_KEYS = """
import sys
from pathlib import Path
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.unlock import PassphraseUnlock

keyring = KeyringFile(Path(sys.argv[1]), PassphraseUnlock(lambda _: "correct horse"))
print("ready", flush=True)
sys.stdin.readline()
for n in range(10):
    keyring.create_key(f"{sys.argv[2]}{n}")
"""


def test_keys_made_by_several_processes_at_once_all_survive(keyring: KeyringFile) -> None:
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE_KEYS, str(keyring.path), letter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for letter in "abc"
    ]
    try:
        for maker in makers:
            assert maker.stdout is not None
            assert maker.stdout.readline() == b"ready\n"
        for maker in makers:
            assert maker.stdin is not None
            maker.stdin.write(b"\n")
            maker.stdin.flush()
        assert [maker.wait(60) for maker in makers] == [0, 0, 0]
    finally:
        for maker in makers:
            maker.kill()
            maker.communicate()
    assert set(keyring.list()) == {"default", *(f"{letter}{n}" for letter in "abc" for n in range(10))}
    keyring.backup(keyring.path.with_name("opens.json"))


def test_a_change_waits_for_the_lock_and_gives_up(
    keyring: KeyringFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privatefile, "LOCK_WAIT_SECONDS", 0.05)
    with privatefile.locked(keyring.path, what="the keyring"), pytest.raises(ConflictError) as caught:
        keyring.create_key("other")
    assert caught.value.code == "locked"
    keyring.create_key("other")


def test_a_failed_write_leaves_the_old_keyring_and_no_rest(
    keyring: KeyringFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keyring.path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError) as caught:
            keyring.create_key("other")
    assert caught.value.code == "storage-full"
    assert keyring.path.read_bytes() == before
    assert {entry.name for entry in keyring.path.parent.iterdir()} == {"keyring.json", "keyring.json.lock"}


def test_a_symbolic_link_stays_one(keyring: KeyringFile, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(keyring.path)
    KeyringFile(link, passphrase("correct horse")).create_key("other")
    assert link.is_symlink()
    assert list(keyring.list()) == ["default", "other"]


def test_the_default_path_follows_xdg(tmp_path: Path) -> None:
    assert default_path({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "encpipe" / "keyring.json"
    ignored = default_path({"XDG_DATA_HOME": "relative"})
    assert ignored == Path.home() / ".local" / "share" / "encpipe" / "keyring.json"
