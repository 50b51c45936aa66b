"""The table `kms.vault` and the URIs of transit keys: what is accepted, and that nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encpipe.config import load_config
from encpipe.errors import ConfigError
from encpipe.keys import KeyContext, Secret
from encpipe.kms import MasterKeys
from encpipe.kms.base import KmsSettings
from encpipe.kms.vault import VaultKms
from encpipe.kms.vault_table import VaultTable

ADDRESS = "https://vault.example:8200"


def parsed(**table: Any) -> VaultTable:
    return VaultTable.parse({"address": ADDRESS, **table})


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("VAULT_TOKEN", "BAO_TOKEN", "VAULT_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def private(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return f"file:{path}"


def test_defaults() -> None:
    assert parsed() == VaultTable(ADDRESS, auth_mount="approle", deadline=20.0)


def test_every_key_is_read() -> None:
    table = {
        "address": ADDRESS,
        "namespace": "team/research/",
        "role_id": "a-role",
        "secret_id": "env:SECRET_ID",
        "auth_mount": "auth-of/team",
        "connect_timeout": 1,
        "read_timeout": 2.5,
        "deadline": 30,
    }
    assert VaultTable.parse(table) == VaultTable(**table)  # type: ignore[arg-type]  # mixed on purpose


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'root_token'") as refused:
        VaultKms(KmsSettings({"address": ADDRESS, "root_token": "hunter2"}))
    assert refused.value.code == "config-unknown-key"
    assert "hunter2" not in str(refused.value)


def test_the_address_comes_from_the_configuration_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", ADDRESS)
    with pytest.raises(ConfigError, match=r"kms\.vault\.address") as refused:
        VaultKms(KmsSettings({}))
    assert refused.value.code == "config-missing"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("address", 8200),
        ("namespace", ""),
        ("namespace", "../other"),
        ("namespace", "team\r\nX-Vault-Token: x"),
        ("auth_mount", "approle/../token"),
        ("token", "hvs.hunter2"),
        ("token", "env:hunter2 x"),
        ("token", "file:hunter2"),
        ("token", ["env:NAME"]),
        ("secret_id", "hunter2"),
        ("deadline", 0),
        ("deadline", "20"),
        ("deadline", True),
        ("read_timeout", float("nan")),
        ("connect_timeout", float("inf")),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"kms\.vault\.{key}") as refused:
        parsed(**{"role_id": "r", **({key: value} if key != "token" else {key: value, "role_id": "r"})})
    assert "hunter2" not in f"{refused.value.message} {refused.value.hint}"


def test_two_ways_to_log_in_are_an_error() -> None:
    with pytest.raises(ConfigError, match="both token and role_id"):
        parsed(token="env:VAULT_TOKEN", role_id="r")
    with pytest.raises(ConfigError, match="without role_id"):
        parsed(secret_id="env:SECRET_ID")


def test_where_a_token_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token") as refused:
        parsed().read_token()
    assert refused.value.code == "config-missing"
    for place, text in (("~/.vault-token", "in-the-file"), ("BAO_TOKEN", "bao"), ("VAULT_TOKEN", "vault")):
        if place.startswith("~"):
            private(tmp_path / ".vault-token", f"{text}\n")
        else:
            monkeypatch.setenv(place, text)
        assert parsed().read_token().reveal() == text.encode()
    monkeypatch.setenv("OTHER", "other")
    assert parsed(token="env:OTHER").read_token().reveal() == b"other"
    assert parsed(token=private(tmp_path / "token", "t")).read_token().reveal() == b"t"


def test_a_token_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = private(tmp_path / "shared", "hunter2")
    (tmp_path / "shared").chmod(0o640)
    monkeypatch.setenv("TWO_LINES", "hunter2\r\nX-Evil: 1")
    for reference, code in (
        (shared, "keyring-permissions"),
        (f"file:{tmp_path}/absent", "config-missing"),
        (private(tmp_path / "empty", "\n"), "config-missing"),
        ("env:NOT_SET_AT_ALL", "config-missing"),
        ("env:TWO_LINES", "config"),
        (private(tmp_path / "long", "x" * 20_000), "config"),
    ):
        with pytest.raises(ConfigError) as refused:
            parsed(token=reference).read_token()
        assert refused.value.code == code
        assert "hunter2" not in f"{refused.value.message} {refused.value.hint}"


def test_the_ids_of_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_ID", "s")
    monkeypatch.setenv("ROLE_ID", "r")
    secret = private(tmp_path / "secret", "from-file\n")
    for table, login in (
        ({"role_id": "r"}, {"role_id": "r"}),
        ({"role_id": "env:ROLE_ID", "secret_id": "env:SECRET_ID"}, {"role_id": "r", "secret_id": "s"}),
        ({"role_id": "r", "secret_id": secret}, {"role_id": "r", "secret_id": "from-file"}),
    ):
        assert parsed(**table).read_login() == login


@pytest.mark.parametrize(
    "name", ["footer", "transit", "Transit/footer", "team/a.b/transit/Footer_1-a", "a", "x" * 128]
)
def test_uris_of_every_form_are_keys(name: str) -> None:
    assert VaultKms(KmsSettings({"address": ADDRESS})).master_key(f"vault:{name}").uri == f"vault:{name}"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/..",
            "../a",
            ".a",
            "a.",
            "a b",
            "a\n",
            "ä",
            "a?b",
            "a#b",
        ),
        *("a%2fb", "x" * 129, "/".join("abcdefghij")),
    ],
)
def test_other_uris_are_config_errors(name: str) -> None:
    with pytest.raises(ConfigError, match="not the URI of a transit key"):
        VaultKms(KmsSettings({"address": ADDRESS})).master_key(f"vault:{name}")


def test_the_default_mount_is_no_second_spelling_of_a_key() -> None:
    """Trust and revoke compare URIs as text."""
    with pytest.raises(ConfigError, match="not the URI of a transit key") as refused:
        VaultKms(KmsSettings({"address": ADDRESS})).master_key("vault:transit/Footer_1")
    assert refused.value.hint == "write vault:Footer_1"


def test_a_kek_of_another_length_is_not_sent() -> None:
    key = VaultKms(KmsSettings({"address": ADDRESS})).master_key("vault:footer")
    with pytest.raises(ValueError, match="32 bytes"):
        key.wrap(Secret(b"short"), aad=KeyContext("d", "footer", "k"))


def test_the_example_configuration_reaches_its_keys() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "vault.toml", env={})
    keys = MasterKeys(config)
    assert [keys.for_key_name(name)[0].uri for name in config.policy.key_names] == [
        "vault:footer",
        "vault:team-pii/transit/pii",
    ]
    table = VaultTable.parse(config.kms["vault"])
    assert (table.address, table.token, table.auth_mount) == ("https://vault.example:8200", None, "approle")


def test_the_documented_table_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kms" / "vault.md").read_text()
    for key in VaultTable.__dataclass_fields__:
        assert f"`{key}`" in page, key


def test_naming_a_key_does_not_import_hvac() -> None:
    code = f"""
import sys
from encpipe.kms.vault import VaultKms
from encpipe.kms.base import KmsSettings
VaultKms(KmsSettings({{"address": "{ADDRESS}"}})).master_key("vault:footer")
sys.exit("hvac" in sys.modules or "requests" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
