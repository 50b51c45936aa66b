"""Google Cloud KMS denied, absent, disabled, slow, throttled, impersonated: the right error, in time, no key.

The keys are on a fake of its wire protocol (servers/gcpkms.py); what goes wrong on the way is the proxy's.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from google.auth import exceptions as auth
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
from requests.adapters import HTTPAdapter
from servers.gcpkms import RING, Gcp, GcpServer

from encpipe.config import TlsConfig
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.keys import MasterKey, WrappedKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.gcp import GcpKms
from encpipe.kms.sdklogs import without_bodies
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

JSON = {"Content-Type": "application/json; charset=UTF-8"}
USE = "cloudkms.cryptoKeyVersions.useTo"


@pytest.fixture(autouse=True)
def no_credentials_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "GCLOUD_", "CLOUDSDK_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def listen(gcp_kms: Gcp) -> Listen:
    return before(gcp_kms.endpoint)


@pytest.fixture
def proxy(listen: Listen) -> Iterator[FaultProxy]:
    with listen() as running:
        yield running


@pytest.fixture
def reach(gcp_kms: Gcp, name: str) -> Reach:
    def make(where: FaultProxy | Nobody, tls: TlsConfig | None = None, **table: Any) -> MasterKey:
        return service(gcp_kms, where.url, tls, **table).master_key(f"gcp-kms:{name}")

    return make


@pytest.fixture(scope="module")
def name(gcp_kms: Gcp) -> str:
    return gcp_kms.create_key()


@pytest.fixture
def kms(gcp_kms: Gcp, proxy: FaultProxy) -> GcpKms:
    return service(gcp_kms, proxy.url)


@pytest.fixture
def key(kms: GcpKms, name: str) -> MasterKey:
    return kms.master_key(f"gcp-kms:{name}")


@pytest.fixture(scope="module")
def wrapped(gcp_kms: Gcp, name: str) -> WrappedKey:
    return service(gcp_kms).master_key(f"gcp-kms:{name}").wrap(KEK, aad=CONTEXT)


def service(
    server: Gcp,
    endpoint: str | None = None,
    tls: TlsConfig | None = None,
    account: str = "writer",
    **table: Any,
) -> GcpKms:
    settings = {
        "endpoint_url": endpoint or server.endpoint,
        "service_account_file": server.account(account),
        **table,
    }
    return GcpKms(KmsSettings(settings, tls=tls or TlsConfig()))


def says(
    status: str, message: str = "", *details: dict[str, Any], code: int = 400, times: int | None = None
) -> Fault:
    body = {"error": {"code": code, "message": message, "status": status, "details": details}}
    return Fault("status", code=code, body=json.dumps(body).encode(), headers=JSON, times=times)


def because(reason: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}


def blocked(state: str) -> dict[str, Any]:
    violations = [{"type": f"KEY_{state}", "subject": "x"}]
    return {"@type": "type.googleapis.com/google.rpc.PreconditionFailure", "violations": violations}


def answers(**fields: Any) -> Fault:
    return Fault("status", code=200, body=json.dumps(fields).encode(), headers=JSON)


def unwrapped(plaintext: bytes, checksum: int | None = None) -> Fault:
    checksum = google_crc32c.value(plaintext) if checksum is None else checksum
    return answers(plaintext=base64.b64encode(plaintext).decode(), plaintextCrc32c=str(checksum))


class TestFailures(KeyServiceFailures):
    extra = "gcp"
    sdk_modules = ("google.cloud.kms_v1",)
    foreign_uris = (f"gcp-kms:{RING}/cryptoKeys/other", f"gcp-kms:{RING}/cryptoKeys/k/cryptoKeyVersions/1")
    busy = says("RESOURCE_EXHAUSTED", code=429)
    no_kek = unwrapped(b"short")
    repeats_key = tuple(
        says(status, f"bad plaintext {KEK_BASE64}")
        for status in ("PERMISSION_DENIED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE")
    )
    refusals = (
        (
            says("PERMISSION_DENIED", "Permission 'cloudkms.x' denied", code=403),
            KeyAccessDeniedError,
            "key-denied",
            USE,
        ),
        (
            says("PERMISSION_DENIED", "no", because("IAM_PERMISSION_DENIED"), code=403),
            KeyAccessDeniedError,
            "key-denied",
            USE,
        ),
        (
            says("PERMISSION_DENIED", "API off", because("SERVICE_DISABLED"), code=403),
            KmsError,
            "kms",
            "enabled",
        ),
        (
            says("PERMISSION_DENIED", "unpaid", because("BILLING_DISABLED"), code=403),
            KmsError,
            "kms",
            "billing",
        ),
        (
            says("PERMISSION_DENIED", "VPC", because("SECURITY_POLICY_VIOLATED"), code=403),
            KmsError,
            "kms",
            "perimeter",
        ),
        (says("PERMISSION_DENIED", "?", code=403), KmsError, "kms", "no reason"),
        (
            says("PERMISSION_DENIED", "", because("ACCESS_TOKEN_SCOPE_INSUFFICIENT"), code=403),
            KmsError,
            "credentials",
            "scope",
        ),
        (says("NOT_FOUND", code=404), KeyNotFoundError, "key-not-found", "location"),
        (Fault("status", code=404, body=b"<html>not here</html>"), KmsError, "kms", "endpoint_url"),
        (Fault("status", code=403, body=b"<html>blocked by proxy</html>"), KmsError, "kms", "proxy"),
        (Fault("status", code=403, body=b'{"error": {}}', headers=JSON), KmsError, "kms", "proxy"),
        (
            says("FAILED_PRECONDITION", "", blocked("DISABLED")),
            KeyAccessDeniedError,
            "key-disabled",
            "enable",
        ),
        (
            says("FAILED_PRECONDITION", "is not enabled, current state is: DISABLED."),
            KeyAccessDeniedError,
            "key-disabled",
            "enable",
        ),
        (
            says("FAILED_PRECONDITION", "", blocked("DESTROY_SCHEDULED")),
            KeyAccessDeniedError,
            "key-disabled",
            "restore",
        ),
        (
            says("FAILED_PRECONDITION", "", blocked("DESTROYED")),
            KeyNotFoundError,
            "key-not-found",
            "destroyed",
        ),
        (says("FAILED_PRECONDITION", "the API is off"), KmsError, "kms", "enabled"),
        (
            says("INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid."),
            UnwrapError,
            "unwrap",
            "changed",
        ),
        (says("INVALID_ARGUMENT", "The purpose of CryptoKey x"), ConfigError, "config", "ENCRYPT_DECRYPT"),
        (says("OUT_OF_RANGE"), KmsError, "kms", "OUT_OF_RANGE"),
        (says("\x1b[31m" + "x" * 5000), KmsError, "kms", "HTTP 400"),
        (says("OUT_OF_RANGE", "\x1b[31m" + "x" * 5000), KmsError, "kms", "xxx"),
    )
    passing = (
        says("RESOURCE_EXHAUSTED", "Quota exceeded for quota metric", code=429, times=2),
        says("UNAVAILABLE", code=503, times=2),
        says("INTERNAL", code=500, times=2),
        says("DEADLINE_EXCEEDED", code=504, times=2),
        says("FAILED_PRECONDITION", "", blocked("PENDING_GENERATION"), times=2),
        says(
            "INVALID_ARGUMENT", "The checksum in field x_crc32c did not match the data in field x.", times=2
        ),
        Fault("status", code=502, body=b"<html>", times=2),
        Fault("status", code=429, times=2),
        Fault("reset", times=2),
        Fault("drop_answer", times=2),
        Fault("truncate", times=2),
        Fault("shorten", times=2),
    )


def test_who_may_only_decrypt_opens_and_does_not_wrap(gcp_kms: Gcp) -> None:
    name = gcp_kms.create_key(grant={"writer": "cryptoKeyEncrypter", "analyst": "cryptoKeyDecrypter"})
    writer = service(gcp_kms).master_key(f"gcp-kms:{name}")
    analyst = service(gcp_kms, account="analyst").master_key(f"gcp-kms:{name}")
    wrapped = writer.wrap(KEK, aad=CONTEXT)
    assert analyst.unwrap(wrapped, aad=CONTEXT) == KEK
    assert f"{USE}Decrypt" in failed(writer, wrapped, KeyAccessDeniedError).message
    with pytest.raises(KeyAccessDeniedError, match=f"{USE}Encrypt"):
        analyst.wrap(KEK, aad=CONTEXT)


def test_absent_key(gcp_kms: Gcp, wrapped: WrappedKey) -> None:
    """Whoever may do nothing with it is told that it may not exist; the owner, that it does not."""
    uri = f"gcp-kms:{RING}/cryptoKeys/absent"
    absent = WrappedKey(uri, wrapped.blob, "1", "")
    key = service(gcp_kms, account="owner").master_key(uri)
    assert uri in failed(key, absent, KeyNotFoundError).message
    with pytest.raises(KeyNotFoundError):
        key.wrap(KEK, aad=CONTEXT)
    stranger = service(gcp_kms).master_key(uri)
    assert "does not exist" in failed(stranger, absent, KeyAccessDeniedError).hint


def test_disabled_and_destroyed_versions(gcp_kms: Gcp) -> None:
    name = gcp_kms.create_key()
    version = f"{name}/cryptoKeyVersions/1"
    key = service(gcp_kms).master_key(f"gcp-kms:{name}")
    wrapped = key.wrap(KEK, aad=CONTEXT)

    def enable(client: Any, state: str) -> None:
        request = {"crypto_key_version": {"name": version, "state": state}, "update_mask": "state"}
        client.update_crypto_key_version(request=request)

    with gcp_kms.client() as client:
        enable(client, "DISABLED")
        assert failed(key, wrapped, KeyAccessDeniedError).code == "key-disabled"
        with pytest.raises(KeyAccessDeniedError, match="disabled"):
            key.wrap(KEK, aad=CONTEXT)
        enable(client, "ENABLED")
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK
        client.destroy_crypto_key_version(request={"name": version})
        assert "restore" in failed(key, wrapped, KeyAccessDeniedError).hint
        client.restore_crypto_key_version(request={"name": version})
        enable(client, "ENABLED")
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_destroyed_version_and_the_next(gcp_kms: Gcp) -> None:
    name = gcp_kms.create_key(destroy_scheduled_duration={"seconds": 0})
    key = service(gcp_kms).master_key(f"gcp-kms:{name}")
    wrapped = key.wrap(KEK, aad=CONTEXT)
    with gcp_kms.client() as client:
        client.destroy_crypto_key_version(request={"name": f"{name}/cryptoKeyVersions/1"})
        assert "destroyed" in failed(key, wrapped, KeyNotFoundError).message
        client.create_crypto_key_version(request={"parent": name, "crypto_key_version": {}})
        client.update_crypto_key_primary_version(request={"name": name, "crypto_key_version_id": "2"})
    assert key.unwrap(key.wrap(KEK, aad=CONTEXT), aad=CONTEXT) == KEK
    failed(key, wrapped, KeyNotFoundError)


@pytest.mark.parametrize("body", [b'{"error": "no"}', b'{"error": {"status": "NOT_FOUND", "details": 3}}'])
@pytest.mark.parametrize("code", [200, 404])
def test_an_answer_that_cannot_be_read_is_an_outage(
    gcp_kms: Gcp, name: str, wrapped: WrappedKey, proxy: FaultProxy, code: int, body: bytes
) -> None:
    """And no denial, which would let `on_missing_key` go on without the columns."""
    key = service(gcp_kms, proxy.url, deadline=0.5).master_key(f"gcp-kms:{name}")
    proxy.faults = [Fault("status", code=code, body=body, headers=JSON)]
    failed(key, wrapped, KmsUnavailableError)


def test_the_timeouts_of_an_attempt_are_the_tables(
    gcp_kms: Gcp, name: str, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, seen = HTTPAdapter.send, []

    def noted(adapter: HTTPAdapter, request: Any, **options: Any) -> Any:
        seen.append(options["timeout"])
        return send(adapter, request, **options)

    monkeypatch.setattr(HTTPAdapter, "send", noted)
    key = service(gcp_kms, connect_timeout=3.5, read_timeout=7).master_key(f"gcp-kms:{name}")
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert seen == [(3.5, 7)]


def test_damage_on_the_way_is_noticed_both_ways(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
) -> None:
    """Where it passes the next try is right; where it stays it is an outage, and never another key."""
    proxy.faults = [unwrapped(bytes(32), checksum=1)]
    proxy.faults[0].times = 2
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert len(proxy.requests) == 3
    proxy.faults = [answers(plaintext=KEK_BASE64)]
    proxy.faults[0].times = 1
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


@pytest.mark.parametrize(
    "missing", ["verifiedPlaintextCrc32c", "verifiedAdditionalAuthenticatedDataCrc32c", "ciphertextCrc32c"]
)
def test_a_wrapping_without_its_checksums_is_not_taken(
    gcp_kms: Gcp, name: str, proxy: FaultProxy, missing: str
) -> None:
    key = service(gcp_kms, proxy.url, deadline=2).master_key(f"gcp-kms:{name}")
    blob = b"not under our key"
    fields: dict[str, Any] = {
        "name": f"{name}/cryptoKeyVersions/1",
        "ciphertext": base64.b64encode(blob).decode(),
        "ciphertextCrc32c": str(google_crc32c.value(blob)),
        "verifiedPlaintextCrc32c": True,
        "verifiedAdditionalAuthenticatedDataCrc32c": True,
    }
    proxy.faults = [answers(**fields)]
    assert key.wrap(KEK, aad=CONTEXT).blob == blob
    del fields[missing]
    proxy.faults = [answers(**fields)]
    with pytest.raises(KmsUnavailableError, match="CRC32C"):
        key.wrap(KEK, aad=CONTEXT)


@pytest.mark.parametrize("position", range(40, 200, 8))
def test_a_flipped_bit_in_an_answer_never_gives_another_key(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, position: int
) -> None:
    proxy.faults = [Fault("flip_byte", at=position, times=1)]
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_requests_carry_checksums_that_the_service_compares(
    monkeypatch: pytest.MonkeyPatch, gcp_kms: Gcp, name: str, wrapped: WrappedKey
) -> None:
    key = service(gcp_kms, deadline=0.5).master_key(f"gcp-kms:{name}")
    monkeypatch.setattr(google_crc32c, "value", lambda data: 7)
    assert "CRC32C" in failed(key, wrapped, KmsUnavailableError).message
    with pytest.raises(KmsUnavailableError, match="CRC32C"):
        key.wrap(KEK, aad=CONTEXT)


def test_an_answer_for_another_key_is_refused(key: MasterKey, proxy: FaultProxy, name: str) -> None:
    blob = {"ciphertext": KEK_BASE64, "ciphertextCrc32c": str(google_crc32c.value(KEK.reveal()))}
    verified = {"verifiedPlaintextCrc32c": True, "verifiedAdditionalAuthenticatedDataCrc32c": True}
    for other in (name, f"{name}x/cryptoKeyVersions/1", f"{name}/cryptoKeyVersions/1/x", ""):
        proxy.faults = [answers(name=other, **blob, **verified)]
        with pytest.raises(KmsError, match="another key"):
            key.wrap(KEK, aad=CONTEXT)


def test_debug_logs_hold_no_key_and_no_token(
    key: MasterKey, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("google"), "propagate", True)  # the SDK may have set it aside
    caplog.set_level(logging.NOTSET)
    for noisy in ("google", "google.auth", "google.cloud", "google.cloud.kms_v1"):
        caplog.set_level(logging.DEBUG, logger=noisy)
    proxy.faults = [Fault("reset", times=1)]
    wrapped = key.wrap(KEK, aad=CONTEXT)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    proxy.faults = [says("INVALID_ARGUMENT", KEK_BASE64)]
    failed(key, wrapped, UnwrapError)
    assert "urllib3" in caplog.text
    logged = caplog.text + repr([vars(record) for record in caplog.records])
    for spelling in (KEK_BASE64, repr(KEK.reveal())[2:-1], KEK.reveal().hex(), "Bearer"):
        assert spelling not in logged
    http = logging.getLogger("google.auth.transport.requests")  # logs bodies that it is given as bytes
    with without_bodies():
        http.debug("a body")
    http.debug("others may log")
    assert "a body" not in caplog.text
    assert "others may log" in caplog.text


def test_proxies_and_logins_of_the_environment_do_not_count(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert len(proxy.requests) == 1


def test_a_proxy_of_the_environment_only_ever_sees_tls(
    gcp_kms: Gcp, name: str, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as thread:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listening.getsockname()[1]}")
        seen = thread.submit(_tunnelled, listening)
        key = service(gcp_kms, "https://kms.example", deadline=5).master_key(f"gcp-kms:{name}")
        assert failed(key, wrapped, KmsUnavailableError).message
        asked, then = seen.result(timeout=30)
    assert asked.startswith(b"CONNECT kms.example:443 ")
    assert b"authorization" not in asked.lower()
    assert then[:2] == b"\x16\x03"  # the first bytes of a TLS handshake


def _tunnelled(listening: socket.socket) -> tuple[bytes, bytes]:
    """What one client asks a proxy for, and what it sends through. The others find nobody."""
    client, _ = listening.accept()
    with client:
        asked = client.recv(4096)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        then = client.recv(4096)
    listening.close()
    return asked, then


@pytest.mark.parametrize(
    ("raised", "error", "code"),
    [
        (auth.TransportError("metadata is away"), KmsUnavailableError, "kms-unavailable"),
        (auth.RefreshError("busy", retryable=True), KmsUnavailableError, "kms-unavailable"),
        (auth.RefreshError("invalid_grant: secret"), KmsError, "credentials"),
        (RuntimeError("a bug: secret"), KmsError, "kms"),
    ],
)
def test_where_no_token_is_to_be_had_the_key_is_not_denied(
    gcp_kms: Gcp,
    name: str,
    wrapped: WrappedKey,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    error: type[EncpipeError],
    code: str,
) -> None:
    def refresh(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("google.oauth2.service_account.Credentials.refresh", refresh)
    monkeypatch.setattr("google.auth.jwt.Credentials.refresh", refresh)
    refusal = failed(service(gcp_kms, deadline=0.5).master_key(f"gcp-kms:{name}"), wrapped, error)
    assert refusal.code == code
    assert "secret" not in f"{refusal.message} {refusal.hint}"


def test_refused_credentials_are_renewed_once_more_and_then_told(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
) -> None:
    """A token may have expired in between: the SDK makes another. That is no denial of the key."""
    proxy.faults = [says("UNAUTHENTICATED", code=401, times=1)]
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert len(proxy.requests) == 2
    proxy.faults = [says("UNAUTHENTICATED", code=401)]
    error = failed(key, wrapped, KmsError)
    assert error.code == "credentials"
    assert "clock" in error.hint
    assert len(proxy.requests) <= 5


def test_tokens_are_renewed_before_they_expire(kms: GcpKms, key: MasterKey, wrapped: WrappedKey) -> None:
    """A job of a week outlives its first token, which is good for an hour."""
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    client = kms._clients._process.get().clients[None]
    credentials: Any = client._service.transport._credentials
    jwt = credentials._jwt_credentials or credentials
    for held in {id(c): c for c in (credentials, jwt)}.values():
        held.token, held.expiry = b"spent", held.expiry and held.expiry.replace(year=2020)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert b"spent" not in (credentials.token, jwt.token)


def test_a_clock_that_is_off_is_a_matter_of_credentials(tmp_path: Path) -> None:
    with GcpServer(clock_offset=7200, parent=tmp_path) as late:
        uri = f"gcp-kms:{RING}/cryptoKeys/k"
        key = service(late.address).master_key(uri)
        error = failed(key, WrappedKey(uri, b"x", "1", ""), KmsError)
        assert error.code == "credentials"
        assert "clock" in error.hint


def test_application_default_credentials(
    gcp_kms: Gcp, name: str, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> MasterKey:
        kms = GcpKms(KmsSettings({"endpoint_url": gcp_kms.endpoint}))
        return kms.master_key(f"gcp-kms:{name}")

    error = failed(key(), wrapped, ConfigError)
    assert error.code == "config-missing"
    assert "GOOGLE_APPLICATION_CREDENTIALS" in error.hint
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", gcp_kms.account("writer"))
    assert key().unwrap(wrapped, aad=CONTEXT) == KEK


def test_a_service_account_file_has_to_be_private_and_whole(
    gcp_kms: Gcp, name: str, wrapped: WrappedKey, tmp_path: Path
) -> None:
    path = tmp_path / "account.json"
    key = service(gcp_kms, service_account_file=str(path)).master_key(f"gcp-kms:{name}")
    assert failed(key, wrapped, ConfigError).code == "config-missing"
    path.touch(mode=0o600)
    secret = json.loads(Path(gcp_kms.account("writer")).read_bytes())["private_key"].splitlines()[1]
    for content in ("", "[]", "{}", f'{{"private_key": "{secret}", "client_email": "a", "token_uri": "b"}}'):
        path.write_text(content)
        error = failed(key, wrapped, ConfigError)
        assert str(path) in error.message
        assert secret not in f"{error.message} {error.hint}"
    path.write_bytes(Path(gcp_kms.account("writer")).read_bytes())
    path.chmod(0o640)
    assert failed(key, wrapped, ConfigError).code == "keyring-permissions"
    path.chmod(0o600)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
