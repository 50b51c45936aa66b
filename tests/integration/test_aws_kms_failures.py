"""AWS KMS denied, absent, disabled, slow, throttled, impersonated: the right error, in time, no key in it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keyservicefailures import (
    CONTEXT,
    KEK,
    KEK_BASE64,
    KeyServiceFailures,
    Listen,
    Nobody,
    Reach,
    before,
    failed,
)
from servers.aws import Kms as Server

from encpipe.config import TlsConfig
from encpipe.errors import (
    ConfigError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.keys import MasterKey, WrappedKey
from encpipe.kms.aws import AwsKms
from encpipe.kms.base import KmsSettings
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

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
def listen(roto_kms: Server) -> Listen:
    return before(roto_kms.endpoint)


@pytest.fixture
def proxy(listen: Listen) -> Iterator[FaultProxy]:
    with listen() as running:
        yield running


@pytest.fixture(scope="module")
def arn(roto_kms: Server) -> str:
    return roto_kms.create_key()


@pytest.fixture
def reach(arn: str) -> Reach:
    def make(where: FaultProxy | Nobody, tls: TlsConfig | None = None, **table: Any) -> MasterKey:
        return service(where.url, tls, **table).master_key(f"aws-kms:{arn}")

    return make


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


class TestFailures(KeyServiceFailures):
    extra = "aws"
    sdk_modules = ("boto3",)
    logs = "botocore"
    ca_variables = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    foreign_uris = (f"aws-kms:arn:aws:kms:us-east-1:123456789012:key/{'0' * 12}", "aws-kms:alias/x")
    busy = says("ThrottlingException")
    repeats_key = tuple(
        says(word, f"bad plaintext {KEK_BASE64}")
        for word in ("ValidationException", "AccessDeniedException", "Odd")
    )
    refusals = (
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
    )
    passing = (
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
    )


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


def test_a_disconnected_key_store_is_an_outage(arn: str, wrapped: WrappedKey, proxy: FaultProxy) -> None:
    """A denial would let `on_missing_key` go on without the columns."""
    key = service(proxy.url, deadline=0.5).master_key(f"aws-kms:{arn}")
    proxy.faults = [says("KMSInvalidStateException", "arn:x is unavailable: its key store is not connected")]
    error = failed(key, wrapped, KmsUnavailableError)
    assert error.code == "kms-unavailable"
    assert "key store" in f"{error.message} {error.hint}"


def test_an_answer_for_another_key_is_refused(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, arn: str
) -> None:
    other = arn[:-12] + "0" * 12
    proxy.faults = [answers(KeyId=other, Plaintext=KEK_BASE64, CiphertextBlob=KEK_BASE64)]
    failed(key, wrapped, UnwrapError)
    with pytest.raises(KmsError, match="another key"):
        key.wrap(KEK, aad=CONTEXT)


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
    client = AwsKms(KmsSettings())._connect("eu-central-1")
    assert client.meta.endpoint_url == "https://kms.eu-central-1.amazonaws.com"


def test_the_region_of_the_arn_comes_before_the_tables(roto_kms: Server, arn: str) -> None:
    kms = service(roto_kms.endpoint, region="eu-west-1")
    kms.master_key(f"aws-kms:{arn}").wrap(KEK, aad=CONTEXT)
    assert [client.meta.region_name for client in kms._clients._process.get().clients.values()] == [
        "us-east-1"
    ]


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


def test_a_plaintext_that_is_no_kek_is_refused(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, arn: str
) -> None:
    proxy.faults = [answers(KeyId=arn, Plaintext=base64.b64encode(b"short").decode())]
    failed(key, wrapped, UnwrapError)
