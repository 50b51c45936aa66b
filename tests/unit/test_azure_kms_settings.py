"""The table `kms.azure-kv` and the URIs of Azure keys: what is accepted, and that nothing else is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encpipe.config import Config, load_config
from encpipe.errors import ConfigError, UntrustedKeyError
from encpipe.keys import KeyContext, Secret
from encpipe.kms import MasterKeys
from encpipe.kms.azure import AzureKms, AzureKvTable
from encpipe.kms.base import KmsSettings

ROOT = Path(__file__).parents[2]
KEY = "https://unit.managedhsm.azure.net/keys/footer-1"


def test_defaults() -> None:
    assert AzureKvTable.parse({}) == AzureKvTable(algorithm="A256GCM", credential="default", deadline=20.0)


def test_every_key_is_read() -> None:
    table = {
        "algorithm": "A256KW",
        "credential": "managed-identity",
        "client_id": "11111111-2222-3333-4444-555555555555",
        "authority": "https://login.microsoftonline.us",
        "connect_timeout": 1,
        "read_timeout": 2.5,
        "deadline": 30,
    }
    assert AzureKvTable.parse(table) == AzureKvTable(**table)  # type: ignore[arg-type]  # mixed on purpose


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'client_secret'") as refused:
        AzureKms(KmsSettings({"client_secret": "hunter2"}))
    assert refused.value.code == "config-unknown-key"
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm", "RSA-OAEP"),
        ("algorithm", 1),
        ("credential", "interactive"),
        ("client_id", ""),
        ("authority", "login.microsoftonline.us"),
        ("authority", "http://login.microsoftonline.us"),
        ("deadline", 0),
        ("deadline", "20"),
        ("deadline", True),
        ("read_timeout", float("nan")),
        ("connect_timeout", float("inf")),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"kms\.azure-kv\.{key}"):
        AzureKms(KmsSettings({key: value}))


@pytest.mark.parametrize("credential", ["environment", "cli"])
def test_a_client_id_that_would_not_count_is_an_error(credential: str) -> None:
    with pytest.raises(ConfigError, match=r"kms\.azure-kv\.client_id"):
        AzureKms(KmsSettings({"credential": credential, "client_id": "x"}))


@pytest.mark.parametrize(
    "name",
    [KEY, KEY.replace("footer-1", "k" * 127), KEY.replace(".net", ".cn"), KEY.replace("net/", "net:8443/")],
)
def test_ids_of_keys_are_uris(name: str) -> None:
    assert AzureKms(KmsSettings()).master_key(f"azure-kv:{name}").uri == f"azure-kv:{name}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "footer-1",
        f"{KEY}\n",
        f" {KEY}",
        f"{KEY}/",
        f"{KEY}?x",
        f"{KEY}#x",
        f"{KEY}/{'0' * 32}",
        f"{KEY}/encrypt",
    ]
    + [
        KEY.replace(*change)
        for change in [
            ("https:", "http:"),
            ("https:", "HTTPS:"),
            ("unit.", "user@unit."),
            ("unit.", "Unit."),
            ("unit.managedhsm.azure.net", ""),
            ("unit.managedhsm.azure.net", "."),
            (".net/", ".net:/"),
            (".net/", ".net:999999/"),
            ("/keys/", "/secrets/"),
            ("/keys/", "//keys/"),
            ("footer-1", ""),
            ("footer-1", ".."),
            ("footer-1", "a_b"),
            ("footer-1", "a%2fb"),
            ("footer-1", "k" * 128),
            ("footer-1", "\N{KELVIN SIGN}"),
        ]
    ],
)
def test_other_uris_are_config_errors(name: str) -> None:
    with pytest.raises(ConfigError, match="not the URI of an Azure key"):
        AzureKms(KmsSettings()).master_key(f"azure-kv:{name}")


@pytest.mark.parametrize(
    ("change", "port"),
    [
        (("footer-1", "Footer-1"), ""),
        (("unit.", "UNIT."), ""),
        (("https:", "HTTPS:"), ""),
        (("/keys/", "/Keys/"), ""),
        ((".net/", ".net:443/"), ""),
        ((".net/", ".net:00443/"), ""),
        ((".net/", ".net:08443/"), ":8443"),
    ],
)
def test_a_key_has_one_spelling_and_the_hint_shows_it(change: tuple[str, str], port: str) -> None:
    """Trust and revoke compare URIs as text."""
    with pytest.raises(ConfigError, match="not the URI of an Azure key") as refused:
        AzureKms(KmsSettings()).master_key(f"azure-kv:{KEY.replace(*change)}")
    canonical = KEY.replace(".net/", f".net{port}/")
    assert refused.value.hint == f"write azure-kv:{canonical}"
    assert AzureKms(KmsSettings()).master_key(f"azure-kv:{canonical}").uri == f"azure-kv:{canonical}"


def test_a_kek_of_another_length_is_not_sent() -> None:
    key = AzureKms(KmsSettings()).master_key(f"azure-kv:{KEY}")
    with pytest.raises(ValueError, match="32 bytes"):
        key.wrap(Secret(b"short"), aad=KeyContext("d", "footer", "k"))


def test_only_the_configuration_trusts() -> None:
    keys = MasterKeys(Config(keys={"footer": (f"azure-kv:{KEY}",)}))
    assert keys.for_key_name("footer")[0].uri == f"azure-kv:{KEY}"
    with pytest.raises(UntrustedKeyError) as refused:
        keys.get(f"azure-kv:{KEY}2", key_name="footer")
    assert f"{KEY}2" in refused.value.hint


def test_the_example_configuration_reaches_its_keys() -> None:
    config = load_config(ROOT / "configs" / "azure.toml", env={})
    keys = MasterKeys(config)
    assert [len(keys.for_key_name(name)) for name in config.policy.key_names] == [1, 2]
    for uri in config.trust.master_keys:
        assert keys.get(uri, key_name="footer").uri == uri
    assert AzureKvTable.parse(config.kms["azure-kv"]) == AzureKvTable()


def test_the_page_shows_the_example_configuration() -> None:
    table = (ROOT / "configs" / "azure.toml").read_text().partition("[kms.azure-kv]\n")[2]
    page = (ROOT / "docs" / "kms" / "azure.md").read_text()
    assert f"[kms.azure-kv]\n{table}" in page
    assert set(re.findall(r"managedHsm/(keys/[a-z]+/action)", page)) == {
        f"keys/{operation}/action" for operation in ("encrypt", "decrypt", "wrap", "unwrap")
    }


def test_naming_a_key_does_not_import_the_sdk() -> None:
    code = f"""
import sys
from encpipe.kms.azure import AzureKms
from encpipe.kms.base import KmsSettings
AzureKms(KmsSettings()).master_key("azure-kv:{KEY}")
sys.exit(any(name in sys.modules for name in ("azure.core", "azure.identity", "msal", "requests")))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
