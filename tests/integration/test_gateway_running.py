"""A gateway over its life: limits, rules and certificates that change, ends, what it writes down."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gatewayscene import OTHER, TRAINER, GatewayScene, flights, rule, uri
from scene import KEYS
from servers.ca import CertificateAuthority

import encpipe
from encpipe.audit import verify_audit
from encpipe.config import AuditConfig, Config, TlsConfig
from encpipe.errors import ConfigError, StorageError
from encpipe.gateway.server import Gateway
from encpipe.gateway.views import View


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, ca: CertificateAuthority) -> GatewayScene:
    return GatewayScene.create(tmp_path_factory.mktemp("gateway"), ca)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- limits


def test_an_identity_gets_its_rows_and_no_more(here: GatewayScene) -> None:
    with here.serve(rule(max_rows=120), rule(OTHER)), here.open() as dataset:
        got = []
        with pytest.raises(StorageError) as refused:
            got.extend(dataset.scan(["row"]))
        assert refused.value.code == "row-limit"
        assert sum(map(len, got)) <= 120
        with pytest.raises(StorageError, match="120 rows"):
            dataset.head(1)
        with here.open(OTHER) as other:
            assert len(other.to_table(["row"])) == 1000


def test_streams_of_one_identity_are_limited_and_given_back(here: GatewayScene) -> None:
    table = pa.table({"row": range(400_000), "text": ["x" * 100] * 400_000})
    large = dataclasses.replace(here, scene=here.scene.at(str(here.folder / "large")), issued={})
    large.scene.write(table, policy=encpipe.Policy())
    with (
        large.serve(rule(), rule(OTHER), max_streams_per_identity=1, parallel=1) as gateway,
        large.open() as dataset,
        large.open() as second,
        large.open(OTHER) as other,
    ):
        stalled = dataset.scan().batches()
        next(stalled)  # more is under way than fits the connection
        with pytest.raises(StorageError) as refused:
            second.to_table()
        assert refused.value.code == "gateway-busy"
        assert other.head(1).num_rows == 1
        stalled.close()
        until(lambda: gateway._service.streams.open == 0)
        assert second.head(1).num_rows == 1


def test_no_more_than_two_row_groups_of_a_stalled_stream_are_read(
    here: GatewayScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encpipe.gateway.views import Selected

    read: list[int] = []
    whole = Selected.read

    def counted(self: Selected, number: int) -> pa.Table:
        read.append(number)
        return whole(self, number)

    monkeypatch.setattr(Selected, "read", counted)
    with here.serve(rule(), parallel=1) as gateway:
        key = gateway._service
        ticket = key.info(TRAINER, b'{"v":1,"dataset":"flights"}').parts[0].ticket
        stream = key.stream(TRAINER, ticket)
        next(stream), next(stream)
        time.sleep(0.1)  # long enough for a reader without a limit to go on
        assert sorted(read) == [0, 1]
        stream.close()  # type: ignore[attr-defined] # a generator


# --- changes


def written(here: GatewayScene, file: Path, *rules: dict[str, Any], **more: Any) -> Config:
    table = here.table(*rules, **more)
    lines = ["[keys]", *(f"{name} = {json.dumps(list(uris))}" for name, uris in KEYS.items()), "[gateway]"]
    lines += [f"{k} = {json.dumps(v)}" for k, v in table.items() if k not in ("datasets", "rules")]
    lines += ["[gateway.datasets]", *(f"{k} = {json.dumps(v)}" for k, v in table["datasets"].items())]
    for one in table["rules"]:
        lines += ["[[gateway.rules]]", *(f"{k} = {json.dumps(v)}" for k, v in one.items())]
    file.write_text("\n".join(lines) + "\n")
    return encpipe.load_config(file)


def started(here: GatewayScene, config: Config) -> Gateway:
    gateway = Gateway.start(config, master_keys=encpipe.MasterKeys(config, extra={"memory": here.scene.kms}))
    here.port = gateway.port
    return gateway


def test_rules_are_taken_anew_in_place_and_bad_ones_are_not(here: GatewayScene, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    with started(here, written(here, file, rule())) as gateway, here.open() as dataset:
        written(here, file, rule(columns=["row"]))
        gateway.reload()
        assert dataset.to_table().schema.names == ["row"]
        for bad in ("[gateway", "", "[gateway]\nrules = 3\n"):
            file.write_text(bad)
            with pytest.raises(ConfigError):
                gateway.reload()
        written(here, file, rule(), {**rule(), "columns": ["row"]})
        with pytest.raises(ConfigError, match="two rules"):
            gateway.reload()
        assert dataset.to_table().schema.names == ["row"]


def test_certificates_change_without_dropping_a_stream(here: GatewayScene, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    new = CertificateAuthority.create(tmp_path / "new")
    with (
        started(here, written(here, file, rule(), batch_bytes=1024, parallel=1)) as gateway,
        here.open() as dataset,
    ):
        rows = iter(dataset.scan(["row"]))
        first = next(rows)
        mine, theirs = new.server(), new.client("x", names=[uri(TRAINER)])
        changed = {"certificate": str(mine.cert), "key": str(mine.key), "client_ca": str(new.path)}
        written(here, file, rule(), **changed)
        gateway.reload()
        assert len(first) + sum(map(len, rows)) == 1000
        with here.open(certificate=theirs, ca=new.path) as again:
            assert again.head(1).num_rows == 1
        with pytest.raises(StorageError):
            here.open(ca=new.path)  # with the old certificate


def test_a_new_generation_is_seen_and_the_old_one_ends_well(tmp_path: Path, ca: CertificateAuthority) -> None:
    mine = GatewayScene.create(tmp_path, ca)
    with mine.serve(rule(), refresh_seconds=1), mine.open() as dataset:
        rows = iter(dataset.scan(["row"]))
        next(rows)
        mine.scene.append(flights().slice(0, 10))

        def newer() -> bool:
            with mine.open() as again:
                return again.generation == 2 and again.num_rows == 1010

        until(newer)
        assert len(dataset.to_table(["row"])) == 1000


def test_a_ticket_that_expires_between_endpoints_is_asked_for_anew(here: GatewayScene) -> None:
    with here.serve(rule(), parallel=4) as gateway, here.open() as dataset:
        rows = iter(dataset.scan(["row"]))
        got = [next(rows)]
        gateway._service._clock = lambda: time.time() + 1000
        got.extend(rows)
        assert sum(map(len, got)) == 1000


def test_counting_is_done_once_for_a_rule(here: GatewayScene, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[View] = []
    whole = View._counted
    monkeypatch.setattr(View, "_counted", lambda self: (counted.append(self), whole(self))[1])
    with here.serve(rule(filter=[["row", "<", 60]])), here.open() as dataset:
        dataset.to_table()
        dataset.to_table(["row"], [("row", ">", 3)])
    assert len(counted) == 1


# --- the end


def test_a_stop_lets_a_stream_end_and_takes_no_other(here: GatewayScene) -> None:
    with here.serve(rule(), batch_bytes=1024, parallel=1) as gateway, here.open() as dataset:
        rows = iter(dataset.scan())
        got = [next(rows)]
        ending = threading.Thread(target=gateway.stop, args=(20,))
        ending.start()
        until(lambda: gateway._service.draining)
        with pytest.raises(StorageError) as refused:
            here.open().to_table()
        assert refused.value.code in ("gateway-busy", "storage-unavailable")
        got.extend(rows)
        assert sum(map(len, got)) == 1000
        ending.join(20)
        assert not ending.is_alive()


def test_a_gateway_that_ends_says_so(here: GatewayScene) -> None:
    with here.serve(rule()) as gateway, here.open() as dataset:
        assert dataset.health() == "serving"
        gateway._service.draining = True
        assert dataset.health() == "draining"
        with pytest.raises(StorageError) as refused:
            dataset.to_table()
        assert refused.value.code == "gateway-busy"


def test_a_key_that_others_can_read_is_refused(here: GatewayScene) -> None:
    server = here.ca.server()
    server.key.chmod(0o644)
    with (
        pytest.raises(ConfigError) as refused,
        here.serve(rule(), certificate=str(server.cert), key=str(server.key)),
    ):
        pass
    assert refused.value.code == "keyring-permissions"


def test_a_second_gateway_does_not_get_the_port(here: GatewayScene) -> None:
    with here.serve(rule()) as gateway:
        address = f"127.0.0.1:{gateway.port}"
        with pytest.raises(ConfigError, match="cannot listen"), here.serve(rule(), listen=address):
            pass


# --- what is written down


def test_every_stream_has_its_lines_in_the_audit_log(here: GatewayScene, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    config = Config(keys=KEYS, audit=AuditConfig(f"file:{log}"))
    with here.serve(rule(max_rows=1000), config=config, parallel=1), here.open() as dataset:
        dataset.to_table(["row", "name"])
        with pytest.raises(StorageError):
            dataset.to_table(["row"])
    verify_audit(log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    mine = [line for line in lines if line.get("identity") == TRAINER]
    assert [(line["event"], line.get("counts"), line.get("code")) for line in mine] == [
        ("serve", {"columns": 2, "row_groups": 20}, None),
        ("served", {"rows": 1000}, None),
        ("serve", {"columns": 1, "row_groups": 20}, None),
        ("refusal", None, "row-limit"),
        ("served", {"rows": 0}, None),
    ]
    assert {line["generation"] for line in mine} == {1}
    assert "name" not in json.dumps([line["counts"] for line in mine if "counts" in line])


def test_a_stream_whose_line_is_not_taken_gives_no_row(here: GatewayScene, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    config = Config(keys=KEYS, audit=AuditConfig(f"file:{folder / 'audit.jsonl'}"))
    with here.serve(rule(), config=config), here.open() as dataset:
        (folder / "audit.jsonl").unlink()
        folder.rmdir()
        with pytest.raises(StorageError) as refused:
            dataset.to_table(["row"])
        assert refused.value.code == "audit"


# --- the command


def test_serve_and_head_on_the_command_line(tmp_path: Path, ca: CertificateAuthority) -> None:
    clients = CertificateAuthority.create(tmp_path / "clients")
    server, client = ca.server(), clients.client("x", names=[uri(TRAINER)])
    pq.write_table(flights(), tmp_path / "plain.parquet")
    file = tmp_path / "gateway.toml"
    text = f"""
