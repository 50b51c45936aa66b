"""Where no configuration file was found, the errors that come of it say so, and where it was looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

import encpipe
from encpipe import Config, ConfigError, MasterKeys, Policy, UntrustedKeyError
from encpipe.config import KeyringConfig
from encpipe.kms.keyringfile import KeyringFile, default_path
from encpipe.kms.unlock import KeyFileUnlock, create_key_file
from encpipe.testing import InMemoryKms

TOLD = r"no configuration was found: looked for \$ENCPIPE_CONFIG \(not set\), ./encpipe.toml, "
ROWS = pa.table({"id": [1], "name": ["x"]})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The one that wrote the dataset at `./dataset`; in an empty home but for its keyring and key file."""
    for name in [name for name in os.environ if name.startswith(("ENCPIPE_", "XDG_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    key_file = tmp_path / "encpipe.key"
    create_key_file(key_file)
    default_path().parent.mkdir(parents=True)
    KeyringFile(default_path(), KeyFileUnlock(key_file)).create("default")
    made = Config(keyring=KeyringConfig(unlock=f"key-file:{key_file}"), keys={"footer": ("local:default",)})
    encpipe.write_dataset(ROWS, "dataset", config=made, policy=Policy())
    return made


def test_a_keyring_that_is_unlocked_otherwise(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="protected by a key file.*" + TOLD) as refused:
        encpipe.open_dataset("dataset")
    assert str(tmp_path / "home/.config/encpipe/config.toml") in refused.value.message
    assert refused.value.hint.startswith("name the configuration (config=, --config or $ENCPIPE_CONFIG)")
    assert "keyring.unlock" in refused.value.hint
    with encpipe.open_dataset("dataset", config=config) as dataset:
        assert dataset.num_rows == 1


def test_a_keyring_that_is_not_there(config: Config) -> None:
    default_path().unlink()
    with pytest.raises(UntrustedKeyError, match="not trusted.*" + TOLD):
        encpipe.open_dataset("dataset")
    with pytest.raises(UntrustedKeyError, match=TOLD):
        encpipe.verify_dataset("dataset")


def test_a_key_that_is_needed_only_later(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    kms = InMemoryKms(["pii"])
    keys = {"footer": ("local:default",), "pii": ("memory:pii",)}
    full = Config(keyring=config.keyring, keys=keys)
    policy = Policy(columns={"pii": ("name",)})
    master_keys = MasterKeys(full, extra={"memory": kms})
    encpipe.write_dataset(ROWS, "later", config=full, master_keys=master_keys, policy=policy)
    monkeypatch.setenv("ENCPIPE_KEYRING", str(default_path()))
    lacking = Config(keyring=config.keyring, searched=("nowhere",))
    told = r"'memory:pii'.*no configuration was found: looked for nowhere"
    with encpipe.open_dataset("later", config=lacking) as dataset:
        assert dataset.to_table(["id"]).num_rows == 1
        with pytest.raises(UntrustedKeyError, match=told):
            dataset.to_table()


def test_with_a_configuration_nothing_is_said_of_it(config: Config) -> None:
    Path("encpipe.toml").write_text('[keys]\nfooter = ["local:default"]\n')
    with pytest.raises(ConfigError, match="protected by a key file") as refused:
        encpipe.open_dataset("dataset")
    assert "no configuration" not in refused.value.message
