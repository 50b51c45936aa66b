"""What a connection to an endpoint comes to, and that looking at it sends nothing and keeps the rules."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.ca import CertificateAuthority
from servers.observer import Observer
from servers.process import HOST

from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, StorageError
from encpipe.negotiation import negotiated


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def test_version_cipher_and_certificate_are_told_and_nothing_is_sent(ca: CertificateAuthority) -> None:
    context = ca.server().server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Observer(context) as server:
        found = negotiated(server.url, TlsConfig(ca_file=ca.path))
    assert (found.server, found.protocol) == (f"{HOST}:{server.port}", "TLSv1.2")
    assert found.cipher.startswith("ECDHE-")
    assert (found.subject, found.issuer) == ("CN=server", "CN=encpipe test CA")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[0-9:]{8}Z", found.expires)
    for part in (found.protocol, found.cipher, found.subject, found.issuer, found.expires[:10]):
        assert part in str(found)
    assert (server.connections, server.requests) == (1, [])


def test_the_newest_version_is_taken(ca: CertificateAuthority) -> None:
    with Observer(ca.server().server_context()) as server:
        assert negotiated(server.url, TlsConfig(ca_file=ca.path)).protocol == "TLSv1.3"


def test_a_configured_client_certificate_is_shown(ca: CertificateAuthority) -> None:
    own, context = ca.client(), ca.server().server_context(client_ca=ca.path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the refusal would come after the handshake
    with Observer(context) as server:
        assert negotiated(server.url, TlsConfig(ca.path, own.cert, own.key)).subject == "CN=server"
        with pytest.raises(StorageError) as refused:
            negotiated(server.url, TlsConfig(ca_file=ca.path))
    assert "tls.client_cert" in refused.value.hint


def test_who_cannot_be_trusted_is_refused(ca: CertificateAuthority, tmp_path: Path) -> None:
    stranger = CertificateAuthority.create(tmp_path / "stranger")
    with Observer(stranger.server().server_context()) as server, pytest.raises(ConfigError) as refused:
        negotiated(server.url, TlsConfig(ca_file=ca.path))
    assert refused.value.code == "untrusted-certificate"
    with pytest.raises(ConfigError) as plain:
        negotiated("http://kms.example", TlsConfig(ca_file=ca.path))
    assert plain.value.code == "insecure-transport"
    with pytest.raises(ConfigError, match="plain http"):
        negotiated("http://localhost:1", TlsConfig(ca_file=ca.path))


def test_a_server_that_is_down_is_no_matter_of_trust(ca: CertificateAuthority) -> None:
    with socket.socket() as taken:  # bound, not listening
        taken.bind((HOST, 0))
        with pytest.raises(StorageError) as down:
            negotiated(f"https://{HOST}:{taken.getsockname()[1]}", TlsConfig(ca_file=ca.path))
    assert down.value.code == "storage-unavailable"


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a proxy that refuses, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
    thread.join()


def test_the_environments_proxy_is_asked_for_a_tunnel_except_to_loopback(
    ca: CertificateAuthority, proxy: tuple[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = proxy
    monkeypatch.setenv("https_proxy", f"http://user:pass@{HOST}:{port}")
    with Observer(ca.server().server_context()) as server:
        negotiated(server.url, TlsConfig(ca_file=ca.path))
    assert asked == []
    with pytest.raises(StorageError, match="403") as refused:
        negotiated("https://kms.example:8443", TlsConfig(ca_file=ca.path))
    assert asked[0].startswith(b"CONNECT kms.example:8443 HTTP/1.")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in asked[0]
    assert "pass" not in f"{refused.value}"
