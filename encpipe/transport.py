"""The TLS rules every outgoing connection obeys, whoever makes it.

- https, with TLS 1.2 or later, the host name checked, against `tls.ca_file` or the system's CA store.
- Plain http only to loopback (127.0.0.0/8, ::1, `localhost`) or to a host named in `tls.allow_plain_http_to`,
  whose use is a line in the audit log.
- The CA comes from the configuration. Without one it is the system's store as OpenSSL finds it
  (`SSL_CERT_FILE` and `SSL_CERT_DIR` say where); `AWS_CA_BUNDLE` and `REQUESTS_CA_BUNDLE` never count.
- No credentials in URLs, no redirects or re-routing to another host, and no proxy between us and a plain-http
  or loopback server. An https proxy of the environment only ever sees TLS.
- A server that these rules refuse is told apart from one that is down, and not tried again.

What an SDK does to fetch its own credentials (instance metadata, single sign-on) is its own affair.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import SplitResult, urlsplit

from encpipe.audit import audit_of
from encpipe.config import AuditConfig, TlsConfig
from encpipe.errors import ConfigError
from encpipe.perprocess import PerProcess

if TYPE_CHECKING:
    from botocore.client import BaseClient

LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

SYSTEM_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)
"""Where distributions keep the store as one file, for when OpenSSL was built to look elsewhere."""

UNSAFE_IN_URL: Final = re.compile(r"[^!-~]|\\")
"""White space, control and non-ASCII characters, backslashes: URL parsers disagree on them."""


UNTRUSTED: Final = re.compile(
    r"certificate verify failed: ([^(\n]*[^( \n])|host ?name [^\n]* doesn't match", re.I
)
"""How OpenSSL and urllib3 say that a certificate was refused."""

NOT_TLS_1_2: Final = re.compile(
    r"(alert|wrong|unsupported)[_ ](protocol|version)([_ ](version|number))?|no[_ ]protocols[_ ]available",
    re.I,
)
"""How OpenSSL says, in Python and below curl, that it and the server found no version of TLS to speak."""


def check_endpoint(url: str, tls: TlsConfig) -> None:
    """Refuse an endpoint that these rules do not allow. No I/O, so it comes before any connection.

    Raises `ConfigError`: code `insecure-transport` for anything but https that is not excepted, `config` for
    a URL that is malformed or carries user info, a query or a fragment. The URL itself is never in the
    message, as it may hold a password; its host is.
    """
    parts = _split(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or (parts.scheme == "http" and _may_be_plain(host, parts.port, tls)):
        return
    raise ConfigError(
        f"the endpoint at {host!r} is plain {parts.scheme}, and the host is not loopback",
        hint=f'use https, or accept the risk: allow_plain_http_to = ["{host}"] in the table "tls"',
        code="insecure-transport",
    )


def is_loopback(host: str) -> bool:
    """Whether a host, as a URL names it, is this machine: `localhost`, or an address of 127.0.0.0/8 or ::1.

    Other spellings (`127.1`, `0x7f000001`) and names that resolve to loopback are not; nothing is resolved.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in network for network in LOOPBACK)


def ca_bundle(tls: TlsConfig) -> Path | None:
    """The CA file to hand to a client: `tls.ca_file`, else the system's store as one file, None without one.

    Raises `ConfigError` as `ssl_context` does, so that no SDK has to explain a bad file.
    """
    ssl_context(tls)
    if tls.ca_file is not None:
        return tls.ca_file
    system = (ssl.get_default_verify_paths().cafile, *SYSTEM_CA_FILES)
    return next((Path(path) for path in system if path and Path(path).is_file()), None)


