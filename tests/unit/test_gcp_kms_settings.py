"""The table `kms.gcp-kms` and the URIs of Google Cloud keys: what is accepted, and that nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encpipe.config import load_config
from encpipe.errors import ConfigError, UntrustedKeyError
from encpipe.keys import KeyContext, Secret
from encpipe.kms import MasterKeys
from encpipe.kms.base import KmsSettings
from encpipe.kms.gcp import GcpKms, GcpKmsTable

KEY = "projects/p-1/locations/europe-west3/keyRings/Ring_1/cryptoKeys/Key-1"


def test_defaults() -> None:
    assert GcpKmsTable.parse({}) == GcpKmsTable("https://cloudkms.googleapis.com", None, deadline=20.0)


def test_every_key_is_read() -> None:
    table = {
        "endpoint_url": "https://kms.example",
        "service_account_file": "~/account.json",
        "connect_timeout": 1,
        "read_timeout": 2.5,
        "deadline": 30,
    }
    read = GcpKmsTable.parse(table)
    assert read == GcpKmsTable(**table)  # type: ignore[arg-type]  # mixed on purpose
    assert read.account_path == Path.home() / "account.json"


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'private_key'") as refused:
        GcpKms(KmsSettings({"private_key": "hunter2"}))
    assert refused.value.code == "config-unknown-key"
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("endpoint_url", 1),
        ("service_account_file", ""),
        ("service_account_file", "account.json"),
        ("deadline", 0),
        ("deadline", -1),
        ("deadline", "20"),
        ("deadline", True),
        ("read_timeout", float("nan")),
        ("connect_timeout", float("inf")),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"kms\.gcp-kms\.{key}"):
        GcpKms(KmsSettings({key: value}))


@pytest.mark.parametrize(
    "name",
    [
        KEY,
        KEY.replace("p-1", "example.com:p-1"),
        KEY.replace("p-1", "123456789012"),
        KEY.replace("europe-west3", "global"),
    ],
)
def test_names_of_keys_are_uris(name: str) -> None:
    assert GcpKms(KmsSettings()).master_key(f"gcp-kms:{name}").uri == f"gcp-kms:{name}"


@pytest.mark.parametrize(
    "name",
    ["", "Key-1", f"/{KEY}", f"{KEY}\n", f" {KEY}", f"{KEY}/", f"{KEY}/cryptoKeyVersions/1", f"{KEY}:decrypt"]
    + [
        KEY.replace(*change)
        for change in [
            ("projects/", "project/"),
            ("p-1", ""),
            ("p-1", ".."),
            ("p-1", "P"),
            ("europe-west3", "europe/west3"),
            ("Ring_1", "Ring.1"),
            ("Key-1", "Key 1"),
            ("Key-1", "Key%2e1"),
            ("Key-1", "K" * 64),
        ]
    ],
)
def test_other_uris_are_config_errors(name: str) -> None:
    with pytest.raises(ConfigError, match="not the URI of a Google Cloud KMS key"):
        GcpKms(KmsSettings()).master_key(f"gcp-kms:{name}")


def test_a_kek_of_another_length_is_not_sent() -> None:
    key = GcpKms(KmsSettings()).master_key(f"gcp-kms:{KEY}")
    with pytest.raises(ValueError, match="32 bytes"):
        key.wrap(Secret(b"short"), aad=KeyContext("d", "footer", "k"))


def test_the_example_configuration_reaches_its_keys() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "gcp.toml", env={})
    keys = MasterKeys(config)
    assert [len(keys.for_key_name(name)) for name in config.policy.key_names] == [1, 2]
    assert GcpKmsTable.parse(config.kms["gcp-kms"]) == GcpKmsTable()
    with pytest.raises(UntrustedKeyError):
        keys.get(f"gcp-kms:{KEY}", key_name="footer")


def test_the_page_shows_the_example_configuration() -> None:
    root = Path(__file__).parents[2]
    table = (root / "configs" / "gcp.toml").read_text().partition("[kms.gcp-kms]\n")[2]
    assert f"[kms.gcp-kms]\n{table}" in (root / "docs" / "kms" / "gcp.md").read_text()


def test_naming_a_key_does_not_import_the_sdk() -> None:
    code = f"""
import sys
from encpipe.kms.gcp import GcpKms
from encpipe.kms.base import KmsSettings
GcpKms(KmsSettings()).master_key("gcp-kms:{KEY}")
sys.exit(any(name in sys.modules for name in ("google.auth", "google.cloud", "grpc", "requests")))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