[keys]
footer = ["local:env"]
[gateway]
listen = "127.0.0.1:0"
certificate = "{server.cert}"
key = "{server.key}"
client_ca = "{clients.path}"
datasets = {{ flights = "flights" }}
[[gateway.rules]]
identity = "{TRAINER}"
dataset = "flights"
columns = """
    file.write_text(text + '["row", "origin"]\n')
    env = {**os.environ, "HOME": str(tmp_path), "ENCPIPE_MASTER_KEY": base64.b64encode(b"k" * 32).decode()}

    def run(*args: str, config: Path = file) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "encpipe", *args, "--json", "--config", str(config)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert run("encrypt", "plain.parquet", "flights").returncode == 0
    mine = tmp_path / "client.toml"
    mine.write_text(
        f'[tls]\nca_file = "{ca.path}"\nclient_cert = "{client.cert}"\nclient_key = "{client.key}"\n'
    )
    command = [sys.executable, "-m", "encpipe", "serve", "--config", str(file)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().decode().split()[-1]
            url = f"grpc+tls://{address}/flights"
            shown = json.loads(run("head", url, "-n", "2", config=mine).stdout)
            assert shown["columns"] == ["row", "origin"]
            assert [row["row"] for row in shown["rows"]] == [0, 1]
            assert shown["total_rows"] == 1000
            refused = run("head", url, "--select", "name", config=mine)
            assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (2, "filter")
            assert run("head", url, "--expect-dataset", "0" * 32, config=mine).returncode == 2

            file.write_text("[gateway")
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            while b"error" not in (line := process.stderr.readline()):
                assert line, "ended without a word"
            file.write_text(text + '["row"]\n')
            process.send_signal(signal.SIGHUP)
            until(lambda: json.loads(run("head", url, config=mine).stdout)["columns"] == ["row"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_tls_of_the_client_comes_from_its_configuration(here: GatewayScene) -> None:
    issued = here.certificate(TRAINER)
    with here.serve(rule()):
        for tls in (
            TlsConfig(Path("/nowhere"), issued.cert, issued.key),
            TlsConfig(None, issued.cert, issued.key),
        ):
            with pytest.raises(ConfigError):
                encpipe.open_gateway(here.url, config=Config(tls=tls))
