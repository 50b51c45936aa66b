"""What a TLS connection to an endpoint comes to: version, cipher, and who the server is."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptography import x509

from encpipe import transport
from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, StorageError

SECONDS: Final = 5.0
"""How long connecting, and each answer of a handshake, may take."""
HTTPS_PORT: Final = 443
MAX_CHARACTERS: Final = 200


@dataclass(frozen=True)
class Negotiated:
    """One connection. `subject` and `issuer` are RFC 4514 texts, the subject's alternative names where it has
    no name; `expires` is UTC, RFC 3339."""

    server: str
    protocol: str
    cipher: str
    subject: str
    issuer: str
    expires: str

    def __str__(self) -> str:
        who = f"{self.subject}, issued by {self.issuer}, until {self.expires[:10]}"
        return f"{self.protocol} with {self.cipher}; {who}"


def negotiated(url: str, tls: TlsConfig) -> Negotiated:
    """Connect to an https endpoint as every client has to, through the environment's proxy where there is
    one, look, and hang up: no request is sent.

    Raises `ConfigError` as `check_endpoint`, `ssl_context` and `refused_server` do, and for an endpoint that
    is not https; `StorageError` `storage-unavailable` for a server, of whatever kind, that does not answer.
    """
    transport.check_endpoint(url, tls)
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise ConfigError(f"the endpoint at {parts.hostname!r} is plain http: there is nothing to negotiate")
    try:
        with contextlib.closing(_connection(parts, transport.ssl_context(tls))) as connection:
            connection.connect()
            return _look(connection.sock, parts.netloc)
    except (OSError, http.client.HTTPException) as error:
        refused = transport.refused_server(url, error)
        if refused is not None:
            raise refused from None
        raise StorageError(
            f"no TLS connection to {parts.netloc}: {_one_line(str(error) or type(error).__name__)}",
            hint="check network, proxy and endpoint; a server may also demand tls.client_cert",
            code="storage-unavailable",
        ) from None


def _connection(parts: SplitResult, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    host, port = parts.hostname or "", parts.port or HTTPS_PORT
    proxy = urlsplit(getproxies().get("https", ""))
    if transport.is_loopback(host) or not proxy.hostname or proxy_bypass(host):
        return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=context)
    made = http.client.HTTPSConnection(proxy.hostname, proxy.port, timeout=SECONDS, context=context)
    made.set_tunnel(host, port, headers=_login(proxy))
    return made


def _login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _look(connection: ssl.SSLSocket, server: str) -> Negotiated:
    raw, cipher = connection.getpeercert(binary_form=True), connection.cipher()
    assert raw is not None, "the context demands a certificate"
    assert cipher is not None, "the handshake is over"
    cert = x509.load_der_x509_certificate(raw)
    return Negotiated(
        server=server,
        protocol=connection.version() or "",
        cipher=cipher[0],
        subject=_one_line(cert.subject.rfc4514_string()) or _alternative_names(cert),
        issuer=_one_line(cert.issuer.rfc4514_string()),
        expires=cert.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _alternative_names(cert: x509.Certificate) -> str:
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    return _one_line(", ".join(str(name.value) for name in names))


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:MAX_CHARACTERS])
