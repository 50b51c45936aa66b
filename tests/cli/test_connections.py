"""`encpipe doctor` and `inspect` show what connections come to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from servers.ca import CertificateAuthority
from servers.observer import Observer
from servers.seaweed import Seaweed


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def configure(*lines: str) -> None:
    with Path("encpipe.toml").open("a") as file:
        file.write("\n".join(["", *lines, ""]))


def found(payload: dict[str, Any], check: str) -> tuple[str, str]:
    (one,) = (finding for finding in payload["findings"] if finding["check"] == check)
    return one["level"], one["found"]


def test_doctor_looks_at_every_endpoint_and_asks_it_nothing(ready: Cli, ca: CertificateAuthority) -> None:
    context = ca.server().server_context
    with Observer(context()) as vault, Observer(context()) as s3, Observer() as kms:
        configure(
            "[tls]",
            f'ca_file = "{ca.path}"',
            "[kms.vault]",
            f'address = "{vault.url}"',
            "[kms.aws-kms]",
            f'endpoint_url = "{kms.url}"',
            "[storage.s3]",
            f'endpoint_url = "{s3.url}"',
        )
        payload = ready("doctor", "--json").json
    for name, server in (("vault", vault), ("s3", s3)):
        level, text = found(payload, f"connection {name}")
        assert level == "ok"
        assert "TLSv1.3 with TLS_" in text
        assert "CN=server, issued by CN=encpipe test CA, until 20" in text
        assert (server.connections, server.requests) == (1, [])
    assert found(payload, "connection aws-kms") == (
        "note",
        f"{kms.url.removeprefix('http://')}: plain http, on this machine",
    )
    assert kms.connections == 0
    assert found(payload, "reads from s3") == ("ok", "by Arrow's client")


def test_doctor_fails_for_a_server_that_nobody_vouches_for(ready: Cli, ca: CertificateAuthority) -> None:
    with Observer(ca.self_signed().server_context()) as vault:
        configure("[tls]", f'ca_file = "{ca.path}"', "[kms.vault]", f'address = "{vault.url}"')
        level, text = found(ready("doctor", "--json", code=1).json, "connection vault")
    assert level == "fail"
    assert "not trusted" in text


def test_doctor_warns_of_servers_that_are_down_and_of_exceptions(ready: Cli) -> None:
    with Observer() as once:
        pass
    configure(
        "[tls]",
        'allow_plain_http_to = ["vault.internal"]',
        "[kms.vault]",
        'address = "http://vault.internal"',
        "[storage.s3]",
        f'endpoint_url = "https://127.0.0.1:{once.port}"',
        'region_name = "eu-west-1"',
    )
    payload = ready("doctor", "--json").json
    assert found(payload, "plain http") == ("warn", "allowed to vault.internal")
    assert found(payload, "connection vault") == ("note", "vault.internal: plain http, allowed")
    assert found(payload, "connection s3")[0] == "warn"
    assert "boto3" in found(payload, "reads from s3")[1]


def test_doctor_knows_the_endpoints_that_keys_imply(monkeypatch: pytest.MonkeyPatch, ready: Cli) -> None:
    from encpipe.checkup import connections

    asked: list[str] = []

    def look(name: str, url: str, tls: object) -> connections.Finding:
        asked.append(url)
        return connections.Finding(f"connection {name}", "ok", url)

    monkeypatch.setattr(connections, "_look", look)
    configure(
        "[trust]",
        'master_keys = ["aws-kms:arn:aws-cn:kms:cn-north-1:111122223333:key/x",',
        ' "azure-kv:https://one.managedhsm.azure.net/keys/k", "aws-kms:alias/unknown-region",',
        ' "gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k"]',
    )
    ready("doctor", "--json")
    assert sorted(asked) == [
        "https://cloudkms.googleapis.com",
        "https://kms.cn-north-1.amazonaws.com.cn",
        "https://one.managedhsm.azure.net",
    ]


@pytest.mark.server
def test_inspect_shows_the_connection_with_the_storage(
    ready: Cli, seaweed: Seaweed, bucket: str, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a\n1\n")
    configure(
        "[tls]",
        f'ca_file = "{seaweed.ca}"',
        "[storage.s3]",
        f'key = "{seaweed.access_key}"',
        f'secret = "{seaweed.secret_key}"',
        f'endpoint_url = "{seaweed.https}"',
    )
    ready("encrypt", table, f"s3://{bucket}/t")
    seen = ready("inspect", f"s3://{bucket}/t", "--json").json["connection"]
    assert seen["server"] == seaweed.https.removeprefix("https://")
    assert seen["protocol"] == "TLSv1.3"
    assert seen["issuer"] == "CN=encpipe test CA"
    shown = ready("inspect", f"s3://{bucket}/t").out
    assert "connection" in shown
    assert seen["cipher"] in shown


def test_inspect_of_a_local_dataset_has_no_connection(ready: Cli, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a\n1\n")
    ready("encrypt", table, "out")
    assert ready("inspect", "out", "--json").json["connection"] is None
    assert "connection" not in ready("inspect", "out").out
