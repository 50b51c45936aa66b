"""AWS KMS denied, absent, disabled, slow, throttled, impersonated: the right error, in time, no key in it."""

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
from servers.aws import Kms as Server
from servers.ca import CertificateAuthority, IssuedCertificate

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
from encpipe.kms.aws import AwsKms
from encpipe.kms.base import KmsSettings
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

CONTEXT = KeyContext("d" * 32, "footer", "e" * 32)
KEK = Secret(bytes(range(100, 132)))
KEK_BASE64 = base64.b64encode(KEK.reveal()).decode()
JSON = {"Content-Type": "application/x-amz-json-1.1"}


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def proxy(roto_kms: Server) -> Iterator[FaultProxy]:
    upstream = urlsplit(roto_kms.endpoint)
    assert upstream.hostname is not None
    assert upstream.port is not None
    with FaultProxy(upstream.hostname, upstream.port) as running:
        yield running


@pytest.fixture(scope="module")
def arn(roto_kms: Server) -> str:
    return roto_kms.create_key()


@pytest.fixture
def key(proxy: FaultProxy, arn: str) -> MasterKey:
    return service(proxy.url).master_key(f"aws-kms:{arn}")


@pytest.fixture(scope="module")
def wrapped(roto_kms: Server, arn: str) -> WrappedKey:
    client = roto_kms.client()
    answer = client.encrypt(KeyId=arn, Plaintext=KEK.reveal(), EncryptionContext=CONTEXT.pairs())
    client.close()
    return WrappedKey(f"aws-kms:{arn}", answer["CiphertextBlob"], "", "2026-01-01T00:00:00Z")


def service(endpoint: str, tls: TlsConfig | None = None, **table: Any) -> AwsKms:
    return AwsKms(KmsSettings({"endpoint_url": endpoint, **table}, tls=tls or TlsConfig()))


def says(word: str, message: str = "", *, code: int = 400, times: int | None = None) -> Fault:
    body = json.dumps({"__type": word, "message": message}).encode()
    return Fault("status", code=code, body=body, headers=JSON, times=times)


def answers(**fields: str) -> Fault:
    return Fault("status", code=200, body=json.dumps(fields).encode(), headers=JSON)


def failed(key: MasterKey, wrapped: WrappedKey, error: type[EncpipeError]) -> EncpipeError:
    """The error of an unwrap: exactly of this class, with a hint, and without the SDK's behind it."""
    with pytest.raises(error) as caught:
        key.unwrap(wrapped, aad=CONTEXT)
    assert type(caught.value) is error
    assert caught.value.hint
    assert caught.value.__cause__ is None
    behind = caught.value.__context__
    assert behind is None or (caught.value.__suppress_context__ and "boto" not in type(behind).__module__)
    return caught.value


