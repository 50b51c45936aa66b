"""Azure denied, absent, disabled, slow, throttled, impersonated: the right error, in time, no key in it.

Against a fake of Managed HSM and Entra ID (servers/azurekv.py), behind a proxy that misbehaves.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from keyservicefailures import CONTEXT, KEK, KeyServiceFailures, Listen, Nobody, Reach, failed
from servers.azurekv import AUDIENCE, ENTRA, HSM_DOMAIN, READER, TENANT, WRITER, FakeAzure, Token, lookup
from servers.ca import CertificateAuthority, IssuedCertificate
from servers.process import HOST

from encpipe.config import TlsConfig
from encpipe.errors import (
    ConfigError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    MissingExtraError,
    UnwrapError,
)
from encpipe.keys import MasterKey, Secret, WrappedKey
from encpipe.kms.azure import AzureKms
from encpipe.kms.base import KmsSettings
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

KEK_TEXT = base64.urlsafe_b64encode(KEK.reveal()).decode().rstrip("=")
JSON = {"Content-Type": "application/json; charset=utf-8"}
NAMES = (ENTRA, f"*.{HSM_DOMAIN}")
Lead = Callable[..., None]


@pytest.fixture
def azure(ca: CertificateAuthority) -> Iterator[FakeAzure]:
    with FakeAzure(ca) as running:
        yield running


@pytest.fixture
def lead(azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> Lead:
    """Says where the real names lead to; at first both to the fake."""
    real = socket.getaddrinfo

    def change(*, entra: int = azure.port, hsm: int = azure.port) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lookup(real, {ENTRA: entra, HSM_DOMAIN: hsm}))

    change()
    return change


@pytest.fixture(autouse=True)
def credentials(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    become(monkeypatch, *WRITER)


def become(monkeypatch: pytest.MonkeyPatch, client: str, secret: str) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", client)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", secret)


@pytest.fixture
def service(ca: CertificateAuthority) -> Callable[..., AzureKms]:
    def make(tls: TlsConfig | None = None, **table: Any) -> AzureKms:
        settings = {"credential": "environment", **table}
        return AzureKms(KmsSettings(settings, tls=tls or TlsConfig(ca_file=ca.path)))

    return make


@pytest.fixture
def uri(azure: FakeAzure) -> str:
    """A key in an HSM of its own: the SDK remembers the challenge of every host it saw."""
    return azure.create_key("one", host=f"u{uuid.uuid4().hex[:12]}.{HSM_DOMAIN}")


@pytest.fixture
def wrapped(service: Callable[..., AzureKms], uri: str) -> WrappedKey:
    return service().master_key(uri).wrap(KEK, aad=CONTEXT)


@pytest.fixture
def listen(
    azure: FakeAzure, ca: CertificateAuthority, wrapped: WrappedKey
) -> Listen:  # the challenge is over
    def make(certificate: IssuedCertificate | None = None, client_ca: Path | None = None) -> FaultProxy:
        listen = certificate.server_context(client_ca) if certificate else azure.server_context()
        return FaultProxy(HOST, azure.port, tls_listen=listen, tls_upstream=ca.client_context())

    return make


@pytest.fixture
def proxy(listen: Listen, lead: Lead) -> Iterator[FaultProxy]:
    """Between the client and the HSM from here on."""
    with listen() as running:
        lead(hsm=running.port)
        yield running


@pytest.fixture
def reach(service: Callable[..., AzureKms], uri: str, lead: Lead) -> Reach:
    def make(where: FaultProxy | Nobody, tls: TlsConfig | None = None, **table: Any) -> MasterKey:
        lead(hsm=where.port)
        return service(tls, **table).master_key(uri)

    return make


@pytest.fixture
def key(service: Callable[..., AzureKms], uri: str, proxy: FaultProxy) -> MasterKey:
    return service().master_key(uri)


def says(
    status: int,
    code: str = "",
    message: str = "",
    inner: str = "",
    *,
    times: int | None = None,
    **headers: str,
) -> Fault:
    error: dict[str, Any] = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"error": error}).encode()
    return Fault("status", code=status, body=body, headers=JSON | more, times=times)


def answers(**fields: Any) -> Fault:
    return Fault("status", code=200, body=json.dumps(fields).encode(), headers=JSON)


HTML = b"<html>blocked by proxy</html>"


class TestFailures(KeyServiceFailures):
    extra = "azure"
    sdk_modules = ("azure.identity",)
    logs = HSM_DOMAIN
    names = NAMES
    takes_endpoint = False
    foreign_uris = (
        f"azure-kv:https://unit.{HSM_DOMAIN}/keys/one",
        f"azure-kv:http://unit.{HSM_DOMAIN}/keys/one",
    )
    busy = says(429, "Throttled")
    repeats_key = tuple(
        says(status, code, f"bad value {KEK_TEXT}")
        for status, code in ((400, "Odd"), (403, "Forbidden"), (400, "BadParameter"))
    )
    refusals = (
        (
            says(403, "Forbidden", "Caller u is not authorized", "ForbiddenByRbac"),
            KeyAccessDeniedError,
            "key-denied",
            "keys/decrypt/action",
        ),
        (
            says(403, "Forbidden", "Caller u is not authorized"),
            KeyAccessDeniedError,
            "key-denied",
            "Caller u",
        ),
        (says(403, "Forbidden", "", "ForbiddenByFirewall"), KmsError, "kms", "network rules"),
        (says(403, "Forbidden", "", "KeyDisabled"), KeyAccessDeniedError, "key-disabled", "set-attributes"),
        (
            says(403, "Forbidden", "Operation decrypt is not allowed on a disabled key."),
            KeyAccessDeniedError,
            "key-disabled",
            "set-attributes",
        ),
        (says(403, "Forbidden", "", "KeyNotYetValid"), KeyAccessDeniedError, "key-disabled", "validity"),
        (says(403, "Other"), KmsError, "kms", "proxy"),
        (Fault("status", code=403, body=HTML), KmsError, "kms", "proxy"),
        (says(401, "Unauthorized", "[TokenExpired]"), KmsError, "credentials", "clock"),
        (says(404, "KeyNotFound", "A key was not found"), KeyNotFoundError, "key-not-found", "recover"),
        (Fault("status", code=404, body=HTML), KmsError, "kms", "404"),
        (says(400, "BadParameter", "The parameter is incorrect."), UnwrapError, "unwrap", "changed"),
        (says(400, "Odd"), KmsError, "kms", "Odd"),
        (says(409, "Conflict"), KmsError, "kms", "Conflict"),
        (says(307, Location="https://elsewhere.example/keys/one"), KmsError, "kms", "307"),
        (says(418, "\x1b[31m", "\x1b[31m" + "x" * 5000), KmsError, "kms", "no error code"),
        (Fault("status", code=400, body=b'{"error": "text"}'), KmsError, "kms", "no error code"),
    )
    passing = (
        says(429, "Throttled", times=2),
        says(429, "Throttled", Retry_After="0", times=2),
        says(503, "ServiceUnavailable", times=2),
        says(500, "InternalServerError", times=2),
        Fault("status", code=502, body=b"<html>", times=2),
        Fault("status", code=408, times=2),
        Fault("reset", times=2),
        Fault("drop_answer", times=2),
        Fault("truncate", times=2),
        Fault("shorten", times=2),
        Fault("status", code=200, body=b"[1]", headers=JSON, times=2),
        Fault("status", code=200, body=b"[" * 100_000, headers=JSON, times=2),
        Fault("status", code=200, body=b'{"kid": 1}', headers=JSON, times=2),
        Fault("status", code=200, body=b'{"kid": "x", "value": "a b"}', headers=JSON, times=2),
    )

    @pytest.fixture(autouse=True)
    def keep_tokens(self, azure: FakeAzure) -> None:
        self.tokens = azure.tokens

    def credentials_in_use(self) -> Sequence[str]:
        return (WRITER[1], *self.tokens)


def test_an_absent_key_and_an_absent_version(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str, wrapped: WrappedKey
) -> None:
    absent = service().master_key(f"{uri}-none")
    with pytest.raises(KeyNotFoundError, match="-none"):
        absent.wrap(KEK, aad=CONTEXT)
    azure.key(uri).rotate()
    del azure.key(uri).versions[wrapped.version]
    assert wrapped.version in failed(service().master_key(uri), wrapped, KeyNotFoundError).message


def test_a_disabled_key_opens_again_when_it_is_enabled(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str, wrapped: WrappedKey
) -> None:
    azure.key(uri).enabled = False
    key = service().master_key(uri)
    assert failed(key, wrapped, KeyAccessDeniedError).code == "key-disabled"
    azure.key(uri).enabled = True
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_a_reader_opens_and_may_not_wrap(
    service: Callable[..., AzureKms], uri: str, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, *READER)
    key = service().master_key(uri)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    with pytest.raises(KeyAccessDeniedError) as refused:
        key.wrap(KEK, aad=CONTEXT)
    assert "keys/encrypt/action" in refused.value.hint


@pytest.mark.parametrize("algorithm", ["A256GCM", "A256KW"])
def test_an_rsa_key_is_refused(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str, wrapped: WrappedKey, algorithm: str
) -> None:
    """Whoever has its public half could forge a wrapping."""
    azure.key(uri).kty = "RSA-HSM"
    key = service(algorithm=algorithm).master_key(uri)
    with pytest.raises(ConfigError) as refused:
        key.wrap(KEK, aad=CONTEXT)
    assert "RSA" in refused.value.hint
    assert "oct-HSM" in refused.value.hint
    failed(key, wrapped, UnwrapError)


def test_a_throttling_service_is_left_alone_as_long_as_it_asks(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
) -> None:
    proxy.faults = [says(429, "Throttled", Retry_After="1", times=1)]
    start = time.monotonic()
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert time.monotonic() - start >= 1
    proxy.requests.clear()
    proxy.faults = [says(429, "Throttled", Retry_After="3600")]
    start = time.monotonic()
    assert "throttling" in failed(key, wrapped, KmsUnavailableError).message
    assert time.monotonic() - start < 5
    assert len(proxy.requests) == 1


def test_an_answer_for_another_key_or_version_is_refused(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, uri: str
) -> None:
    kid = f"{uri.removeprefix('azure-kv:')}/{wrapped.version}"
    sixteen, twelve = "A" * 22, "A" * 16
    for other in (kid.replace("/one/", "/two/"), kid[:-32] + "0" * 32, kid.replace("https:", "http:"), ""):
        proxy.faults = [answers(kid=other, value=KEK_TEXT, iv=twelve, tag=sixteen)]
        failed(key, wrapped, UnwrapError)
    for other in (kid.replace("/one/", "/two/"), f"{kid}/x", kid[:-33], ""):
        proxy.faults = [answers(kid=other, value=KEK_TEXT, iv=twelve, tag=sixteen)]
        with pytest.raises(KmsError, match="another key"):
            key.wrap(KEK, aad=CONTEXT)


def test_what_is_no_kek_or_no_wrapping_is_refused(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, uri: str
) -> None:
    kid = f"{uri.removeprefix('azure-kv:')}/{wrapped.version}"
    proxy.faults = [answers(kid=kid, value="c2hvcnQ")]
    failed(key, wrapped, UnwrapError)
    with pytest.raises(KmsError, match="no wrapping"):
        key.wrap(KEK, aad=CONTEXT)


def test_a_wrapping_of_another_key_is_refused_without_asking(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, uri: str
) -> None:
    for foreign in (f"{uri}-other", "local:default", uri.replace("https", "http"), ""):
        failed(key, WrappedKey(foreign, wrapped.blob, wrapped.version, ""), UnwrapError)
    for version in ("", "../../secrets/x", wrapped.version.upper() + "x", wrapped.version + "?a=b"):
        failed(key, WrappedKey(uri, wrapped.blob, version, ""), UnwrapError)
    assert proxy.requests == []


def test_threads_that_meet_the_first_challenge_wrap_their_own_keys(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str
) -> None:
    """The SDK's client keeps the body of one request for the time of a challenge."""
    keys = [service().master_key(uri), service().master_key(uri)]
    keks = [Secret.random() for _ in range(8)]

    def round_trip(n: int) -> bool:
        key = keys[n % 2]
        return key.unwrap(key.wrap(keks[n], aad=CONTEXT), aad=CONTEXT) == keks[n]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(round_trip, range(8)))
    assert azure.asked.count("encrypt") == azure.asked.count("decrypt") == 8


