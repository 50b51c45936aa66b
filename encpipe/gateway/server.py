"""The gateway's server: Arrow Flight over mutual TLS, on gRPC's own Python server.

PyArrow's Flight server tells of a client only the text of its first alternative name, of whatever kind, or
its common name; gRPC's tells the certificate (docs/adr/0013). It also takes new ones without a restart.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.flight as fl

from encpipe.config import Config, load_config
from encpipe.errors import ConfigError, MissingExtraError
from encpipe.gateway import wire
from encpipe.gateway.catalog import Catalog
from encpipe.gateway.certificates import Certificates
from encpipe.gateway.frames import Frames
from encpipe.gateway.identity import identity_of
from encpipe.gateway.service import Info, Service
from encpipe.gateway.settings import GatewaySettings, gateway_settings
from encpipe.gateway.telling import RefusedError, telling, told
from encpipe.kms.registry import MasterKeys
from encpipe.opening import open_dataset

if TYPE_CHECKING:
    from encpipe.dataset import Dataset

try:
    import grpc
except ImportError:
    raise MissingExtraError(
        "the gateway's server needs grpcio, which is not installed", hint="pip install 'encpipe[gateway]'"
    ) from None

SERVICE: Final = "arrow.flight.protocol.FlightService"
MORE_CALLS: Final = 16
"""Calls at a time besides streams: requests, health."""
_STATUS: Final = {
    "gateway-denied": grpc.StatusCode.UNAUTHENTICATED,
    "ticket": grpc.StatusCode.PERMISSION_DENIED,
    "not-found": grpc.StatusCode.NOT_FOUND,
    "filter": grpc.StatusCode.INVALID_ARGUMENT,
    "row-limit": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "gateway-busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "kms-unavailable": grpc.StatusCode.UNAVAILABLE,
    "storage-unavailable": grpc.StatusCode.UNAVAILABLE,
}
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # a client that is gone gives its stream back
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_connection_age_ms", 3_600_000),  # then a client shows its certificate anew; streams end well
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class Gateway:
    """A running gateway. Made by `start`; ends with `stop`."""

    def __init__(self, service: Service, settings: GatewaySettings, config: Config, keys: MasterKeys) -> None:
        self._service, self._settings, self._config, self._keys = service, settings, config, keys
        self._certificates = Certificates(settings)
        self._server = _grpc_server(service, settings)
        self.port = self._listen()
        self._stopped = threading.Event()
        self._stopping = threading.Lock()

    @classmethod
    def start(cls, config: Config, *, master_keys: MasterKeys | None = None) -> Gateway:
        """Serve what the table `gateway` of a configuration names.

        Opens the datasets first. Raises what `open_dataset` raises, and `ConfigError` for a table, a
        certificate or an address that cannot be used.
        """
        settings = gateway_settings(config)
        keys = master_keys or MasterKeys(config)

        def opener(url: str) -> Dataset:
            return open_dataset(url, config=config, master_keys=keys)

        catalog = Catalog(settings.datasets, opener, refresh_seconds=settings.refresh_seconds)
        service = Service(settings, catalog, keys.audit)
        try:
            for name in settings.datasets:
                catalog.get(name)
            gateway = cls(service, settings, config, keys)
        except BaseException:
            service.close()
            raise
        gateway._server.start()
        return gateway

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self._settings.listen.rpartition(':')[0]}:{self.port}"

    @property
    def datasets(self) -> tuple[str, ...]:
        """The public names of what is served."""
        return tuple(self._settings.datasets)

    def reload(self) -> None:
        """Take rules and certificates from the configuration file as it is now.

        Streams under way go on, each under the new rules from its next batch. All other settings stay.
        Raises `ConfigError` for a file or certificate that cannot be used; then nothing has changed.
        """
        found = gateway_settings(load_config(self._config.source))
        if found.datasets != self._settings.datasets:
            raise ConfigError(
                "the table gateway.datasets has changed, which needs a restart",
                hint="restart the gateway; until then rules and certificates stay as they were",
            )
        self._certificates.take(found)
        self._service.use(found.rules)

    def stop(self, grace: float | None = None) -> None:
        """Take no new streams, give those under way `grace` seconds (default: `drain_seconds`), then end.

        May be called again, with less grace.
        """
        self._service.draining = True
        self._server.stop(self._settings.drain_seconds if grace is None else grace).wait()
        with self._stopping:
            if not self._stopped.is_set():
                self._service.close()
                self._stopped.set()

    def wait(self) -> None:
        """Return once the gateway has ended."""
        self._stopped.wait()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(grace=0)

    def _listen(self) -> int:
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificates.now(), self._certificates.for_handshake, require_client_authentication=True
        )
        try:
            port = self._server.add_secure_port(self._settings.listen, credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError(
                f"the gateway cannot listen at {self._settings.listen}",
                hint="another program has the port, or this machine has no such address",
            )
        return int(port)


def _grpc_server(service: Service, settings: GatewaySettings) -> Any:
    threads = settings.max_streams + MORE_CALLS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="encpipe-gateway")
    server = grpc.server(pool, options=_OPTIONS, maximum_concurrent_rpcs=threads)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _methods(service)),))
    return server


def _methods(service: Service) -> dict[str, Any]:
    calls = _Calls(service)
    one, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    return {
        "GetFlightInfo": one(calls.flight_info),
        "GetSchema": one(calls.schema),
        "ListFlights": many(calls.flights),
        "DoGet": many(calls.stream),
        "DoAction": many(calls.action),
    }


class _Calls:
    """The methods of Flight; all others are unimplemented. Messages are protobuf's bytes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def flight_info(self, message: bytes, context: Any) -> bytes:
        with self._caller(context) as identity:
            descriptor = _parsed(fl.FlightDescriptor, message)
            return _flight_info(self._service.info(identity, _request(descriptor)), descriptor)

    def schema(self, message: bytes, context: Any) -> bytes:
        with self._caller(context) as identity:
            found = self._service.info(identity, _request(_parsed(fl.FlightDescriptor, message)))
            return bytes(fl.SchemaResult(found.schema).serialize())

    def flights(self, _: bytes, context: Any) -> Iterator[bytes]:
        with self._caller(context) as identity:
            for name in self._service.datasets(identity):
                descriptor = fl.FlightDescriptor.for_path(name)
                yield _flight_info(self._service.info(identity, _request(descriptor)), descriptor)

    def stream(self, message: bytes, context: Any) -> Iterator[bytes]:
        with self._caller(context) as identity:
            ticket = _parsed(fl.Ticket, message).ticket
            with contextlib.closing(self._service.stream(identity, ticket)) as rows:  # type: ignore[type-var] # a generator
                first = next(rows)
                frames = Frames(first)
                yield from frames.start()
                for batch in rows:
                    yield from frames.batch(batch)

    def action(self, message: bytes, context: Any) -> Iterator[bytes]:
        with self._caller(context) as identity:
            action = _parsed(fl.Action, message)
            if action.type == "health":
                state = "draining" if self._service.draining else "serving"
                answer = json.dumps({"status": state, "streams": self._service.streams.open}).encode()
            elif action.type == "rows":
                answer = self._service.rows(identity, action.body.to_pybytes())
            else:
                with telling():
                    raise ConfigError("the gateway has no such action", hint="health, rows", code="filter")
            yield bytes(fl.Result(answer).serialize())

    @contextlib.contextmanager
    def _caller(self, context: Any) -> Iterator[str]:
        """The identity of who calls. What the block raises ends the call with what may be told of it."""
        try:
            with telling():
                identity = _identity(b"".join(context.auth_context().get("x509_pem_cert", ())))
            self._service.admit(identity)
            yield identity
        except Exception as error:  # noqa: BLE001 - whatever it is, gRPC must not send its text
            crossing = told(error)
            status = _STATUS.get(crossing.code, grpc.StatusCode.INTERNAL)
            context.abort(status, wire.error_text(crossing))


