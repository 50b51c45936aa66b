"""The certificates of a running server, which may be changed."""

from __future__ import annotations

import ssl
from typing import Any, Final, NoReturn

import grpc

from encpipe import transport
from encpipe.errors import ConfigError
from encpipe.gateway.settings import GatewaySettings
from encpipe.kms import privatefile

MAX_PEM_BYTES: Final = 1 << 20


class Certificates:
    """The server's certificate and the clients' CA, as gRPC asks for them at each handshake."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._now = _load(settings)

    def now(self) -> Any:
        return self._now

    def take(self, settings: GatewaySettings) -> None:
        self._now = _load(settings)

    def for_handshake(self) -> Any:
        return self._now


def _load(settings: GatewaySettings) -> Any:
    """Raises `ConfigError` for a file that cannot be used: gRPC would refuse every client without a word."""
    key = privatefile.read(settings.key, what="the gateway's key", limit=MAX_PEM_BYTES)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(settings.client_ca)
        context.load_cert_chain(settings.certificate, settings.key, password=_refuse_passphrase)
        certificate, authority = settings.certificate.read_bytes(), settings.client_ca.read_bytes()
    except OSError as error:  # ssl.SSLError is one
        reason = transport.pem_failure(error)
        names = ", ".join(str(path) for path in (settings.certificate, settings.key, settings.client_ca))
        raise ConfigError(
            f"certificate, key or client_ca of the gateway cannot be used: {reason}", hint=f"see {names}"
        ) from None
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)


def _refuse_passphrase() -> NoReturn:
    raise ConfigError(
        "the gateway's key is protected by a passphrase", hint="give a key file that only its user can read"
    )
