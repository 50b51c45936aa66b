"""The local keyring obeys the contract of a key service, under each way to unlock it."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from encpipe.config import KeyringConfig
from encpipe.keys import MasterKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.keyringformat import KdfParams
from encpipe.kms.local import LocalKms
from encpipe.kms.unlock import create_key_file
from encpipe.testing import KmsContract

MALFORMED = (
    "local:",
    "local:UPPER",
    "local:a/b",
    "local:../a",
    "local:" + "a" * 33,
    "aws-kms:a",
    "local",
    "",
)


class LocalContract(KmsContract):
    malformed_uris = MALFORMED
    destroys = True

    @pytest.fixture
    def master_key(self, kms: LocalKms) -> MasterKey:
        return kms.master_key("local:one")

    @pytest.fixture
    def other_master_key(self, kms: LocalKms) -> MasterKey:
        return kms.master_key("local:two")

    @pytest.fixture
    def doomed_master_key(self, other_master_key: MasterKey) -> MasterKey:
        return other_master_key


class TestPassphrase(LocalContract):
    @pytest.fixture
    def kms(self, tmp_path: Path) -> LocalKms:
        config = KeyringConfig(tmp_path / "keyring.json", "prompt")
        KeyringFile.from_config(config, lambda _: "a passphrase").create(
            "one", "two", kdf=KdfParams.FAST_FOR_TESTS
        )
        return LocalKms(KmsSettings(keyring=config, ask_passphrase=lambda _: "a passphrase"))

    def test_trusts_its_own_names_without_unlocking(self, tmp_path: Path, kms: LocalKms) -> None:
        locked = LocalKms(KmsSettings(keyring=KeyringConfig(tmp_path / "keyring.json", "env:NOT_SET")))
        assert locked.trusts("local:one")
        assert not locked.trusts("local:three")
        assert not locked.trusts("aws-kms:one")


class TestKeyFile(LocalContract):
    @pytest.fixture
    def kms(self, tmp_path: Path) -> LocalKms:
        create_key_file(tmp_path / "key")
        config = KeyringConfig(tmp_path / "keyring.json", f"key-file:{tmp_path / 'key'}")
        KeyringFile.from_config(config).create("one", "two")
        return LocalKms(KmsSettings(keyring=config))


class TestEnvironmentKey(LocalContract):
    """There is one such key, so the other is the `env` of another environment."""

    destroys = False

    @pytest.fixture
    def kms(self, monkeypatch: pytest.MonkeyPatch) -> LocalKms:
        monkeypatch.setenv("TEST_MASTER_KEY", base64.b64encode(os.urandom(32)).decode())
        return LocalKms(KmsSettings(keyring=KeyringConfig(unlock="key-env:TEST_MASTER_KEY")))

    @pytest.fixture
    def master_key(self, kms: LocalKms) -> MasterKey:
        return kms.master_key("local:env")

    @pytest.fixture
    def other_master_key(self, monkeypatch: pytest.MonkeyPatch) -> MasterKey:
        monkeypatch.setenv("OTHER_MASTER_KEY", base64.b64encode(os.urandom(32)).decode())
        other = LocalKms(KmsSettings(keyring=KeyringConfig(unlock="key-env:OTHER_MASTER_KEY")))
        return other.master_key("local:env")

    def test_trusts_only_the_one_name(self, kms: LocalKms) -> None:
        assert kms.trusts("local:env")
        assert not kms.trusts("local:one")