@lru_cache(maxsize=256)
def _identity(certificate: bytes) -> str:
    return identity_of(certificate)


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.deserialize(message)
    except pa.ArrowException:
        raise RefusedError(ConfigError("the message is not Arrow Flight's", code="filter")) from None


def _request(descriptor: fl.FlightDescriptor) -> bytes:
    """A command is a request; a path of one name is the whole dataset, for clients that know Flight only."""
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return bytes(descriptor.command)
    path = descriptor.path or []
    with telling():
        if len(path) != 1 or not wire.DATASET_NAME.fullmatch(path[0].decode("ascii", "replace")):
            raise ConfigError("the path is not the name of one dataset", code="filter")
        return wire.request_bytes(wire.Request(path[0].decode("ascii")))


def _flight_info(info: Info, descriptor: fl.FlightDescriptor) -> bytes:
    endpoints = [
        fl.FlightEndpoint(
            part.ticket,
            [],  # none: the client asks where it asks now
            pa.scalar(datetime.fromtimestamp(part.expires, UTC), pa.timestamp("s", "UTC")),
            json.dumps({"start": part.start, "stop": part.stop}).encode(),
        )
        for part in info.parts
    ]
    rows = -1 if info.rows is None else info.rows
    found = fl.FlightInfo(info.schema, descriptor, endpoints, rows, -1, ordered=True, app_metadata=info.facts)
    return bytes(found.serialize())
