"""A dataset behind a gateway: rows over mutual TLS, and no key, here or on the way."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as fl

from encpipe import strictjson, transport
from encpipe.access import AnyPath, resolve_config
from encpipe.config import Config, TlsConfig
from encpipe.errors import ConfigError, EncpipeError, FormatError, ManifestError, StorageError
from encpipe.gateway import wire
from encpipe.gateway.wire import Conditions, Request
from encpipe.scan import joined
from encpipe.strictjson import Fields

SCHEME: Final = "grpc+tls"
_UNTRUSTED: Final = re.compile(r"certificate.verify.failed|not in peer certificate|self.signed", re.I)
"""How gRPC says that it does not believe a server."""
CALL_SECONDS: Final = 120.0
"""A request, in which a gateway may have to count rows, takes no longer. A stream may."""


def open_gateway(url: str, *, config: Config | AnyPath | None = None) -> GatewayDataset:
    """Open a dataset that a gateway serves: `grpc+tls://HOST:PORT/NAME`.

    The table `tls` of the configuration names the CA of the gateway (`ca_file`; default: the system's) and
    the certificate and key that say who we are (`client_cert`, `client_key`). The host name is checked.

    Raises `ConfigError` (code `untrusted-certificate` for a gateway that the CA does not vouch for) or
    `StorageError`: `gateway-denied`, `not-found`, `storage-unavailable`.
    """
    return GatewayDataset(url, resolve_config(config).tls)


class GatewayDataset:
    """An open dataset: the columns and rows that the gateway's rules show to this client, of one state.

    Safe to use from several threads. Row groups are numbered from 0 to before `row_groups`.
    """

    def __init__(self, url: str, tls: TlsConfig) -> None:
        self.url = url
        self._host, self._name = _split(url, tls)
        self._client = _connect(self._host, tls)
        try:
            found = self._info(Request(self._name))
            facts = _facts(found.app_metadata)
        except BaseException:
            self._client.close()
            raise
        self.schema: pa.Schema = found.schema
        self.num_rows: int = found.total_records
        self.dataset_id, self.core_digest, self.generation, self.row_groups = facts
        self.missing_keys: tuple[str, ...] = ()

    def scan(self, columns: Sequence[str] | None = None, filter: Any = None) -> GatewayScan:
        """The rows of the chosen columns for which the filter holds, read when it is iterated.

        `filter` is the (nested) list of tuples that `pyarrow.parquet.read_table` takes. Raises `ConfigError`
        `filter` for what this client may not see, as for what the dataset does not have.
        """
        return GatewayScan(self, self._request(columns, filter))

    def to_table(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:
        """All rows that `scan` gives, in memory."""
        return self.scan(columns, filter).to_table()

    def head(self, rows: int = 10, columns: Sequence[str] | None = None) -> pa.Table:
        """The first rows."""
        scan = self.scan(columns)
        found: list[pa.Table] = []
        with contextlib.closing(scan.batches()) as batches:
            while rows > sum(map(len, found)):
                batch = next(batches, None)
                if batch is None:
                    break
                found.append(pa.Table.from_batches([batch]))
        return joined(found, scan.schema).slice(0, rows)

    def group_rows(self, filter: Any = None) -> tuple[int, ...]:
        """How many rows each row group gives; with a filter the gateway counts them."""
        request = self._request(None, filter)
        with _mapped(self._host):
            action = fl.Action("rows", wire.request_bytes(request))
            (result,) = self._client.do_action(action, _timeout())
        return tuple(_answer(result.body.to_pybytes()).array("rows", limit=self.row_groups))

    def count_rows(self, filter: Any = None) -> int:
        """How many rows there are for which the filter holds."""
        return self.num_rows if filter is None else sum(self.group_rows(filter))

    def read(self, row_group: int, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:
        """The rows of one row group."""
        asked = self._request(columns, filter)
        return GatewayScan(self, replace(asked, groups=(row_group, row_group + 1))).to_table()

    def health(self) -> str:
        """`serving` or `draining`. Raises `StorageError` when the gateway does not answer."""
        with _mapped(self._host):
            (result,) = self._client.do_action(fl.Action("health", b""), _timeout())
        return _answer(result.body.to_pybytes()).text("status")

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> GatewayDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GatewayDataset({self.url!r}, generation {self.generation}, {self.num_rows} rows)"

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.scan().__arrow_c_stream__(requested_schema)

    def _request(self, columns: Sequence[str] | None, filter: Any) -> Request:
        given: Conditions | None = wire.conditions(filter)
        return Request(self._name, wire.names(columns), given, self.core_digest)

    def _info(self, request: Request) -> fl.FlightInfo:
        descriptor = fl.FlightDescriptor.for_command(wire.request_bytes(request))
        with _mapped(self._host):
            return self._client.get_flight_info(descriptor, _timeout())

    def _stream(self, ticket: fl.Ticket) -> Generator[pa.RecordBatch, None, None]:
        with _mapped(self._host):
            reader = self._client.do_get(ticket)
            try:
                for chunk in reader:
                    yield chunk.data
            except GeneratorExit:
                reader.cancel()
                raise


class GatewayScan:
    """Rows of a gateway's dataset, as often as it is iterated. Also an Arrow stream."""

    def __init__(self, dataset: GatewayDataset, request: Request) -> None:
        self._dataset, self._request = dataset, request
        self._first: fl.FlightInfo | None = dataset._info(request)
        self.schema: pa.Schema = self._first.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.batches()

    def batches(self) -> Generator[pa.RecordBatch, None, None]:
        """The batches in order. Tickets that expire on the way are asked for anew."""
        info, self._first = self._first or self._dataset._info(self._request), None
        number, fresh = 0, True
        while number < len(info.endpoints):
            begun = False
            try:
                for batch in self._dataset._stream(info.endpoints[number].ticket):
                    begun = True
                    yield batch
            except StorageError as error:
                if error.code != "ticket" or begun or fresh:
                    raise
                info, fresh = self._again(info), True
                continue
            number, fresh = number + 1, False

    def to_table(self) -> pa.Table:
        """All rows, in memory."""
        return joined([pa.Table.from_batches([batch]) for batch in self], self.schema)

    def to_reader(self) -> pa.RecordBatchReader:
        """The batches as PyArrow's reader."""
        return pa.RecordBatchReader.from_batches(self.schema, self.batches())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def _again(self, info: fl.FlightInfo) -> fl.FlightInfo:
        found = self._dataset._info(self._request)
        spans = [[endpoint.app_metadata for endpoint in one.endpoints] for one in (info, found)]
        if spans[0] != spans[1]:
            raise StorageError(
                "the gateway's rules changed while rows were read", hint="begin anew", code="ticket"
            )
        return found


def _split(url: str, tls: TlsConfig) -> tuple[str, str]:
    """HOST:PORT and the dataset's name."""
    scheme, _, rest = url.partition("://")
    if scheme != SCHEME:
        raise ConfigError("not a gateway's URL", hint=f"write {SCHEME}://HOST:PORT/NAME")
    transport.check_endpoint(f"https://{rest}", tls)
    parts = urlsplit(f"https://{rest}")
    name = parts.path.removeprefix("/")
    if not wire.DATASET_NAME.fullmatch(name) or parts.port is None:
        raise ConfigError(
            f"the URL at {parts.hostname!r} names no port or no dataset",
            hint=f"write {SCHEME}://HOST:PORT/NAME, with a name that the gateway's configuration has",
        )
    return parts.netloc, name


def _connect(host: str, tls: TlsConfig) -> fl.FlightClient:
    if tls.client_cert is None:
        raise ConfigError(
            "a gateway asks who we are, and tls.client_cert is not set",
            hint="name the certificate and key that the gateway's CA issued: tls.client_cert, tls.client_key",
            code="config-missing",
        )
    authorities = transport.ca_bundle(tls)  # checks that all files can be used, too
    if authorities is None:
        raise ConfigError("this system has no CA store", hint="name a CA file: tls.ca_file")
    loopback = transport.is_loopback(urlsplit(f"https://{host}").hostname or "")
    options = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.enable_http_proxy", 0 if loopback else 1),
    ]
    return fl.FlightClient(
        f"{SCHEME}://{host}",
        tls_root_certs=authorities.read_bytes(),
        cert_chain=tls.client_cert.read_bytes(),
        private_key=(tls.client_key or tls.client_cert).read_bytes(),
        generic_options=options,
    )


