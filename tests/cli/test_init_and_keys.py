"""`encpipe init` and `encpipe keys`: from nothing to a keyring that is kept safe."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from conftest import Cli

from encpipe.config import load_config, user_config_path

PASSPHRASE = "correct horse battery"
WITH_PASSPHRASE = {"ENCPIPE_PASSPHRASE": PASSPHRASE}


def keyring_of(home: Path) -> Path:
    return home / ".local" / "share" / "encpipe" / "keyring.json"


def names(cli: Cli) -> list[str]:
    return [key["name"] for key in cli("keys", "list", "--json").json["keys"]]


def test_init_makes_a_keyring_and_a_configuration_that_work(cli: Cli, home: Path) -> None:
    ran = cli("init", "--key", "pii=local:pii", env=WITH_PASSPHRASE)
    assert "a lost keyring is lost data" in ran.out
    assert "encpipe keys backup" in ran.out
    assert ran.err == ""
    config = load_config(env={})
    assert config.source == Path("encpipe.toml").absolute()
    assert config.keys == {"footer": ("local:default",), "pii": ("local:pii",)}
    assert names(cli) == ["default", "pii"]
    assert keyring_of(home).stat().st_mode & 0o077 == 0
    cli("keys", "create", "more", env=WITH_PASSPHRASE)
    for text in (ran.out, Path("encpipe.toml").read_text(), keyring_of(home).read_text()):
        assert PASSPHRASE not in text


def test_init_with_a_key_file_writes_how_to_unlock(ready: Cli, home: Path) -> None:
    key_file = home / "encpipe.key"
    assert len(base64.b64decode(key_file.read_text())) == 32
    assert key_file.stat().st_mode & 0o077 == 0
    assert load_config(env={}).keyring.unlock == f"key-file:{key_file}"
    ready("keys", "rotate", "pii")


def test_init_as_json(cli: Cli, home: Path) -> None:
    found = cli("init", "--json", "--key-file", "k.key").json
    assert found == {
        "config": str(Path("encpipe.toml").absolute()),
        "keys": {"footer": ["local:default"]},
        "keyring": str(keyring_of(home)),
        "keyring_is_new": True,
        "key_file": str(Path("k.key").absolute()),
    }


def test_init_overwrites_nothing(cli: Cli, home: Path) -> None:
    Path("encpipe.toml").write_text("# mine\n")
    ran = cli("init", "--key-file", home / "k.key", "--json", code=2)
    assert ran.json["error"]["code"] == "exists"
    assert Path("encpipe.toml").read_text() == "# mine\n"
    assert list(home.iterdir()) == []
    (home / "taken.key").write_text("mine")
    cli("init", "--config", "b.toml", "--key-file", home / "taken.key", code=2)
    assert (home / "taken.key").read_text() == "mine"
    assert not Path("b.toml").exists()


def test_a_second_project_uses_the_keyring_that_is_there(ready: Cli, home: Path) -> None:
    before = keyring_of(home).read_bytes()
    found = ready("init", "--config", "second.toml", "--json").json
    assert found["keyring_is_new"] is False
    assert keyring_of(home).read_bytes() == before
    refused = ready("init", "--config", "third.toml", "--key", "x=local:absent", "--json", code=3)
    assert refused.json["error"]["code"] == "key-not-found"
    assert "encpipe keys create absent" in refused.json["error"]["hint"]
    fourth = ready("init", "--config", "4.toml", "--key-file", "new.key", "--json", code=2)
    assert fourth.json["error"]["code"] == "exists"
    assert not Path("third.toml").exists()
    assert not Path("new.key").exists()


def test_init_knows_the_places(cli: Cli, home: Path) -> None:
    personal = cli("init", "--global", "--key-file", home / "k", "--json").json["config"]
    assert personal == str(user_config_path(env={"HOME": str(home)}))
    named = cli("init", "--json", env={"ENCPIPE_CONFIG": str(home / "named.toml")}).json["config"]
    assert named == str(home / "named.toml")
    both = cli("init", "--global", "--config", "x.toml", "--json", code=2)
    assert both.json["error"]["code"] == "usage"


def test_init_with_other_key_services_makes_no_keyring(cli: Cli, home: Path) -> None:
    found = cli("init", "--key", "footer=aws-kms:alias/data", "--json").json
    assert found["keyring"] is None
    assert found["keys"] == {"footer": ["aws-kms:alias/data"]}
    assert list(home.iterdir()) == []


def test_init_with_a_master_key_in_the_environment_makes_no_keyring(cli: Cli, home: Path) -> None:
    key = base64.b64encode(os.urandom(32)).decode()
    found = cli("init", "--json", env={"ENCPIPE_MASTER_KEY": key}).json
    assert found["keyring"] is None
    assert found["keys"] == {"footer": ["local:env"]}
    assert list(home.iterdir()) == []


def test_without_a_terminal_nobody_is_asked(cli: Cli, home: Path) -> None:
    ran = cli("init", code=2)
    assert "is needed, and this is not a terminal" in ran.err
    assert "ENCPIPE_PASSPHRASE_FILE" in ran.err
    assert not Path("encpipe.toml").exists()


def test_keys_are_created_rotated_and_listed(ready: Cli) -> None:
    made = ready("keys", "create", "extra", "--json").json
    assert (made["name"], made["uri"], made["version"]) == ("extra", "local:extra", 1)
    assert ready("keys", "create", "extra", "--json", code=2).json["error"]["code"] == "exists"
    assert ready("keys", "rotate", "extra", "--json").json["version"] == 2
    rotated = ready("keys", "rotate", "default").out
    assert "Next: encpipe keys backup FILE" in rotated
    assert ready("keys", "rotate", "absent", "--json", code=3).json["error"]["code"] == "key-not-found"
    listed = ready("keys", "list").out.splitlines()
    assert listed[2].split() == ["master", "key", "version", "state", "created"]
    assert [line.split()[:3] for line in listed[3:]] == [
        ["local:default", "1", "retired"],
        ["local:default", "2", "active"],
        ["local:extra", "1", "retired"],
        ["local:extra", "2", "active"],
        ["local:pii", "1", "active"],
    ]


def test_a_key_moves_to_another_keyring(ready: Cli, home: Path) -> None:
    cli = ready
    secret = home / "handover"
    secret.write_text(PASSPHRASE)
    secret.chmod(0o600)
    cli("keys", "export", "pii", "pii.json", "--protect", "file:~/handover")
    other = {"ENCPIPE_KEYRING": str(home / "other.json")}
    cli("init", "--config", "other.toml", "--key-file", home / "other.key", env=other)
    args = ("keys", "import", "pii.json", "--config", "other.toml")
    found = cli(*args, "--unlock", "file:~/handover", "--json").json
    assert (found["names"], found["new"]) == (["pii"], ["pii"])
    assert "nothing new" in cli(*args, "--unlock", "file:~/handover").out
    assert cli(*args, "--unlock", "file:~/handover", "--json").json["new"] == []
    listed = cli("keys", "list", "--config", "other.toml", "--json").json["keys"]
    assert [key["name"] for key in listed] == ["default", "pii"]
    assert cli("keys", "export", "pii", "pii.json", "--protect", "file:~/handover", code=2)


def test_a_backup_restores_a_lost_keyring(ready: Cli, home: Path) -> None:
    ready("keys", "backup", "copy.json")
    keyring = keyring_of(home)
    keyring.unlink()
    assert "encpipe init" in ready("keys", "list", code=2).err
    Path("copy.json").rename(keyring)
    ready("keys", "rotate", "default")


def test_the_protection_is_changed(cli: Cli) -> None:
    cli("init", env=WITH_PASSPHRASE)
    changed = {**WITH_PASSPHRASE, "NEW_ONE": "another passphrase"}
    cli("keys", "passphrase", "--protect", "env:NEW_ONE", env=changed)
    old = cli("keys", "create", "a", "--json", code=3, env=WITH_PASSPHRASE)
    assert old.json["error"]["code"] == "passphrase-wrong"
    cli("keys", "create", "a", env={"ENCPIPE_PASSPHRASE": "another passphrase"})


def test_what_cannot_be_used_comes_with_advice(ready: Cli, home: Path) -> None:
    Path("wrong.toml").write_text('[keyring]\nunlock = "S3cret-marker"\n')
    ran = ready("keys", "list", "--config", "wrong.toml", code=2)
    assert "hint: for example unlock = " in ran.err
    assert "S3cret" not in ran.err
    for damaged in ("", "x"):
        keyring_of(home).write_text(damaged)
        assert "hint: restore the keyring from a backup" in ready("keys", "list", code=4).err


def test_a_policy_file_that_is_none_comes_with_advice(ready: Cli) -> None:
    encrypt = ("encrypt", "people.csv", "enc", "--policy", "policy.toml", "--json")
    missing = ready(*encrypt, code=2).json["error"]
    assert (missing["code"], missing["hint"]) == ("config-missing", "check the path of --policy")
    Path("policy.toml").write_text('[policy]\nfooter_key = "footer"\n')
    as_in_config = ready(*encrypt, code=2).json["error"]
    assert as_in_config["code"] == "config-unknown-key"
    assert "leave out the [policy] line" in as_in_config["hint"]


@pytest.mark.parametrize("form", ["S3cret-marker", "key-env:S3cret", "env:"])
def test_a_passphrase_on_the_command_line_is_refused_and_not_repeated(ready: Cli, form: str) -> None:
    ran = ready("keys", "backup", "b.json", "--protect", form, code=2)
    assert "S3cret" not in ran.out + ran.err
    assert not Path("b.json").exists()
