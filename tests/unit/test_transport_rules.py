"""Which endpoints may be spoken to, and against which CA, whatever the environment says."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.httpsession
import botocore.session
import pytest
from botocore.config import Config
from cryptography.hazmat.primitives import serialization
from servers.ca import CertificateAuthority

from encpipe import transport
from encpipe.config import TlsConfig
from encpipe.errors import ConfigError

DEFAULT = TlsConfig()
ENVIRONMENT = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.mark.parametrize(
    "url",
    [
        "https://kms.eu-central-1.amazonaws.com",
        "https://kms.example:8443/path",
        "HTTPS://kms.example",
        "https://10.0.0.1",
        "https://[2001:db8::1]:443",
        "http://127.0.0.1:9000",
        "http://127.255.0.3",
        "http://[::1]:9000",
        "http://localhost:9000/",
        "http://LOCALHOST",
    ],
)
def test_https_anywhere_and_http_on_loopback_pass(url: str) -> None:
    transport.check_endpoint(url, DEFAULT)


@pytest.mark.parametrize(
    "url",
    [
        "http://kms.example",
        "http://10.0.0.1:9000",
        "http://0.0.0.0:9000",
        "http://128.0.0.1",
        "http://[::2]",
        "http://[::ffff:10.0.0.1]",
        "http://localhost.example",
        "http://127.0.0.1.example",
        "http://127.1",
        "http://0x7f000001",
        "http://2130706433",
        "ftp://127.0.0.1",
        "ws://localhost",
        "unix://localhost/socket",
    ],
)
def test_anything_else_is_insecure(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        transport.check_endpoint(url, DEFAULT)
    assert refused.value.code == "insecure-transport"
    assert "allow_plain_http_to" in refused.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kms.example",
        "https://",
        "https://:443",
        "//kms.example",
        "https://kms.example:0",
        "https://kms.example:99999",
        "https://kms.example:port",
        "https://[::1",
        "https://kms.example\\.evil.example",
        "http://127.0.0.1\\@evil.example",
        "http://127.0.0.1\t.evil.example",
        "http://local\nhost",
        " http://localhost",
        "http://l\u043ecalhost",
        "https://user@kms.example",
        "https://user:hunter2@kms.example",
        "http://127.0.0.1@evil.example",
        "https://@kms.example",
        "https://kms.example?x=hunter2",
        "https://kms.example#hunter2",
    ],
)
def test_malformed_urls_and_user_info_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        transport.check_endpoint(url, TlsConfig(allow_plain_http_to=("evil.example",)))
    assert refused.value.code == "config"
    assert "hunter2" not in f"{refused.value} {refused.value.hint}"


def test_a_named_host_may_be_plain_and_only_that_one() -> None:
    tls = TlsConfig(allow_plain_http_to=("KMS.internal", "vault.internal:8200"))
    transport.check_endpoint("http://kms.internal", tls)
    transport.check_endpoint("http://kms.internal:9000", tls)
    transport.check_endpoint("http://vault.internal:8200", tls)
    others = (
        "http://a.kms.internal",
        "http://vault.internal",
        "http://vault.internal:8201",
        "ftp://kms.internal",
    )
    for other in others:
        with pytest.raises(ConfigError, match="not loopback"):
            transport.check_endpoint(other, tls)


def test_context_demands_a_certificate_for_the_host_and_tls_1_2(ca: CertificateAuthority) -> None:
    for tls in (DEFAULT, TlsConfig(ca_file=ca.path)):
        context = transport.ssl_context(tls)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert botocore.httpsession.create_urllib3_context().minimum_version >= ssl.TLSVersion.TLSv1_2


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> None:
    """A whole TLS handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: list[Any] = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()


def test_context_trusts_the_configured_ca_and_no_other(ca: CertificateAuthority, tmp_path: Path) -> None:
    server = ca.server().server_context()
    handshake(server, transport.ssl_context(TlsConfig(ca_file=ca.path)))
    stranger = CertificateAuthority.create(tmp_path / "other")
    for tls in (DEFAULT, TlsConfig(ca_file=stranger.path)):
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            handshake(server, transport.ssl_context(tls))
        error = transport.refused_server("https://user:secret@kms.example/x", refused.value)
        assert error is not None
        assert error.code == "untrusted-certificate"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server, transport.ssl_context(TlsConfig(ca_file=ca.path)), "kms.example")


def test_only_certificate_refusals_count_as_untrusted() -> None:
    assert transport.refused_server("https://kms.example", OSError("Connection reset by peer")) is None