# who asks


def test_one_token_serves_until_it_is_about_to_expire(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str
) -> None:
    key = service().master_key(uri)
    wrapped = key.wrap(KEK, aad=CONTEXT)
    for _ in range(3):
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert azure.logins == [WRITER[0]]


def test_a_token_is_renewed_before_it_expires(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str
) -> None:
    azure.token_seconds = 60
    key = service().master_key(uri)
    wrapped = key.wrap(KEK, aad=CONTEXT)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert len(azure.logins) >= 2


def test_a_token_that_is_not_accepted_any_more(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str
) -> None:
    key = service().master_key(uri)
    wrapped = key.wrap(KEK, aad=CONTEXT)
    azure.tokens.clear()
    error = failed(key, wrapped, KmsError)
    assert error.code == "credentials"
    assert "clock" in error.hint


def test_a_wrong_secret(
    azure: FakeAzure,
    service: Callable[..., AzureKms],
    uri: str,
    wrapped: WrappedKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    become(monkeypatch, WRITER[0], "wrong-secret")
    logins = len(azure.logins)
    error = failed(service().master_key(uri), wrapped, KmsError)
    assert error.code == "credentials"
    assert "AADSTS7000215" in error.message
    assert "wrong-secret" not in f"{error.message} {error.hint}"
    assert len(azure.logins) == logins + 1


@pytest.mark.parametrize("credential", ["environment", "workload-identity"])
def test_no_identity_is_a_config_error(
    service: Callable[..., AzureKms],
    uri: str,
    wrapped: WrappedKey,
    monkeypatch: pytest.MonkeyPatch,
    credential: str,
) -> None:
    for name in ("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name)
    error = failed(service(credential=credential).master_key(uri), wrapped, ConfigError)
    assert error.code == "config-missing"
    assert credential in error.message


@pytest.mark.parametrize("table", [{}, {"client_id": READER[0]}, {"authority": f"https://{ENTRA}"}])
def test_the_chain_takes_the_environment_first(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str, table: dict[str, str]
) -> None:
    key = service(credential="default", **table).master_key(uri)
    assert key.unwrap(key.wrap(KEK, aad=CONTEXT), aad=CONTEXT) == KEK
    assert azure.logins == [WRITER[0]]


def test_who_is_signed_in_at_the_command_line_is_asked_for_once(
    azure: FakeAzure,
    service: Callable[..., AzureKms],
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    azure.tokens["token-of-az"] = Token(WRITER[0], AUDIENCE, time.time() + 3600)
    said = {"accessToken": "token-of-az", "expires_on": int(time.time()) + 3600, "tokenType": "Bearer"}
    (tmp_path / "az").write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho '{json.dumps(said)}'\n")
    (tmp_path / "az").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    key = service(credential="cli").master_key(uri)
    assert key.unwrap(key.wrap(KEK, aad=CONTEXT), aad=CONTEXT) == KEK
    assert (tmp_path / "runs").read_text() == "run\n"
    assert azure.logins == []


def test_nobody_signed_in_at_the_command_line(
    service: Callable[..., AzureKms],
    uri: str,
    wrapped: WrappedKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "az").write_text("#!/bin/sh\necho \"Please run 'az login' to setup account.\" >&2\nexit 1\n")
    (tmp_path / "az").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    error = failed(service(credential="cli").master_key(uri), wrapped, ConfigError)
    assert error.code == "config-missing"
    assert "az login" in error.hint


def test_a_workload_identity_shows_the_file_it_was_given(
    azure: FakeAzure,
    service: Callable[..., AzureKms],
    uri: str,
    wrapped: WrappedKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AZURE_CLIENT_SECRET")
    (tmp_path / "token").write_text("assertion-of-the-cluster")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    azure.assertions[READER[0]] = "assertion-of-the-cluster"
    key = service(credential="workload-identity", client_id=READER[0]).master_key(uri)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert azure.logins[-1] == READER[0]


def test_entra_out_of_reach_is_an_outage(
    service: Callable[..., AzureKms], uri: str, wrapped: WrappedKey, lead: Lead
) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        lead(entra=taken.getsockname()[1])
        error = failed(service(deadline=1).master_key(uri), wrapped, KmsUnavailableError)
    assert ENTRA in error.message


def test_a_server_that_asks_for_another_services_token_gets_none(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str
) -> None:
    azure.audience = "https://vault.azure.net"
    with pytest.raises(KmsError, match="another service"):
        service().master_key(uri).wrap(KEK, aad=CONTEXT)
    assert azure.logins == []
    assert all(not had_token and not size for host, _, _, had_token, size in azure.requests if host != ENTRA)


def test_no_key_is_sent_before_the_service_knows_who_asks(
    azure: FakeAzure, service: Callable[..., AzureKms], uri: str
) -> None:
    service().master_key(uri).wrap(KEK, aad=CONTEXT)
    sent = [(had_token, size > 0) for host, _, _, had_token, size in azure.requests if host != ENTRA]
    assert sent == [(False, False), (True, True)]


# TLS


@pytest.mark.parametrize("flaw", ["untrusted CA", "self-signed", "expired", "wrong host"])
def test_a_certificate_of_entra_with_a_flaw_is_refused_at_once(
    listen: Listen,
    ca: CertificateAuthority,
    service: Callable[..., AzureKms],
    uri: str,
    wrapped: WrappedKey,
    lead: Lead,
    flaw: str,
    tmp_path: Path,
) -> None:
    certificate = {
        "untrusted CA": lambda: CertificateAuthority.create(tmp_path / "stranger").server(names=NAMES),
        "self-signed": ca.self_signed,
        "expired": lambda: ca.server(expired=True, names=NAMES),
        "wrong host": lambda: ca.server(wrong_host=True),
    }[flaw]()
    with listen(certificate) as proxy:
        lead(entra=proxy.port)
        error = failed(service().master_key(uri), wrapped, ConfigError)
        assert error.code == "untrusted-certificate"
        assert "tls.ca_file" in error.hint
        assert ENTRA in error.message
        assert proxy.requests == []


def test_without_the_sdk_the_error_is_the_pip_command(
    service: Callable[..., AzureKms], uri: str, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("azure.identity", "azure.keyvault.keys"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert (
                failed(service().master_key(uri), wrapped, MissingExtraError).hint
                == "pip install 'encpipe[azure]'"
            )
