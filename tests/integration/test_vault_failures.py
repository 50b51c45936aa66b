"""Vault denied, sealed, limited, slow, impersonated, its keys gone: the right error in time, no key in it."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from servers.ca import CertificateAuthority, IssuedCertificate
from servers.openbao import OpenBao, RaftServer

from encpipe.config import TlsConfig
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    MissingExtraError,
    UnwrapError,
)
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.vault import VaultKms
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

CONTEXT = KeyContext("d" * 32, "footer", "e" * 32)
KEK = Secret(bytes(range(100, 132)))
KEK_BASE64 = base64.b64encode(KEK.reveal()).decode()
JSON = {"Content-Type": "application/json"}
DECRYPT = "/v1/transit/decrypt/"


@pytest.fixture(autouse=True)
def credentials(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("VAULT_", "BAO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAULT_TOKEN", openbao.root_token)


@pytest.fixture
def proxy(openbao: OpenBao) -> Iterator[FaultProxy]:
    with FaultProxy(*upstream(openbao)) as running:
        yield running


@pytest.fixture(scope="module")
def uri(openbao: OpenBao) -> str:
    return openbao.create_key()


@pytest.fixture
def key(proxy: FaultProxy, uri: str) -> MasterKey:
    return service(proxy.url).master_key(uri)


@pytest.fixture
def wrapped(openbao: OpenBao, uri: str) -> WrappedKey:
    return service(openbao.address).master_key(uri).wrap(KEK, aad=CONTEXT)


def upstream(server: OpenBao) -> tuple[str, int]:
    parts = urlsplit(server.address)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def service(address: str, tls: TlsConfig | None = None, **table: Any) -> VaultKms:
    return VaultKms(KmsSettings({"address": address, **table}, tls=tls or TlsConfig()))


def of_a_key(method: str, path: str) -> bool:
    return path.startswith(("/v1/transit/decrypt/", "/v1/transit/encrypt/"))


def says(*errors: str, code: int = 400, times: int | None = None) -> Fault:
    body = json.dumps({"errors": errors}).encode()
    return Fault("status", code=code, body=body, headers=JSON, times=times, match=of_a_key)


def answers(body: Any, code: int = 200) -> Fault:
    return Fault("status", code=code, body=json.dumps(body).encode(), headers=JSON, match=of_a_key)


def asked(proxy: FaultProxy) -> list[str]:
    """Paths of the requests about keys."""
    return [path for method, path in proxy.requests if of_a_key(method, path)]


def failed(key: MasterKey, wrapped: WrappedKey, error: type[EncpipeError]) -> EncpipeError:
    """The error of an unwrap: exactly of this class, with a hint, and without the client's behind it."""
    with pytest.raises(error) as caught:
        key.unwrap(wrapped, aad=CONTEXT)
    assert type(caught.value) is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return caught.value