def test_context_shows_the_configured_client_certificate(ca: CertificateAuthority, tmp_path: Path) -> None:
    server = ca.server().server_context(client_ca=ca.path)
    own = ca.client()
    handshake(server, transport.ssl_context(TlsConfig(ca.path, own.cert, own.key)))
    both = tmp_path / "both.pem"
    both.write_bytes(own.cert.read_bytes() + own.key.read_bytes())
    handshake(server, transport.ssl_context(TlsConfig(ca.path, both)))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server, transport.ssl_context(TlsConfig(ca.path)))


@pytest.mark.parametrize("make", [transport.ssl_context, transport.ca_bundle, transport.botocore_verify])
def test_unusable_files_are_config_errors_that_name_them(
    ca: CertificateAuthority, tmp_path: Path, make: Any
) -> None:
    missing, junk, own = tmp_path / "missing.pem", tmp_path / "junk.pem", ca.client()
    junk.write_text("no certificate")
    for tls, setting in [
        (TlsConfig(ca_file=missing), "ca_file"),
        (TlsConfig(ca_file=junk), "ca_file"),
        (TlsConfig(ca_file=tmp_path), "ca_file"),
        (TlsConfig(client_cert=missing, client_key=own.key), "client_cert"),
        (TlsConfig(client_cert=own.cert, client_key=missing), "client_cert"),
        (TlsConfig(client_cert=own.cert), "client_cert"),
        (TlsConfig(client_cert=own.cert, client_key=ca.client().key), "client_cert"),
        (TlsConfig(client_key=own.key), "client_key"),
    ]:
        with pytest.raises(ConfigError, match=rf"tls\.{setting}"):
            make(tls)


def test_a_key_of_another_certificate_is_told_as_such(ca: CertificateAuthority) -> None:
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        transport.ssl_context(TlsConfig(client_cert=ca.client().cert, client_key=ca.client().key))


def test_a_protected_client_key_is_refused_without_asking(ca: CertificateAuthority, tmp_path: Path) -> None:
    own = ca.client()
    key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    protected = tmp_path / "protected.key"
    protected.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigError, match="protected by a passphrase"):
        transport.ssl_context(TlsConfig(client_cert=own.cert, client_key=protected))


def test_environment_does_not_override_a_configured_ca(
    ca: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = CertificateAuthority.create(tmp_path / "configured")
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, str(ca.path))
    tls = TlsConfig(ca_file=configured.path)
    assert transport.ca_bundle(tls) == configured.path
    assert transport.botocore_verify(tls) == str(configured.path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ca.server().server_context(), transport.ssl_context(tls))


def test_without_a_configured_ca_it_is_the_systems(
    ca: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.path))
    assert transport.ca_bundle(DEFAULT) == ca.path
    handshake(ca.server().server_context(), transport.ssl_context(DEFAULT))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    monkeypatch.setattr(transport, "SYSTEM_CA_FILES", (str(tmp_path / "absent.pem"),))
    assert transport.ca_bundle(DEFAULT) is None
    assert transport.botocore_verify(DEFAULT) is True


def settings(endpoint: str | None, tls: TlsConfig = DEFAULT) -> dict[str, Any]:
    return transport.botocore_settings(endpoint, tls, connect_timeout=2, read_timeout=3, max_attempts=4)


def test_botocore_settings_carry_the_rules(ca: CertificateAuthority) -> None:
    own = ca.client()
    made = settings("https://kms.example", TlsConfig(client_cert=own.cert, client_key=own.key))
    config: Any = Config(**made)
    assert (config.connect_timeout, config.read_timeout) == (2, 3)
    assert config.retries == {"mode": "standard", "total_max_attempts": 4}
    assert config.client_cert == (str(own.cert), str(own.key))
    assert config.ignore_configured_endpoint_urls is True
    assert "proxies" not in made
    with pytest.raises(ConfigError, match="not loopback"):
        settings("http://kms.example")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "https://localhost:1", "http://kms.internal"])
def test_no_proxy_stands_before_loopback_or_plain_servers(endpoint: str) -> None:
    assert settings(endpoint, TlsConfig(allow_plain_http_to=("kms.internal",)))["proxies"] == {}


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://s3.example/key", True),
        ("https://bucket.s3.example/key", True),
        ("https://evil.example/key", False),
        ("https://evils3.example/key", False),
        ("http://s3.example/key", False),
        ("https://s3.example:8443/key", False),
    ],
)
def test_a_pinned_client_sends_nowhere_else(url: str, passes: bool) -> None:
    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url="https://s3.example",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    transport.pin_host(client, DEFAULT)
    send = SimpleNamespace(url=url)
    outcome = contextlib.nullcontext() if passes else pytest.raises(ConfigError, match="another server")
    with outcome:
        client.meta.events.emit("before-send.s3.GetObject", request=send)
    client.close()