def _timeout() -> fl.FlightCallOptions:
    return fl.FlightCallOptions(timeout=CALL_SECONDS)


def _answer(data: bytes) -> Fields:
    """The fields of what a gateway answers. Raises `FormatError` for what none would."""
    try:
        return Fields(strictjson.loads(data, what="an answer"), what="an answer")
    except ManifestError:
        raise FormatError("the server is not an encpipe gateway, or a newer one", code="format") from None


def _facts(metadata: bytes) -> tuple[str, str, int, int]:
    """Dataset id, core digest, generation and the number of row groups."""
    fields = _answer(metadata)
    with contextlib.suppress(ManifestError):
        if fields.integer("v") == 1:
            core, generation = fields.sha256("core").hex(), fields.integer("generation")
            return fields.hex_id("dataset_id"), core, generation, fields.integer("row_groups")
    raise FormatError("the server is not an encpipe gateway, or a newer one", code="format")


@contextlib.contextmanager
def _mapped(host: str) -> Iterator[None]:
    """Errors of Flight as ours."""
    try:
        yield
    except (fl.FlightError, pa.ArrowException, OSError) as error:
        raise _our_error(host, error) from None


def _our_error(host: str, error: BaseException) -> EncpipeError:
    text = str(error)
    found = wire.read_error(text)
    if found is not None:
        return found
    if _UNTRUSTED.search(text):
        return ConfigError(
            f"the certificate of {host} is not trusted",
            hint="name the CA that issued it in tls.ca_file, or correct the URL; do not ignore this",
            code="untrusted-certificate",
        )
    late = isinstance(error, fl.FlightTimedOutError)
    return StorageError(
        f"the gateway at {host} {'did not answer in time' if late else 'does not answer'}",
        hint="check address and port; a gateway also hangs up where it does not trust tls.client_cert",
        code="storage-unavailable",
    )
