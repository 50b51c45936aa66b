"""Vault denied, sealed, limited, slow, impersonated, its keys gone: the right error in time, no key in it."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Sequence
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
from servers.ca import CertificateAuthority
from servers.openbao import OpenBao, RaftServer

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
from encpipe.kms.vault import VaultKms
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

JSON = {"Content-Type": "application/json"}
DECRYPT = "/v1/transit/decrypt/"


@pytest.fixture(autouse=True)
def credentials(openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("VAULT_", "BAO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAULT_TOKEN", openbao.root_token)


@pytest.fixture
def listen(openbao: OpenBao) -> Listen:
    return before(openbao.address)


@pytest.fixture
def proxy(listen: Listen) -> Iterator[FaultProxy]:
    with listen() as running:
        yield running


@pytest.fixture
def reach(uri: str) -> Reach:
    def make(where: FaultProxy | Nobody, tls: TlsConfig | None = None, **table: Any) -> MasterKey:
        return service(where.url, tls, **table).master_key(uri)

    return make


@pytest.fixture(scope="module")
def uri(openbao: OpenBao) -> str:
    return openbao.create_key()


@pytest.fixture
def key(proxy: FaultProxy, uri: str) -> MasterKey:
    return service(proxy.url).master_key(uri)


@pytest.fixture
def wrapped(openbao: OpenBao, uri: str) -> WrappedKey:
    return service(openbao.address).master_key(uri).wrap(KEK, aad=CONTEXT)


def service(address: str, tls: TlsConfig | None = None, **table: Any) -> VaultKms:
    return VaultKms(KmsSettings({"address": address, **table}, tls=tls or TlsConfig()))


def of_a_key(method: str, path: str) -> bool:
    return path.startswith(("/v1/transit/decrypt/", "/v1/transit/encrypt/"))


def says(*errors: str, code: int = 400, times: int | None = None) -> Fault:
    body = json.dumps({"errors": errors}).encode()
    return Fault("status", code=code, body=body, headers=JSON, times=times, match=of_a_key)


def answers(body: Any, code: int = 200) -> Fault:
    return Fault("status", code=code, body=json.dumps(body).encode(), headers=JSON, match=of_a_key)


class TestFailures(KeyServiceFailures):
    extra = "vault"
    sdk_modules = ("hvac", "hvac.adapters")
    ca_variables = ("VAULT_CACERT", "BAO_CACERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    foreign_uris = ("vault:other", "vault:team/other")
    busy = says("rate limit quota exceeded", code=429)
    no_kek = answers({"data": {"plaintext": base64.b64encode(b"short").decode()}})
    repeats_key = tuple(says(f"bad plaintext {KEK_BASE64}", code=code) for code in (400, 403, 404, 429, 500))
    refusals = (
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
    )
    passing = (
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
    )

    def of_a_key(self, method: str, path: str) -> bool:
        return of_a_key(method, path)

    def of_process(self, key: Any) -> Any:
        return key._service._process.get()

    @pytest.fixture(autouse=True)
    def keep_token(self, openbao: OpenBao) -> None:
        self.token = openbao.root_token

    def credentials_in_use(self) -> Sequence[str]:
        return (self.token,)


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


def test_address_proxies_and_netrc_of_the_environment_do_not_count(
    key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("VAULT_ADDR", "BAO_ADDR", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert sum(of_a_key(*asked) for asked in proxy.requests) == 1
