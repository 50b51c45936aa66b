"""Datasets under keys of Azure Managed HSM (a fake of it): how often it is asked, and who reads what."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from servers.azurekv import ENTRA, HSM_DOMAIN, READER, TENANT, WRITER, FakeAzure, lookup
from servers.ca import CertificateAuthority

from encpipe import Config, KeyAccessDeniedError, Policy, open_dataset, write_dataset
from encpipe.config import TlsConfig

pytestmark = pytest.mark.server


@pytest.fixture
def azure(ca: CertificateAuthority) -> Iterator[FakeAzure]:
    with FakeAzure(ca) as running:
        yield running


@pytest.fixture(autouse=True)
def world(azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    become(monkeypatch, WRITER)
    ports = {ENTRA: azure.port, HSM_DOMAIN: azure.port}
    monkeypatch.setattr(socket, "getaddrinfo", lookup(socket.getaddrinfo, ports))


def become(monkeypatch: pytest.MonkeyPatch, identity: tuple[str, str]) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", identity[0])
    monkeypatch.setenv("AZURE_CLIENT_SECRET", identity[1])


@pytest.fixture(params=["A256GCM", "A256KW"])
def config(azure: FakeAzure, ca: CertificateAuthority, request: pytest.FixtureRequest) -> Config:
    return Config(
        keys={"footer": (azure.create_key("footer"),), "pii": (azure.create_key("pii"),)},
        policy=Policy(columns={"pii": ("name",)}),
        tls=TlsConfig(ca_file=ca.path),
        kms={"azure-kv": {"credential": "environment", "algorithm": request.param}},
    )


@pytest.fixture
def dataset(config: Config, tmp_path: Path) -> Path:
    rows = pa.table({"id": range(100), "name": [f"n{i}" for i in range(100)]})
    write_dataset(rows, tmp_path / "dataset", config=config)
    return tmp_path / "dataset"


def test_each_key_name_is_one_call(
    azure: FakeAzure, config: Config, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wraps, unwraps = {"A256GCM": ("encrypt", "decrypt"), "A256KW": ("wrapkey", "unwrapkey")}[
        str(config.kms["azure-kv"]["algorithm"])
    ]
    assert azure.asked == [wraps] * 2
    azure.asked.clear()
    become(monkeypatch, READER)
    opened = open_dataset(dataset, config=config)
    assert opened.to_table(["id"]).num_rows == 100
    assert azure.asked == [unwraps]
    assert opened.to_table()["name"].to_pylist() == [f"n{i}" for i in range(100)]
    assert azure.asked == [unwraps] * 2


def test_who_lacks_a_key_reads_the_other_columns(
    azure: FakeAzure, config: Config, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, READER)
    azure.denied.add((READER[0], "pii"))
    opened = open_dataset(dataset, config=config)
    assert opened.to_table(["id"]).num_rows == 100
    with pytest.raises(KeyAccessDeniedError, match="keys/pii"):
        opened.to_table()
    assert open_dataset(dataset, config=config, on_missing_key="skip").to_table().column_names == ["id"]


def test_a_disabled_key_stops_a_handle_until_it_is_enabled(
    azure: FakeAzure, config: Config, dataset: Path
) -> None:
    opened = open_dataset(dataset, config=config)
    azure.key(config.keys["pii"][0]).enabled = False
    with pytest.raises(KeyAccessDeniedError) as refused:
        opened.to_table()
    assert refused.value.code == "key-disabled"
    azure.key(config.keys["pii"][0]).enabled = True
    assert opened.to_table().num_rows == 100


def test_a_dataset_stays_readable_after_a_rotation(azure: FakeAzure, config: Config, dataset: Path) -> None:
    for uris in config.keys.values():
        azure.key(uris[0]).rotate()
    assert open_dataset(dataset, config=config).to_table().num_rows == 100