@pytest.mark.parametrize(
    ("fault", "error", "code", "text"),
    [
        (says("AccessDeniedException", "User: u is not"), KeyAccessDeniedError, "key-denied", "kms:Decrypt"),
        (says("AnythingElse", code=403), KmsError, "kms", "proxy"),
        (says("AnythingElse", code=401), KmsError, "kms", "proxy"),
        (Fault("status", code=403, body=b"<html>blocked by proxy</html>"), KmsError, "kms", "proxy"),
        (says("ExpiredTokenException"), KmsError, "credentials", "expired"),
        (says("UnrecognizedClientException"), KmsError, "credentials", "credentials"),
        (says("InvalidSignatureException"), KmsError, "credentials", "clock"),
        (says("NotFoundException"), KeyNotFoundError, "key-not-found", "region"),
        (says("DisabledException"), KeyAccessDeniedError, "key-disabled", "enable-key"),
        (
            says("KMSInvalidStateException", "arn:x is pending deletion."),
            KeyAccessDeniedError,
            "key-disabled",
            "cancel-key-deletion",
        ),
        (
            says("KMSInvalidStateException", "arn:x is disabled."),
            KeyAccessDeniedError,
            "key-disabled",
            "enable-key",
        ),
        (says("InvalidCiphertextException"), UnwrapError, "unwrap", "changed"),
        (says("IncorrectKeyException"), UnwrapError, "unwrap", "changed"),
        (says("InvalidKeyUsageException"), ConfigError, "config", "ENCRYPT_DECRYPT"),
        (says("ValidationException"), KmsError, "kms", "ValidationException"),
        (says("\x1b[31m" + "x" * 5000), KmsError, "kms", "no error code"),
    ],
    ids=lambda value: value.body.decode()[11:38] if isinstance(value, Fault) else "",
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
    proxy.faults = [Fault(fault.kind, code=fault.code, body=fault.body, headers=fault.headers)]
    refusal = failed(key, wrapped, error)
    assert refusal.code == code
    assert text in f"{refusal.message} {refusal.hint}"
    assert len(refusal.message) < 1000
    assert refusal.message.isprintable()
    assert proxy.operations == ["Decrypt"]


def test_absent_key(roto_kms: Server, arn: str, wrapped: WrappedKey) -> None:
    absent = arn[:-12] + "0" * 12
    key = service(roto_kms.endpoint).master_key(f"aws-kms:{absent}")
    error = failed(key, WrappedKey(key.uri, wrapped.blob, "", ""), KeyNotFoundError)
    assert absent in error.message
    with pytest.raises(KeyNotFoundError):
        service(roto_kms.endpoint, region="us-east-1").master_key("aws-kms:alias/none").wrap(KEK, aad=CONTEXT)


def test_disabled_key(roto_kms: Server) -> None:
    key = service(roto_kms.endpoint).master_key(f"aws-kms:{roto_kms.create_key()}")
    wrapped = key.wrap(KEK, aad=CONTEXT)
    client = roto_kms.client()
    client.disable_key(KeyId=key.uri.removeprefix("aws-kms:"))
    assert failed(key, wrapped, KeyAccessDeniedError).code == "key-disabled"
    client.enable_key(KeyId=key.uri.removeprefix("aws-kms:"))
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    client.close()


@pytest.mark.parametrize(
    "fault",
    [
        says("ThrottlingException", times=2),
        says("LimitExceededException", times=2),
        says("KMSInternalException", code=500, times=2),
        says("KeyUnavailableException", code=500, times=2),
        says("DependencyTimeoutException", code=503, times=2),
        says("KMSInvalidStateException", "arn:x is unavailable: its key store is not connected", times=2),
        says("KMSInvalidStateException", times=2),
        Fault("status", code=503, body=b"<html>", times=2),
        Fault("status", code=429, times=2),
        Fault("reset", times=2),
        Fault("drop_answer", times=2),
        Fault("truncate", times=2),
        Fault("shorten", times=2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.body.decode()[11:30]}",
)
def test_passing_faults_are_tried_again(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.faults = [fault]
    fault.hits = 0
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert proxy.operations == ["Decrypt"] * 3


def test_throttling_that_lasts_is_an_outage_within_the_deadline(
    arn: str, wrapped: WrappedKey, proxy: FaultProxy
) -> None:
    key = service(proxy.url, deadline=1).master_key(f"aws-kms:{arn}")
    key.unwrap(wrapped, aad=CONTEXT)
    proxy.faults = [says("ThrottlingException")]
    start = time.monotonic()
    error = failed(key, wrapped, KmsUnavailableError)
    assert time.monotonic() - start < 3
    assert "throttling" in error.message
    assert len(proxy.operations) > 2


def test_a_disconnected_key_store_is_an_outage(arn: str, wrapped: WrappedKey, proxy: FaultProxy) -> None:
    """A denial would let `on_missing_key` go on without the columns."""
    key = service(proxy.url, deadline=0.5).master_key(f"aws-kms:{arn}")
    proxy.faults = [says("KMSInvalidStateException", "arn:x is unavailable: its key store is not connected")]
    error = failed(key, wrapped, KmsUnavailableError)
    assert error.code == "kms-unavailable"
    assert "key store" in f"{error.message} {error.hint}"


@pytest.mark.parametrize("fault", [Fault("stall"), Fault("delay", seconds=60)], ids=["stall", "delay"])
@pytest.mark.parametrize("read_timeout", [0.2, 60])
def test_a_slow_service_is_given_up_at_the_deadline(
    arn: str, wrapped: WrappedKey, proxy: FaultProxy, fault: Fault, read_timeout: float
) -> None:
    proxy.faults = [fault]
    key = service(proxy.url, deadline=1, read_timeout=read_timeout).master_key(f"aws-kms:{arn}")
    start = time.monotonic()
    failed(key, wrapped, KmsUnavailableError)
    assert time.monotonic() - start < 4


def test_no_server_is_an_outage(arn: str, wrapped: WrappedKey) -> None:
    with socket.socket() as taken:  # bound, not listening: nobody else can listen there meanwhile
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        key = service(endpoint, deadline=0.3).master_key(f"aws-kms:{arn}")
        assert endpoint in failed(key, wrapped, KmsUnavailableError).message


def test_redirects_are_not_followed(key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy) -> None:
    elsewhere = {"Location": f"{proxy.url}/elsewhere"}
    proxy.faults = [Fault("status", code=code, headers=elsewhere, times=1) for code in (301, 307, 308)]
    for _ in range(3):
        failed(key, wrapped, KmsError)
    assert proxy.requests == [("POST", "/")] * 3


def test_an_answer_for_another_key_is_refused(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, arn: str
) -> None:
    other = arn[:-12] + "0" * 12
    proxy.faults = [answers(KeyId=other, Plaintext=KEK_BASE64, CiphertextBlob=KEK_BASE64)]
    failed(key, wrapped, UnwrapError)
    with pytest.raises(KmsError, match="another key"):
        key.wrap(KEK, aad=CONTEXT)


def test_a_plaintext_that_is_no_kek_is_refused(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, arn: str
) -> None:
    proxy.faults = [answers(KeyId=arn, Plaintext=base64.b64encode(b"short").decode())]
    failed(key, wrapped, UnwrapError)


def test_a_wrapping_of_another_key_is_refused_without_asking(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, arn: str
) -> None:
    for foreign in (f"aws-kms:{arn[:-12]}{'0' * 12}", "local:default", "aws-kms:alias/x", ""):
        failed(key, WrappedKey(foreign, wrapped.blob, "", ""), UnwrapError)
    assert proxy.requests == []


def test_what_the_service_says_is_not_shown_when_it_could_be_the_key(
    key: MasterKey, proxy: FaultProxy
) -> None:
    for word in ("AccessDeniedException", "ValidationException", "Odd"):
        proxy.faults = [says(word, f"bad plaintext {KEK_BASE64}")]
        with pytest.raises(KmsError) as refused:
            key.wrap(KEK, aad=CONTEXT)
        assert KEK_BASE64 not in f"{refused.value.message} {refused.value.hint}"


def test_debug_logs_hold_no_key(key: MasterKey, proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.NOTSET)
    proxy.faults = [Fault("reset", times=1)]
    wrapped = key.wrap(KEK, aad=CONTEXT)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    proxy.faults = [says("ValidationException", KEK_BASE64)]
    failed(key, wrapped, KmsError)
    assert "botocore" in caplog.text
    for spelling in (KEK_BASE64, repr(KEK.reveal())[2:-1], KEK.reveal().hex()):
        assert spelling not in caplog.text
    logging.getLogger("botocore.endpoint").debug("others may log")
    assert "others may log" in caplog.text


def test_plain_http_beyond_loopback_is_refused_before_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("this must not touch the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    for endpoint in ("http://kms.example", "http://10.0.0.1:9000", "http://localhost.example"):
        with pytest.raises(ConfigError) as refused:
            service(endpoint)
        assert refused.value.code == "insecure-transport"


def tls_proxy(roto_kms: Server, certificate: IssuedCertificate, client_ca: Path | None = None) -> FaultProxy:
    upstream = urlsplit(roto_kms.endpoint)
    assert upstream.hostname is not None
    assert upstream.port is not None
    return FaultProxy(upstream.hostname, upstream.port, tls_listen=certificate.server_context(client_ca))


def test_tls_with_the_configured_ca_whatever_the_environment_says(
    roto_kms: Server,
    ca: CertificateAuthority,
    arn: str,
    wrapped: WrappedKey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = CertificateAuthority.create(tmp_path / "stranger")
    with tls_proxy(roto_kms, ca.server()) as proxy:
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(stranger.path))
        trusting = service(proxy.url, TlsConfig(ca_file=ca.path)).master_key(f"aws-kms:{arn}")
        assert trusting.unwrap(wrapped, aad=CONTEXT) == KEK
        for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(ca.path))
        asked = len(proxy.requests)
        doubting = service(proxy.url, TlsConfig(ca_file=stranger.path)).master_key(f"aws-kms:{arn}")
        assert failed(doubting, wrapped, ConfigError).code == "untrusted-certificate"
        assert len(proxy.requests) == asked


@pytest.mark.parametrize("flaw", ["untrusted CA", "self-signed", "expired", "wrong host"])
def test_a_certificate_with_a_flaw_is_refused_at_once(
    roto_kms: Server, ca: CertificateAuthority, arn: str, wrapped: WrappedKey, flaw: str
) -> None:
    certificate = {
        "untrusted CA": ca.server,
        "self-signed": ca.self_signed,
        "expired": lambda: ca.server(expired=True),
        "wrong host": lambda: ca.server(wrong_host=True),
    }[flaw]()
    tls = TlsConfig() if flaw == "untrusted CA" else TlsConfig(ca_file=ca.path)
    with tls_proxy(roto_kms, certificate) as proxy:
        error = failed(service(proxy.url, tls).master_key(f"aws-kms:{arn}"), wrapped, ConfigError)
        assert error.code == "untrusted-certificate"
        assert "tls.ca_file" in error.hint
        assert proxy.requests == []


def test_mutual_tls(roto_kms: Server, ca: CertificateAuthority, arn: str, wrapped: WrappedKey) -> None:
    own = ca.client()
    with tls_proxy(roto_kms, ca.server(), client_ca=ca.path) as proxy:
        known = service(proxy.url, TlsConfig(ca.path, own.cert, own.key)).master_key(f"aws-kms:{arn}")
        assert known.unwrap(wrapped, aad=CONTEXT) == KEK
        unknown = service(proxy.url, TlsConfig(ca.path), deadline=1).master_key(f"aws-kms:{arn}")
        failed(unknown, wrapped, KmsUnavailableError)


def test_a_missing_ca_file_is_a_config_error(arn: str, wrapped: WrappedKey, tmp_path: Path) -> None:
    tls = TlsConfig(ca_file=tmp_path / "missing.pem")
    key = service("https://127.0.0.1:9", tls).master_key(f"aws-kms:{arn}")
    assert "missing.pem" in failed(key, wrapped, ConfigError).message


def test_endpoints_and_proxies_of_the_environment_do_not_count(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert proxy.operations == ["Decrypt"]


def test_the_endpoint_of_the_environment_is_not_used_without_a_configured_one(
    arn: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", proxy.url)
    client = AwsKms(KmsSettings())._client("eu-central-1")
    assert client.meta.endpoint_url == "https://kms.eu-central-1.amazonaws.com"


def test_the_region_of_the_arn_comes_before_the_tables(roto_kms: Server, arn: str) -> None:
    kms = service(roto_kms.endpoint, region="eu-west-1")
    kms.master_key(f"aws-kms:{arn}").wrap(KEK, aad=CONTEXT)
    assert [client.meta.region_name for client in kms._clients.by_region.values()] == ["us-east-1"]


def test_no_credentials_profile_or_region_are_config_errors(
    roto_kms: Server, arn: str, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = service(roto_kms.endpoint).master_key(f"aws-kms:{arn.rpartition('/')[2]}")
    assert "region" in failed(key, wrapped, ConfigError).message
    key = service(roto_kms.endpoint, profile="nobody").master_key(f"aws-kms:{arn}")
    assert "nobody" in failed(key, wrapped, ConfigError).message
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    key = service(roto_kms.endpoint).master_key(f"aws-kms:{arn}")
    assert "credentials" in failed(key, wrapped, ConfigError).message


def test_without_boto3_the_error_is_the_pip_command(
    key: MasterKey, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert failed(key, wrapped, MissingExtraError).hint == "pip install 'encpipe[aws]'"


def test_a_forked_child_opens_connections_of_its_own(roto_kms: Server, arn: str, wrapped: WrappedKey) -> None:
    kms = service(roto_kms.endpoint)
    key = kms.master_key(f"aws-kms:{arn}")
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    before = set(map(id, kms._clients.by_region.values()))
    kms._clients.lock.acquire()  # as if another thread were connecting: the child must not wait for it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
        child = os.fork()
    if child == 0:
        opened = key.unwrap(wrapped, aad=CONTEXT) == KEK
        own = before.isdisjoint(map(id, kms._clients.by_region.values()))
        os._exit(0 if opened and own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    kms._clients.lock.release()
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
