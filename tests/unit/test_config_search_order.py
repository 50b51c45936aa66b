"""Which configuration file counts, and what the environment adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from encpipe.config import Config, find_config, load_config
from encpipe.errors import ConfigError

MINE = '[keys]\n{name} = ["local:default"]\n'


def write(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MINE.format(name=name))
    return path


@pytest.fixture
def everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A configuration at every place that is searched; each gives another key name."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return {
        "flag": write(tmp_path / "flag.toml", "flag"),
        "variable": write(tmp_path / "variable.toml", "variable"),
        "here": write(here / "encpipe.toml", "here"),
        "xdg": write(tmp_path / "xdg" / "encpipe" / "config.toml", "xdg"),
    }


def env_of(places: dict[str, Path]) -> dict[str, str]:
    return {
        "ENCPIPE_CONFIG": str(places["variable"]),
        "XDG_CONFIG_HOME": str(places["xdg"].parent.parent),
        "HOME": str(places["flag"].parent),
    }


def test_the_first_place_wins_and_nothing_is_merged(everywhere: dict[str, Path]) -> None:
    env = env_of(everywhere)
    flag = load_config(everywhere["flag"], env=env)
    assert flag.keys == {"flag": ("local:default",)}
    assert flag.source == everywhere["flag"]
    assert list(load_config(env=env).keys) == ["variable"]
    del env["ENCPIPE_CONFIG"]
    assert list(load_config(env=env).keys) == ["here"]
    everywhere["here"].unlink()
    assert list(load_config(env=env).keys) == ["xdg"]
    everywhere["xdg"].unlink()
    assert load_config(env=env) == Config()
    assert find_config(env=env) is None
    assert load_config(env=env).searched == (
        "$ENCPIPE_CONFIG (not set)",
        "./encpipe.toml",
        str(everywhere["xdg"]),
    )
    assert flag.searched == ()


def test_without_xdg_config_home_the_home_folder_is_searched(everywhere: dict[str, Path]) -> None:
    home = everywhere["flag"].parent
    everywhere["here"].unlink()
    personal = write(home / ".config" / "encpipe" / "config.toml", "home")
    for xdg in ({}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "relative"}):
        assert find_config(env={"HOME": str(home), **xdg}) == personal


def test_a_file_that_is_named_must_be_there(everywhere: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml") as by_flag:
        load_config(tmp_path / "absent.toml", env={})
    assert by_flag.value.code == "config-missing"
    with pytest.raises(ConfigError, match="ENCPIPE_CONFIG") as by_variable:
        load_config(env={"ENCPIPE_CONFIG": str(tmp_path / "absent.toml")})
    assert by_variable.value.code == "config-missing"


def test_the_environment_names_the_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text('[keyring]\npath = "a.json"\n')
    assert load_config(config, env={}).keyring.path == tmp_path / "a.json"
    named = {"ENCPIPE_KEYRING": "b.json"}
    assert load_config(config, env=named).keyring.path == tmp_path / "b.json"
    assert load_config(env={**named, "HOME": str(tmp_path)}).keyring.path == tmp_path / "b.json"


def test_the_environment_unlocks_where_the_configuration_does_not_say(tmp_path: Path) -> None:
    silent, explicit = tmp_path / "silent.toml", tmp_path / "explicit.toml"
    silent.write_text("")
    explicit.write_text('[keyring]\nunlock = "prompt"\n')
    secret = "S3cret-marker"
    env = {
        "ENCPIPE_MASTER_KEY": secret,
        "ENCPIPE_PASSPHRASE_FILE": str(tmp_path / "p"),
        "ENCPIPE_PASSPHRASE": secret,
    }
    assert load_config(explicit, env=env).keyring.unlock == "prompt"
    for unlock, variable in (
        ("key-env:ENCPIPE_MASTER_KEY", "ENCPIPE_MASTER_KEY"),
        (f"file:{tmp_path / 'p'}", "ENCPIPE_PASSPHRASE_FILE"),
        ("env:ENCPIPE_PASSPHRASE", "ENCPIPE_PASSPHRASE"),
    ):
        config = load_config(silent, env=env)
        assert config.keyring.unlock == unlock
        assert secret not in repr(config)
        env[variable] = ""
    assert load_config(silent, env=env).keyring.unlock == "prompt"


def test_a_master_key_in_the_environment_needs_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"HOME": str(tmp_path), "ENCPIPE_MASTER_KEY": "x"}
    config = load_config(env=env)
    assert config.keys == {"footer": ("local:env",)}
    assert config.keyring.unlock == "key-env:ENCPIPE_MASTER_KEY"
    (tmp_path / "encpipe.toml").write_text("")
    assert load_config(env=env).keys == {}