def ssl_context(tls: TlsConfig) -> ssl.SSLContext:
    """A client's context: TLS 1.2 or later, certificate and host name checked, own certificate if configured.

    Raises `ConfigError` for a CA file, certificate or key that is missing or cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # demands a certificate and checks the host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        _load(context.load_verify_locations, "ca_file", tls.ca_file)
    if tls.client_cert is not None:
        key = tls.client_key or tls.client_cert
        _load(context.load_cert_chain, "client_cert", tls.client_cert, key, _refuse_passphrase)
    elif tls.client_key is not None:
        raise ConfigError("tls.client_key is set without tls.client_cert", hint="name both, or neither")
    return context


def botocore_settings(
    endpoint: str | None, tls: TlsConfig, *, connect_timeout: float, read_timeout: float, max_attempts: int
) -> dict[str, Any]:
    """Keyword arguments of `botocore.config.Config` (s3fs: `config_kwargs`) for a client that obeys.

    Timeouts are seconds; `max_attempts` counts the first one. To be used with `botocore_verify` as `verify=`,
    `endpoint` as `endpoint_url=` and, on the finished client, `pin_host`. Endpoints of the environment and of
    profiles (`AWS_ENDPOINT_URL`) are ignored. Raises `ConfigError` as `check_endpoint` does. No I/O.
    """
    settings: dict[str, Any] = {
        "connect_timeout": connect_timeout,
        "read_timeout": read_timeout,
        "retries": {"mode": "standard", "total_max_attempts": max_attempts},
        "ignore_configured_endpoint_urls": True,
        "tcp_keepalive": True,
    }
    if endpoint is not None:
        check_endpoint(endpoint, tls)
        if (parts := _split(endpoint)).scheme == "http" or is_loopback(parts.hostname or ""):
            settings["proxies"] = {}
    if tls.client_cert is not None:
        settings["client_cert"] = (str(tls.client_cert), str(tls.client_key or tls.client_cert))
    return settings


def botocore_verify(tls: TlsConfig) -> str | bool:
    """The `verify=` of a boto3 client: a CA file, or True (botocore's bundle) on a system without a store.

    Never None, which would let the environment decide. Raises `ConfigError` as `ca_bundle` does.
    """
    path = ca_bundle(tls)
    return True if path is None else str(path)


def refused_server(endpoint: str, error: BaseException) -> ConfigError | None:
    """The error to raise when a connection failed over what these rules demand; None when it did not.

    `error` is an SDK's or OpenSSL's. Not an outage: trying again cannot help, and it may be an attack. Code
    `untrusted-certificate`, or `insecure-transport` where the server speaks nothing from TLS 1.2 on.
    """
    server, said = urlsplit(endpoint).netloc.rpartition("@")[2], str(error)
    found = UNTRUSTED.search(said)
    if found is not None:
        return ConfigError(
            f"the certificate of {server} is not trusted: {found[1] or found[0]}",
            hint="name the CA that issued it in tls.ca_file, or correct the endpoint; do not ignore this",
            code="untrusted-certificate",
        )
    if NOT_TLS_1_2.search(said):
        return ConfigError(
            f"{server} does not speak TLS 1.2 or later",
            hint="correct the endpoint's port, or have the server's TLS updated: older versions are broken",
            code="insecure-transport",
        )
    return None


def announce(url: str, tls: TlsConfig) -> None:
    """Write to the audit log that a connection is about to be plain http beyond loopback; else do nothing.

    Once for each process and server. To be called before the first request. Raises `StorageError` `audit`,
    as `Audit.record` does: then there is to be no connection.
    """
    parts = _split(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        _ANNOUNCED.get().announce(f"{parts.scheme}://{parts.hostname}:{parts.port or 80}", tls.audit)


class _Announced:
    """What the audit logs of one process have been told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[tuple[str, AuditConfig]] = set()

    def announce(self, server: str, audit: AuditConfig) -> None:
        with self._lock:
            if (server, audit) not in self._told:
                audit_of(audit).record("plain-http", target=server)
                self._told.add((server, audit))


_ANNOUNCED: Final = PerProcess(_Announced(), lambda _: _Announced())


def pin_host(client: BaseClient, tls: TlsConfig) -> None:
    """Make a boto3 client refuse to send to any other scheme or host than its endpoint's and names below it.

    S3 puts bucket names before the endpoint's host. A request elsewhere raises `ConfigError` unsent. So does
    one to a server that `refused_server` tells of, which boto3 would try again as if it were down. The first
    request is what `announce` is for.
    """
    home = _split(client.meta.endpoint_url)

    def refuse_elsewhere(request: Any, **_: Any) -> None:
        to = urlsplit(request.url)
        host, home_host = to.hostname or "", home.hostname or ""
        below = host == home_host or host.endswith("." + home_host)
        if not (below and to.scheme == home.scheme and to.port == home.port):
            raise ConfigError(
                f"refused to follow {home_host!r} to another server, {host!r}",
                hint="name the right region or endpoint_url in the configuration",
                code="insecure-transport",
            )
        announce(client.meta.endpoint_url, tls)

    def give_up(caught_exception: BaseException | None = None, **_: Any) -> None:
        refused = None
        if caught_exception is not None:
            refused = refused_server(client.meta.endpoint_url, caught_exception)
        if refused is not None:
            raise refused
        if isinstance(getattr(caught_exception, "kwargs", {}).get("error"), TypeError):
            # what botocore makes of a redirect to GET, which it cannot follow (HTTP 303)
            raise ConfigError(
                f"{home.hostname!r} sends us to another server, and redirects are not followed",
                hint="name the right region or endpoint_url in the configuration",
            )

    client.meta.events.register_first("before-send", refuse_elsewhere)
    client.meta.events.register_first("needs-retry", give_up)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit("" if UNSAFE_IN_URL.search(url) else url)
        whole = bool(parts.scheme and parts.hostname and parts.port != 0)
    except ValueError:  # brackets or a port that are none
        whole = False
    if not whole:
        raise ConfigError("an endpoint is not a URL", hint="write https://HOST or https://HOST:PORT")
    if "@" in parts.netloc:
        raise ConfigError(
            f"the endpoint at {parts.hostname!r} has user info in its URL",
            hint="credentials come from the SDK's own chain, never from a URL",
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"the endpoint at {parts.hostname!r} has a query or fragment", hint="leave it away")
    return parts


def _may_be_plain(host: str, port: int | None, tls: TlsConfig) -> bool:
    named = {entry.lower() for entry in tls.allow_plain_http_to}
    return is_loopback(host) or host in named or f"{host}:{port or 80}" in named


def _load(load: Callable[..., object], setting: str, path: Path, *more: object) -> None:
    try:
        load(path, *more)
    except OSError as error:  # ssl.SSLError is one
        reason = pem_failure(error)
        raise ConfigError(
            f"tls.{setting} cannot be used: {path}: {reason}", hint="name a readable PEM file"
        ) from None


def pem_failure(error: OSError) -> str:
    """Why a PEM file could not be loaded into an `ssl.SSLContext`, in words."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or type(error).__name__
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return "no usable certificate or key is in it"


def _refuse_passphrase() -> NoReturn:
    raise ConfigError(
        "tls.client_key is protected by a passphrase, which encpipe does not ask for",
        hint="give a key file without one, readable by its owner only",
    )