@pytest.mark.parametrize(
    ("fault", "error", "code", "text"),
    [
        (says("permission denied", code=403), KeyAccessDeniedError, "key-denied", "capabilities"),
        (Fault("status", code=403, body=b"<html>blocked</html>", match=of_a_key), KmsError, "kms", "proxy"),
        (Fault("status", code=401, match=of_a_key), KmsError, "kms", "proxy"),
        (says("no handler for route", code=404), ConfigError, "config", "mount"),
        (says("encryption key not found"), KeyNotFoundError, "key-not-found", "namespace"),
        (says("cipher: message authentication failed"), UnwrapError, "unwrap", "changed"),
        (says("invalid ciphertext: version is too new"), UnwrapError, "unwrap", "changed"),
        (
            says("ciphertext or signature version is disallowed by policy (too old)"),
            KeyAccessDeniedError,
            "key-disabled",
            "min_decryption_version",
        ),
        (says("missing 'context' for key derivation"), ConfigError, "config", "derivation"),
        (
            says("'[0].associated_data' provided for non-AEAD cipher suite"),
            ConfigError,
            "config",
            "aes256-gcm96",
        ),
        (says("Vault is not initialized", code=501), KmsError, "kms", "not initialised"),
        (says("\x1b[31m" + "x" * 5000), KmsError, "kms", "[31mxxx"),
    ],
    ids=lambda value: f"{value.code} {value.body.decode()[:30]}" if isinstance(value, Fault) else "",
)
def test_refusals_are_told_apart_and_not_tried_again(
    key: MasterKey,
    wrapped: WrappedKey,
    proxy: FaultProxy,
    fault: Fault,
    error: type[EncpipeError],
    code: str,
    text: str,
) -> None:
    proxy.faults = [fault]
    refusal = failed(key, wrapped, error)
    assert refusal.code == code
    assert refusal.hint
    assert text in f"{refusal.message} {refusal.hint}"
    assert len(refusal.message) < 1000
    assert refusal.message.isprintable()
    assert len(asked(proxy)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        says("request path limited", code=429, times=2),
        says("Vault is sealed", code=503, times=2),
        says("internal error", code=500, times=2),
        says("required index state not present", code=412, times=2),
        Fault("status", code=502, body=b"<html>", times=2, match=of_a_key),
        Fault("status", code=200, body=b"<html>", times=2, match=of_a_key),
        Fault("reset", times=2, match=of_a_key),
        Fault("drop_answer", times=2, match=of_a_key),
        Fault("truncate", times=2, match=of_a_key),
        Fault("shorten", times=2, match=of_a_key),
    ],
    ids=lambda fault: f"{fault.kind} {fault.code} {fault.body.decode()[:20]}",
)
def test_passing_faults_are_tried_again(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    fault.hits = 0
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert len(asked(proxy)) == 3


def test_absent_key_is_neither_found_nor_created(openbao: OpenBao, wrapped: WrappedKey) -> None:
    """Root may create keys, and the server would, on the first wrap."""
    key = service(openbao.address).master_key("vault:absent")
    assert "absent" in failed(key, WrappedKey(key.uri, wrapped.blob, "", ""), KeyNotFoundError).message
    with pytest.raises(KeyNotFoundError):
        key.wrap(KEK, aad=CONTEXT)
    with pytest.raises(KeyNotFoundError):
        key.wrap(KEK, aad=CONTEXT)


def test_deleted_key(openbao: OpenBao) -> None:
    key = service(openbao.address).master_key(openbao.create_key())
    name, wrapped = key.uri.removeprefix("vault:"), key.wrap(KEK, aad=CONTEXT)
    openbao.ask("post", f"transit/keys/{name}/config", {"deletion_allowed": True})
    openbao.ask("delete", f"transit/keys/{name}")
    failed(key, wrapped, KeyNotFoundError)
    openbao.create_key(name)  # of the same name, and another key
    failed(key, wrapped, UnwrapError)


def test_a_version_below_the_least_is_disabled_and_may_come_back(openbao: OpenBao) -> None:
    key = service(openbao.address).master_key(openbao.create_key())
    name, wrapped = key.uri.removeprefix("vault:"), key.wrap(KEK, aad=CONTEXT)
    openbao.ask("post", f"transit/keys/{name}/rotate")
    openbao.ask("post", f"transit/keys/{name}/config", {"min_decryption_version": 2})
    assert failed(key, wrapped, KeyAccessDeniedError).code == "key-disabled"
    openbao.ask("post", f"transit/keys/{name}/config", {"min_decryption_version": 1})
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_keys_that_cannot_bind_a_context_are_refused(openbao: OpenBao) -> None:
    """An RSA key's public half is public: anyone could make its wrappings."""
    for settings in ({"type": "rsa-2048"}, {"type": "ed25519"}, {"derived": True}):
        key = service(openbao.address).master_key(openbao.create_key(**settings))
        with pytest.raises(ConfigError, match="cannot wrap keys") as refused:
            key.wrap(KEK, aad=CONTEXT)
        assert KEK_BASE64 not in f"{refused.value.message} {refused.value.hint}"
    rsa = openbao.create_key(type="rsa-2048")
    path = f"transit/encrypt/{rsa.removeprefix('vault:')}"
    made = openbao.ask("post", path, {"plaintext": KEK_BASE64})["data"]["ciphertext"]
    key = service(openbao.address).master_key(rsa)
    failed(key, WrappedKey(rsa, made.encode(), "1", ""), UnwrapError)


def test_a_mount_that_is_not_there_or_not_transit_is_a_config_error(openbao: OpenBao) -> None:
    with pytest.raises(ConfigError, match="no transit engine"):
        service(openbao.address).master_key("vault:nowhere/footer").wrap(KEK, aad=CONTEXT)
    openbao.ask("post", "sys/mounts/kv-for-test", {"type": "kv"})
    with pytest.raises(ConfigError, match="no transit engine"):
        service(openbao.address).master_key("vault:kv-for-test/footer").wrap(KEK, aad=CONTEXT)


def test_sealed_server_is_an_outage_until_it_is_unsealed(ca: CertificateAuthority) -> None:
    with RaftServer(ca) as server:
        bao = server.address
        key = service(
            bao.address, TlsConfig(ca_file=ca.path), token="env:VAULT_TOKEN_OF_RAFT", deadline=1
        ).master_key(bao.create_key())
        os.environ["VAULT_TOKEN_OF_RAFT"] = bao.root_token
        try:
            wrapped = key.wrap(KEK, aad=CONTEXT)
            bao.ask("put", "sys/seal")
            error = failed(key, wrapped, KmsUnavailableError)
            assert "sealed" in error.message
            assert "unseal" in error.hint
            server.kill()
            server.start()
            assert key.unwrap(wrapped, aad=CONTEXT) == KEK
        finally:
            del os.environ["VAULT_TOKEN_OF_RAFT"]


def test_rate_quota_is_waited_for_within_the_deadline(openbao: OpenBao) -> None:
    mount = f"limited-{os.urandom(4).hex()}"
    openbao.ask("post", f"sys/mounts/{mount}", {"type": "transit"})
    key = service(openbao.address, deadline=10).master_key(openbao.create_key(mount=mount))
    wrapped = key.wrap(KEK, aad=CONTEXT)
    quota = {"path": mount, "rate": 1, "interval": "1s"}
    openbao.ask("post", f"sys/quotas/rate-limit/{mount}", quota)
    try:
        for _ in range(3):
            assert key.unwrap(wrapped, aad=CONTEXT) == KEK
        openbao.ask("post", f"sys/quotas/rate-limit/{mount}", {**quota, "rate": 0.001, "interval": "1000s"})
        hasty = service(openbao.address, deadline=0.5).master_key(key.uri)
        hasty_error: EncpipeError | None = None
        for _ in range(3):
            try:
                hasty.unwrap(wrapped, aad=CONTEXT)
            except KmsUnavailableError as error:
                hasty_error = error
        assert hasty_error is not None
        assert "limits the rate" in hasty_error.message
    finally:
        openbao.ask("delete", f"sys/quotas/rate-limit/{mount}")


def test_a_server_that_asks_to_be_left_alone_is(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
) -> None:
    fault = says("rate limit quota exceeded", code=429, times=1)
    fault.headers = {**JSON, "Retry-After": "1"}
    proxy.faults = [fault]
    start = time.monotonic()
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert time.monotonic() - start >= 1
    fault.headers, fault.hits = {**JSON, "Retry-After": "3600"}, 0
    start = time.monotonic()
    failed(key, wrapped, KmsUnavailableError)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("fault", [Fault("stall"), Fault("delay", seconds=60)], ids=["stall", "delay"])
@pytest.mark.parametrize("read_timeout", [0.2, 60])
def test_a_slow_service_is_given_up_at_the_deadline(
    uri: str, wrapped: WrappedKey, proxy: FaultProxy, fault: Fault, read_timeout: float
) -> None:
    proxy.faults = [fault]
    key = service(proxy.url, deadline=1, read_timeout=read_timeout).master_key(uri)
    start = time.monotonic()
    failed(key, wrapped, KmsUnavailableError)
    assert time.monotonic() - start < 4


def test_no_server_is_an_outage(uri: str, wrapped: WrappedKey) -> None:
    with socket.socket() as taken:  # bound, not listening: nobody else can listen there meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        key = service(address, deadline=0.3).master_key(uri)
        assert address in failed(key, wrapped, KmsUnavailableError).message


def test_redirects_are_not_followed(key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy) -> None:
    elsewhere = {"Location": f"{proxy.url}/v1/elsewhere"}
    proxy.faults = [
        Fault("status", code=code, headers=elsewhere, times=1, match=of_a_key)
        for code in (301, 302, 307, 308)
    ]
    for _ in range(4):
        assert "address" in failed(key, wrapped, KmsError).hint
    assert not any("elsewhere" in path for _, path in proxy.requests)


def test_an_answer_that_is_no_kek_is_refused(key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy) -> None:
    for plaintext in (base64.b64encode(b"short").decode(), "", "?", None, 7, KEK_BASE64 * 2):
        proxy.faults = [answers({"data": {"plaintext": plaintext}})]
        failed(key, wrapped, UnwrapError)
    proxy.faults = [answers({"data": None})]
    failed(key, wrapped, UnwrapError)


def test_an_answer_that_is_no_ciphertext_is_refused(key: MasterKey, proxy: FaultProxy) -> None:
    for ciphertext in (KEK_BASE64, f"vault:v1:{KEK_BASE64}", f"vault:v1:{'A' * 344}", None, ""):
        proxy.faults = [answers({"data": {"ciphertext": ciphertext, "key_version": 1}})]
        with pytest.raises(KmsError, match="no ciphertext"):
            key.wrap(KEK, aad=CONTEXT)


def test_a_server_that_ignores_associated_data_is_refused(key: MasterKey, proxy: FaultProxy) -> None:
    ignored = "Endpoint ignored these unrecognized parameters: [associated_data]"
    proxy.faults = [answers({"data": {"ciphertext": f"vault:v1:{'A' * 80}"}, "warnings": [ignored]})]
    with pytest.raises(ConfigError, match="ignores associated_data"):
        key.wrap(KEK, aad=CONTEXT)


def test_a_wrapping_of_another_key_or_kind_is_refused_without_asking(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
) -> None:
    for foreign in ("vault:other", f"vault:team/{key.uri.removeprefix('vault:')}", "local:default", ""):
        failed(key, WrappedKey(foreign, wrapped.blob, "", ""), UnwrapError)
    for blob in (b"", b"vault:v1:", b"vault:v1:" + b"A" * 344, wrapped.blob + b"\n", b"\xff" * 89):
        failed(key, WrappedKey(key.uri, blob, "", ""), UnwrapError)
    assert proxy.requests == []


def test_what_the_service_says_is_not_shown_when_it_could_be_the_key(
    key: MasterKey, proxy: FaultProxy
) -> None:
    for code in (400, 403, 404, 429, 500):
        proxy.faults = [says(f"bad plaintext {KEK_BASE64}", code=code)]
        hasty = service(proxy.url, deadline=0.3).master_key(key.uri)
        with pytest.raises(EncpipeError) as refused:
            hasty.wrap(KEK, aad=CONTEXT)
        assert KEK_BASE64 not in f"{refused.value.message} {refused.value.hint}"


def test_debug_logs_hold_no_key_and_no_token(
    openbao: OpenBao, key: MasterKey, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.NOTSET)
    proxy.faults = [Fault("reset", times=1, match=of_a_key)]
    wrapped = key.wrap(KEK, aad=CONTEXT)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    proxy.faults = [says(KEK_BASE64)]
    failed(key, wrapped, KmsError)
    assert "urllib3" in caplog.text
    for secret in (KEK_BASE64, repr(KEK.reveal())[2:-1], KEK.reveal().hex(), openbao.root_token):
        assert secret not in caplog.text
        assert secret not in f"{key!r} {key._service!r}"  # type: ignore[attr-defined]  # ours, not the protocol's


def test_plain_http_beyond_loopback_is_refused_before_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("this must not touch the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    for address in ("http://vault.example:8200", "http://10.0.0.1:8200", "http://localhost.example"):
        with pytest.raises(ConfigError) as refused:
            service(address)
        assert refused.value.code == "insecure-transport"


def tls_proxy(server: OpenBao, certificate: IssuedCertificate, client_ca: Path | None = None) -> FaultProxy:
    return FaultProxy(*upstream(server), tls_listen=certificate.server_context(client_ca))


def test_tls_with_the_configured_ca_whatever_the_environment_says(
    openbao: OpenBao,
    ca: CertificateAuthority,
    uri: str,
    wrapped: WrappedKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = CertificateAuthority.create(tmp_path / "stranger")
    variables = ("VAULT_CACERT", "BAO_CACERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    with tls_proxy(openbao, ca.server()) as proxy:
        for name in variables:
            monkeypatch.setenv(name, str(stranger.path))
        monkeypatch.setenv("VAULT_SKIP_VERIFY", "true")
        trusting = service(proxy.url, TlsConfig(ca_file=ca.path)).master_key(uri)
        assert trusting.unwrap(wrapped, aad=CONTEXT) == KEK
        for name in variables:
            monkeypatch.setenv(name, str(ca.path))
        before = len(proxy.requests)
        doubting = service(proxy.url, TlsConfig(ca_file=stranger.path)).master_key(uri)
        assert failed(doubting, wrapped, ConfigError).code == "untrusted-certificate"
        assert len(proxy.requests) == before


@pytest.mark.parametrize("flaw", ["untrusted CA", "self-signed", "expired", "wrong host"])
def test_a_certificate_with_a_flaw_is_refused_at_once(
    openbao: OpenBao, ca: CertificateAuthority, uri: str, wrapped: WrappedKey, flaw: str
) -> None:
    certificate = {
        "untrusted CA": ca.server,
        "self-signed": ca.self_signed,
        "expired": lambda: ca.server(expired=True),
        "wrong host": lambda: ca.server(wrong_host=True),
    }[flaw]()
    tls = TlsConfig() if flaw == "untrusted CA" else TlsConfig(ca_file=ca.path)
    with tls_proxy(openbao, certificate) as proxy:
        error = failed(service(proxy.url, tls).master_key(uri), wrapped, ConfigError)
        assert error.code == "untrusted-certificate"
        assert "tls.ca_file" in error.hint
        assert proxy.requests == []


def test_mutual_tls(openbao: OpenBao, ca: CertificateAuthority, uri: str, wrapped: WrappedKey) -> None:
    own = ca.client()
    with tls_proxy(openbao, ca.server(), client_ca=ca.path) as proxy:
        known = service(proxy.url, TlsConfig(ca.path, own.cert, own.key)).master_key(uri)
        assert known.unwrap(wrapped, aad=CONTEXT) == KEK
        unknown = service(proxy.url, TlsConfig(ca.path), deadline=1).master_key(uri)
        failed(unknown, wrapped, KmsUnavailableError)


def test_address_proxies_and_netrc_of_the_environment_do_not_count(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("VAULT_ADDR", "BAO_ADDR", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert len(asked(proxy)) == 1


def test_without_hvac_the_error_is_the_pip_command(
    uri: str, wrapped: WrappedKey, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hvac", None)
    monkeypatch.setitem(sys.modules, "hvac.adapters", None)
    monkeypatch.delitem(sys.modules, "encpipe.kms.vault_http", raising=False)
    key = service(openbao.address).master_key(uri)
    assert failed(key, wrapped, MissingExtraError).hint == "pip install 'encpipe[vault]'"


def test_a_forked_child_opens_connections_of_its_own(openbao: OpenBao, uri: str, wrapped: WrappedKey) -> None:
    kms = service(openbao.address)
    key = kms.master_key(uri)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    session = kms._process.get()
    session.lock.acquire()  # as if another thread were connecting: the child must not wait for it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
        child = os.fork()
    if child == 0:
        opened = key.unwrap(wrapped, aad=CONTEXT) == KEK
        own = kms._process.get().connection is not session.connection
        os._exit(0 if opened and own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session.lock.release()
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
