"""The gateway over mutual TLS: who gets in, and what each identity sees."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as fl
import pytest
from cryptography import x509
from gatewayscene import OTHER, ROWS, TRAINER, GatewayScene, flights, rule, uri
from servers.ca import CertificateAuthority

import encpipe
from encpipe.config import Config, TlsConfig
from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.gateway import wire
from encpipe.gateway.server import Gateway
from encpipe.gateway.telling import RefusedError

JFK = [["origin", "=", "JFK"]]
NO_JFK_IN = "the row groups that hold a row of JFK are every fourth"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, ca: CertificateAuthority) -> GatewayScene:
    return GatewayScene.create(tmp_path_factory.mktemp("gateway"), ca)


@pytest.fixture
def all_for_trainer(here: GatewayScene) -> Iterator[Gateway]:
    with here.serve(rule()) as gateway:
        yield gateway


def by_row(table: pa.Table) -> pa.Table:
    return table.sort_by("row").replace_schema_metadata(None)


def expected(*columns: str, origin: str | None = None) -> pa.Table:
    table = flights().replace_schema_metadata(None)
    if origin is not None:
        table = table.filter(pc.field("origin") == origin)
    return table.select(list(columns))


def code(of: pytest.ExceptionInfo[EncpipeError]) -> str:
    return of.value.code


# --- reading


def test_a_client_reads_what_the_dataset_holds(here: GatewayScene, all_for_trainer: Gateway) -> None:
    with here.open() as dataset, here.scene.open() as direct:
        assert dataset.schema == direct.schema
        assert (dataset.num_rows, dataset.dataset_id) == (ROWS, direct.dataset_id)
        assert (dataset.core_digest, dataset.generation) == (direct.core_digest, 1)
        assert dataset.to_table().equals(direct.to_table())
        assert dataset.head(3, ["row"]).equals(direct.head(3, ["row"]))
        assert dataset.row_groups == 20
        assert dataset.read(3, ["row"]).equals(direct.to_table(["row"]).slice(150, 50))


@pytest.mark.parametrize(
    "given",
    [
        [("row", ">=", 900)],
        [("delay", "<", 1.5), ("origin", "!=", "EWR")],
        [[("row", "<", 10)], [("row", "in", [500, 501])]],
        [("kind", "=", "JFK-1")],
        [("row", "=", -1)],
    ],
)
def test_filters_of_a_client_keep_the_rows_they_keep_elsewhere(
    here: GatewayScene, all_for_trainer: Gateway, given: list[object]
) -> None:
    with here.open() as dataset, here.scene.open() as direct:
        want = direct.to_table(["name", "row"], given)
        assert dataset.to_table(["name", "row"], given).equals(want)
        assert dataset.count_rows(given) == len(want)


def test_a_gateway_is_flight_to_pyarrows_own_client(here: GatewayScene, all_for_trainer: Gateway) -> None:
    with here.flight() as client:
        (listed,) = list(client.list_flights())
        assert listed.descriptor.path == [b"flights"]
        info = client.get_flight_info(fl.FlightDescriptor.for_path("flights"))
        assert client.get_schema(fl.FlightDescriptor.for_path("flights")).schema == info.schema
        rows = pa.concat_tables(client.do_get(endpoint.ticket).read_all() for endpoint in info.endpoints)
        assert len(rows) == ROWS


# --- who gets in


def test_without_a_client_certificate_nobody_gets_in(here: GatewayScene, all_for_trainer: Gateway) -> None:
    client = fl.FlightClient(f"grpc+tls://127.0.0.1:{here.port}", tls_root_certs=here.ca.path.read_bytes())
    with client, pytest.raises(fl.FlightUnavailableError):
        list(client.do_action(fl.Action("health", b""), fl.FlightCallOptions(timeout=10)))


def test_a_certificate_of_another_ca_does_not_get_in(
    here: GatewayScene, all_for_trainer: Gateway, tmp_path: Path
) -> None:
    foreign = CertificateAuthority.create(tmp_path / "foreign").client("x", names=[uri(TRAINER)])
    with pytest.raises(StorageError) as refused:
        here.open(certificate=foreign)
    assert code(refused) == "storage-unavailable"


def test_an_expired_certificate_does_not_get_in(here: GatewayScene, all_for_trainer: Gateway) -> None:
    with pytest.raises(StorageError) as refused:
        here.open(certificate=here.clients.client("x", names=[uri(TRAINER)], expired=True))
    assert code(refused) == "storage-unavailable"


@pytest.mark.parametrize(
    ("common_name", "names"),
    [
        ("x", [x509.DNSName(TRAINER)]),
        ("x", [x509.RFC822Name(TRAINER)]),
        (TRAINER, []),
        ("x", [uri(TRAINER), uri(OTHER)]),
        ("x", [uri(TRAINER), x509.DNSName("trainer.example.org")]),
        ("x", [x509.DNSName("trainer.example.org"), uri(TRAINER)]),
        ("x", [uri(TRAINER.upper())]),
    ],
    ids=["dns", "email", "common name", "two", "and dns", "dns first", "upper case"],
)
def test_only_one_uri_is_an_identity(
    here: GatewayScene, all_for_trainer: Gateway, common_name: str, names: list[x509.GeneralName]
) -> None:
    with pytest.raises(StorageError) as refused:
        here.open(certificate=here.clients.client(common_name, names=names))
    assert code(refused) == "gateway-denied"


def test_an_identity_without_a_rule_is_denied(here: GatewayScene, all_for_trainer: Gateway) -> None:
    with pytest.raises(StorageError) as refused:
        here.open(OTHER)
    assert code(refused) == "gateway-denied"
    with here.flight(OTHER) as client, pytest.raises(fl.FlightUnauthenticatedError):
        list(client.list_flights())


def test_a_dataset_of_another_looks_like_one_that_is_not_there(here: GatewayScene) -> None:
    with here.serve(rule(), {**rule(OTHER), "dataset": "mine"}, datasets={
        "flights": here.scene.url, "mine": here.scene.url
    }):  # fmt: skip
        texts = []
        for name in ("mine", "nope"):
            with pytest.raises(StorageError) as refused:
                here.open(url=here.url.replace("/flights", f"/{name}"))
            assert code(refused) == "not-found"
            texts.append(refused.value.message.replace(name, "NAME"))
        assert texts[0] == texts[1]


def test_a_gateway_with_a_certificate_for_another_host_or_of_another_ca_is_not_believed(
    here: GatewayScene, tmp_path: Path
) -> None:
    wrong = here.ca.server(wrong_host=True)
    with here.serve(rule(), certificate=str(wrong.cert), key=str(wrong.key)):
        with pytest.raises(ConfigError) as refused:
            here.open()
        assert code(refused) == "untrusted-certificate"
    with here.serve(rule()), pytest.raises(ConfigError) as refused:
        here.open(ca=CertificateAuthority.create(tmp_path / "other").path)
    assert code(refused) == "untrusted-certificate"


def test_a_client_without_a_certificate_of_its_own_is_told_before_it_connects() -> None:
    with pytest.raises(ConfigError, match=r"tls\.client_cert"):
        encpipe.open_gateway("grpc+tls://127.0.0.1:1/flights", config=Config(tls=TlsConfig()))


# --- what a rule hides


def test_hidden_columns_do_not_exist(here: GatewayScene) -> None:
    with here.serve(rule(columns=["row", "origin"])), here.open() as dataset:
        assert dataset.schema == flights().select(["row", "origin"]).schema.remove_metadata()
        assert by_row(dataset.to_table()).equals(expected("row", "origin"))
        texts = []
        for name in ("name", "nope"):
            for columns, given in (([name], None), (["row"], [(name, "=", "person 3")])):
                with pytest.raises(ConfigError) as refused:
                    dataset.to_table(columns, given)
                assert code(refused) == "filter"
                texts.append((refused.value.message + refused.value.hint).replace(name, "NAME"))
        assert len(set(texts)) == 1
        with pytest.raises(ConfigError):
            dataset.count_rows([("name", "=", "person 3")])


def test_hidden_rows_do_not_exist(here: GatewayScene) -> None:
    with here.serve(rule(filter=JFK, columns=["row", "kind"])), here.open() as dataset:
        table = by_row(dataset.to_table())
        want = expected("row", "kind", origin="JFK")
        assert table["row"].equals(want["row"])
        assert table["kind"].to_pylist() == want["kind"].to_pylist()
        assert dataset.num_rows == len(want) == 250
        assert dataset.row_groups == 5, NO_JFK_IN
        assert dataset.group_rows() == (50,) * 5
        assert dataset.count_rows([("row", ">=", 0)]) == 250
        assert dataset.to_table(filter=[("row", "=", 60)]).num_rows == 0
        assert dataset.to_table(filter=[("kind", "=", "EWR-1")]).num_rows == 0
        with pytest.raises(StorageError) as refused:
            dataset.read(5)
        assert code(refused) == "not-found"


def test_no_value_of_a_hidden_row_is_on_the_wire(here: GatewayScene) -> None:
    with here.serve(rule(filter=[["row", "<", 60]])), here.flight() as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_path("flights"))
        sent = [client.do_get(e.ticket).read_all() for e in info.endpoints]
    assert sum(map(len, sent)) == 60
    raw = b"".join(
        bytes(buffer) for table in sent for column in table.columns for chunk in column.chunks
        for buffer in chunk.buffers() if buffer is not None
    )  # fmt: skip
    assert b"person 59" in raw
    assert b"person 60" not in raw
    assert info.schema.metadata is None


def test_an_or_in_a_clients_filter_does_not_lead_around_the_rule(here: GatewayScene) -> None:
    with here.serve(rule(filter=JFK)), here.open() as dataset:
        assert len(dataset.to_table(filter=[[("row", ">=", 0)], [("origin", "=", "EWR")]])) == 250


def test_a_rule_cannot_give_a_row_filter_to_one_who_asks_for_the_column_it_uses(here: GatewayScene) -> None:
    with here.serve(rule(filter=JFK, columns=["row"])), here.open() as dataset:
        assert dataset.schema.names == ["row"]
        assert len(dataset.to_table()) == 250
        with pytest.raises(ConfigError):
            dataset.to_table(filter=[("origin", "=", "EWR")])


def test_a_filter_that_fails_on_hidden_rows_does_not_fail(tmp_path: Path, ca: CertificateAuthority) -> None:
    mine = GatewayScene.create(tmp_path, ca)
    mine.scene = mine.scene.at(str(tmp_path / "numbers"))
    far = 2**53 + 1  # no float: comparing it with one is an error of Arrow's
    table = pa.table({"row": range(4), "value": pa.array([0, 1, far, 3], pa.int64())})
    mine.scene.write(table, policy=encpipe.Policy())
    given = [("value", ">", -0.5)]
    with mine.serve(rule(filter=[["row", "!=", 2]]), rule(OTHER)):
        with mine.open() as dataset:
            assert dataset.to_table(["row"], given)["row"].to_pylist() == [0, 1, 3]
        with mine.open(OTHER) as dataset:
            for read in (dataset.to_table, lambda _, filter, dataset=dataset: dataset.count_rows(filter)):
                with pytest.raises(ConfigError) as refused:
                    read(["row"], given)
                assert code(refused) == "filter"
                assert str(far) not in refused.value.message + refused.value.hint


# --- tickets


def tickets(here: GatewayScene, identity: str = TRAINER) -> list[fl.Ticket]:
    with here.flight(identity) as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_path("flights"))
        return [endpoint.ticket for endpoint in info.endpoints]


def redeem(here: GatewayScene, ticket: bytes, identity: str = TRAINER) -> EncpipeError | pa.Table:
    with here.flight(identity) as client:
        try:
            return client.do_get(fl.Ticket(ticket)).read_all()
        except fl.FlightError as error:
            return wire.read_error(str(error)) or EncpipeError(f"not ours: {error}")


def refusal(found: EncpipeError | pa.Table) -> str:
    assert isinstance(found, EncpipeError)
    return found.code


def test_a_forged_ticket_is_refused(here: GatewayScene, all_for_trainer: Gateway) -> None:
    ticket = tickets(here)[0].ticket
    assert isinstance(redeem(here, ticket), pa.Table)
    for n in (0, 1, 32, 33, len(ticket) - 1):
        forged = ticket[:n] + bytes([ticket[n] ^ 1]) + ticket[n + 1 :]
        assert refusal(redeem(here, forged)) == "ticket"
    for forged in (b"", b"\x01", ticket[:40], ticket + b"x"):
        assert refusal(redeem(here, forged)) == "ticket"


def test_a_ticket_of_another_identity_is_refused(here: GatewayScene) -> None:
    with here.serve(rule(), rule(OTHER)):
        ticket = tickets(here)[0].ticket
        assert refusal(redeem(here, ticket, OTHER)) == "ticket"


def test_a_ticket_of_another_gateway_is_refused(here: GatewayScene) -> None:
    with here.serve(rule()):
        ticket = tickets(here)[0].ticket
    with here.serve(rule()):
        assert refusal(redeem(here, ticket)) == "ticket"


def test_a_ticket_expires(here: GatewayScene) -> None:
    with here.serve(rule(), ticket_seconds=1):
        ticket = tickets(here)[0].ticket
        deadline = time.monotonic() + 10
        while isinstance(found := redeem(here, ticket), pa.Table) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert refusal(found) == "ticket"


@pytest.mark.parametrize(
    "later",
    [rule(columns=["row"]), rule(filter=JFK), rule(OTHER)],
    ids=["fewer columns", "fewer rows", "no rule"],
)
def test_a_ticket_is_worth_nothing_once_the_rule_has_changed(
    here: GatewayScene, later: dict[str, object]
) -> None:
    with here.serve(rule()) as gateway:
        ticket = tickets(here)[0].ticket
        gateway._service.use(changed(here, later))
        assert refusal(redeem(here, ticket)) in ("ticket", "gateway-denied", "not-found")


def changed(here: GatewayScene, *rules: dict[str, object]) -> object:
    from encpipe.gateway.rules import parse_rules

    return parse_rules(list(rules), ["flights"], "test")


@pytest.mark.parametrize(
    ("later", "refused_as"), [(rule(OTHER), "not-found"), (rule(filter=JFK), "ticket")], ids=["none", "fewer"]
)
def test_a_rule_that_changes_ends_a_stream_under_way(
    here: GatewayScene, later: dict[str, object], refused_as: str
) -> None:
    with here.serve(rule(), parallel=1) as gateway:
        service = gateway._service
        ticket = service.info(TRAINER, b'{"v":1,"dataset":"flights"}').parts[0].ticket
        stream = service.stream(TRAINER, ticket)
        next(stream), next(stream)
        service.use(changed(here, later))
        with pytest.raises(RefusedError) as refused:
            next(stream)
        assert refused.value.error.code == refused_as


# --- requests that are none


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"v":2,"dataset":"flights"}',
        b'{"v":1,"dataset":"../flights"}',
        b'{"v":1,"dataset":"flights","columns":"row"}',
        b'{"v":1,"dataset":"flights","filter":[["row","=",3]]}',
        b'{"v":1,"dataset":"flights","filter":[[["row","like",{"i":"3"}]]]}',
        b'{"v":1,"dataset":"flights","filter":[[["row","=",{"s":"x"}]]]}',
        b'{"v":1,"dataset":"flights","columns":[]}',
        b'{"v":1,"dataset":"flights","columns":["row","row"]}',
        b"[" * 100_000,
    ],
)
def test_a_request_that_is_none_is_refused(
    here: GatewayScene, all_for_trainer: Gateway, request_bytes: bytes
) -> None:
    with here.flight() as client, pytest.raises((fl.FlightError, pa.ArrowException)) as refused:
        client.get_flight_info(fl.FlightDescriptor.for_command(request_bytes))
    found = wire.read_error(str(refused.value))
    assert found is not None
    assert found.code == "filter"


def test_an_error_of_the_storage_tells_a_client_its_code_only(
    tmp_path: Path, ca: CertificateAuthority
) -> None:
    mine = GatewayScene.create(tmp_path, ca)
    with mine.serve(rule()), mine.open() as dataset:
        for file in (Path(mine.scene.url)).rglob("*.parquet"):
            file.write_bytes(b"x" * file.stat().st_size)
        with pytest.raises(EncpipeError) as refused:
            dataset.to_table()
        text = json.dumps([refused.value.message, refused.value.hint])
        assert refused.value.exit_code in (4, 5)
        assert str(tmp_path) not in text
        assert ".parquet" not in text


def test_dates_and_times_cross_exactly() -> None:
    when = dt.datetime(2026, 1, 31, 9, 30, 0, 1, tzinfo=dt.UTC)
    values = ("x", 3, -3, 0.1, True, b"\0\xff", when.date(), when)
    given = wire.conditions([("a", "=", value) for value in values])
    assert wire.from_wire(json.loads(json.dumps(wire.as_wire(given)))) == given
