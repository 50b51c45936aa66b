"""What goes wrong between us and any key service that is reached over a network: one suite for all of them.

A module subclasses `KeyServiceFailures` with faults as the protocol of its service words them, adds what only
that service can do wrong, and has these fixtures: `listen` and `reach`, a running `proxy` of `listen()`, a
`key` of `reach(proxy)`, and `wrapped`, which is `KEK` under `CONTEXT` by that key.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from servers.ca import CertificateAuthority, IssuedCertificate
from servers.process import HOST

from encpipe.config import Config, TlsConfig, TrustConfig
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KmsError,
    KmsUnavailableError,
    MissingExtraError,
    UnwrapError,
)
from encpipe.keyring import DatasetKeys
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms import MasterKeys, circuit
from encpipe.manifest import KekRecord
from encpipe.testing.faultproxy import Fault, FaultProxy

CONTEXT = KeyContext("d" * 32, "footer", "e" * 32)
KEK = Secret(bytes(range(100, 132)))
KEK_BASE64 = base64.b64encode(KEK.reveal()).decode()
KEK_SPELLINGS = (KEK_BASE64.rstrip("="), repr(KEK.reveal())[2:-1], KEK.reveal().hex())
SDKS = ("boto", "azure", "google", "requests", "urllib3", "hvac")

Refusal = tuple[Fault, type[EncpipeError], str, str]
"""A fault, and the error that it has to become: its class, its code, and a word of message or hint."""
Reach = Callable[..., MasterKey]
"""`reach(where, tls=TlsConfig(), **table)`: a key of the service that is believed to listen there."""
Listen = Callable[..., FaultProxy]
"""`listen(certificate=None, client_ca=None)`: a proxy before the service, with TLS by the certificate."""


class Nobody:
    """A place where no server listens. `url` is https where `tls`."""

    def __init__(self, port: int, host: str = HOST, *, tls: bool = False) -> None:
        self.port, self.url = port, f"{'https' if tls else 'http'}://{host}:{port}"


def failed(key: MasterKey, wrapped: WrappedKey, error: type[EncpipeError]) -> EncpipeError:
    """The error of an unwrap: exactly of this class, with a hint, and without the SDK's behind it."""
    with pytest.raises(error) as caught:
        key.unwrap(wrapped, aad=CONTEXT)
    assert type(caught.value) is error
    assert caught.value.hint
    assert caught.value.__cause__ is None
    behind = caught.value.__context__
    assert behind is None or (
        caught.value.__suppress_context__ and not type(behind).__module__.startswith(SDKS)
    )
    return caught.value


def before(address: str) -> Listen:
    """What makes a proxy before the service at this plain address."""
    upstream = urlsplit(address)
    assert upstream.hostname is not None
    assert upstream.port is not None
    host, port = upstream.hostname, upstream.port

    def make(certificate: IssuedCertificate | None = None, client_ca: Path | None = None) -> FaultProxy:
        return FaultProxy(host, port, tls_listen=certificate and certificate.server_context(client_ca))

    return make


class KeyServiceFailures:
    """`names` are the host names in a server's certificate, where they are not those of loopback."""

    refusals: ClassVar[Sequence[Refusal]]
    passing: ClassVar[Sequence[Fault]]
    """Each passes by itself, after two requests that met it (`times`)."""
    busy: ClassVar[Fault]
    no_kek: ClassVar[Fault | None] = None
    """An answer to an unwrap that is no KEK; None where its making takes more than a class knows."""
    repeats_key: ClassVar[Sequence[Fault]]
    foreign_uris: ClassVar[Sequence[str]]
    ca_variables: ClassVar[Sequence[str]] = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    sdk_modules: ClassVar[Sequence[str]]
    extra: ClassVar[str]
    logs: ClassVar[str] = "urllib3"
    takes_endpoint: ClassVar[bool] = True
    names: ClassVar[Sequence[str]] = ()

    def of_a_key(self, method: str, path: str) -> bool:  # for services with other requests
        """Whether a request asks for something of a key."""
        return True

    def asked(self, proxy: FaultProxy) -> int:
        """How often a key was asked for."""
        return sum(self.of_a_key(method, path) for method, path in proxy.requests)

    def fault(self, kind: Any, **more: Any) -> Fault:
        return Fault(kind, match=self.of_a_key, **more)

    def of_process(self, key: MasterKey) -> Any:
        """What this process keeps for the service of a key: `lock`, and its connections."""
        return key._service._clients._process.get()  # type: ignore[attr-defined]  # ours, not the protocol's

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        kind: Any = type(self)
        if "refusal" in metafunc.fixturenames:
            ids = [f"{fault.code} {fault.body.decode()[:60]}" for fault, *_ in kind.refusals]
            metafunc.parametrize("refusal", kind.refusals, ids=ids)
        if "passing_fault" in metafunc.fixturenames:
            ids = [f"{fault.kind} {fault.code} {fault.body.decode()[:40]}" for fault in kind.passing]
            metafunc.parametrize("passing_fault", kind.passing, ids=ids)

    def test_refusals_are_told_apart_and_not_tried_again(
        self, key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, refusal: Refusal
    ) -> None:
        fault, error, code, text = refusal
        proxy.faults = [copy(fault)]
        refused = failed(key, wrapped, error)
        assert refused.code == code
        assert text in f"{refused.message} {refused.hint}"
        assert len(refused.message) < 1000
        assert refused.message.isprintable()
        assert self.asked(proxy) == 1

    def test_passing_faults_are_tried_again(
        self, key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy, passing_fault: Fault
    ) -> None:
        proxy.faults = [copy(passing_fault)]
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK
        assert self.asked(proxy) == 3

    def test_throttling_that_lasts_is_an_outage_within_the_deadline(
        self, reach: Reach, proxy: FaultProxy, wrapped: WrappedKey
    ) -> None:
        key = reach(proxy, deadline=1)
        key.unwrap(wrapped, aad=CONTEXT)
        proxy.faults = [copy(self.busy)]
        start = time.monotonic()
        error = failed(key, wrapped, KmsUnavailableError)
        assert time.monotonic() - start < 3
        assert "throttling" in error.message or "limits the rate" in error.message
        assert self.asked(proxy) > 2

    @pytest.mark.parametrize("kind", ["stall", "delay"])
    @pytest.mark.parametrize("read_timeout", [0.2, 60])
    def test_a_slow_service_is_given_up_at_the_deadline(
        self, reach: Reach, proxy: FaultProxy, wrapped: WrappedKey, kind: Any, read_timeout: float
    ) -> None:
        proxy.faults = [self.fault(kind, seconds=60)]
        key = reach(proxy, deadline=1, read_timeout=read_timeout)
        start = time.monotonic()
        failed(key, wrapped, KmsUnavailableError)
        assert time.monotonic() - start < 4

    def test_a_service_that_stays_out_is_left_alone(
        self, reach: Reach, proxy: FaultProxy, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever key, and whichever configuration of this process."""
        proxy.faults = [copy(self.busy)]
        for _ in range(circuit.OUTAGES):
            failed(reach(proxy, deadline=0.3), wrapped, KmsUnavailableError)
        before, start = self.asked(proxy), time.monotonic()
        error = failed(reach(proxy), wrapped, KmsUnavailableError)
        assert time.monotonic() - start < 1
        assert "is not asked" in error.message
        assert self.asked(proxy) == before
        proxy.faults = []
        monkeypatch.setattr(circuit.CIRCUITS.get(), "known", {})  # as after the pause
        assert reach(proxy).unwrap(wrapped, aad=CONTEXT) == KEK

    def test_many_wrappings_by_a_service_that_hangs_cost_one_deadline(
        self, reach: Reach, proxy: FaultProxy, wrapped: WrappedKey
    ) -> None:
        key: Any = reach(proxy, deadline=1, read_timeout=60)
        proxy.faults = [self.fault("stall")]
        config = Config(trust=TrustConfig((wrapped.master_key,)))
        keys = DatasetKeys(
            CONTEXT.dataset_id,
            [KekRecord(CONTEXT.kek_id, CONTEXT.key_name, "", b"", "active")],
            {CONTEXT.kek_id: [wrapped] * 64},
            MasterKeys(config, extra={key.uri.partition(":")[0]: key._service}),
            lambda _, kek: None,
        )
        with pytest.raises(KmsUnavailableError):
            keys.kek(CONTEXT.kek_id)
        assert self.asked(proxy) == 1
        assert keys.refusals == 64

    def test_no_server_is_an_outage(self, reach: Reach, wrapped: WrappedKey) -> None:
        with socket.socket() as taken:  # bound, not listening: nobody else can listen there meanwhile
            taken.bind((HOST, 0))
            failed(reach(Nobody(taken.getsockname()[1]), deadline=0.5), wrapped, KmsUnavailableError)

    def test_redirects_are_not_followed(self, key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy) -> None:
        headers = {"Location": f"{proxy.url}/elsewhere"}
        proxy.faults = [
            self.fault("status", code=code, headers=headers, times=1) for code in (301, 302, 307, 308)
        ]
        for _ in range(4):
            failed(key, wrapped, KmsError)
        assert not any("elsewhere" in path for _, path in proxy.requests)

    def test_a_plaintext_that_is_no_kek_is_refused(
        self, key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
    ) -> None:
        if self.no_kek is None:
            pytest.skip("tested where the answer can be made")
        proxy.faults = [copy(self.no_kek)]
        failed(key, wrapped, UnwrapError)

    def test_a_wrapping_of_another_key_is_refused_without_asking(
        self, key: MasterKey, wrapped: WrappedKey, proxy: FaultProxy
    ) -> None:
        before = len(proxy.requests)
        for foreign in (*self.foreign_uris, f"{key.uri}x", "local:default", ""):
            failed(key, WrappedKey(foreign, wrapped.blob, wrapped.version, ""), UnwrapError)
        assert len(proxy.requests) == before

    def test_what_the_service_says_is_not_shown_when_it_could_be_the_key(
        self, reach: Reach, proxy: FaultProxy
    ) -> None:
        for fault in self.repeats_key:
            proxy.faults = [copy(fault)]
            with pytest.raises(EncpipeError) as refused:
                reach(proxy, deadline=0.3).wrap(KEK, aad=CONTEXT)
            for spelling in KEK_SPELLINGS:
                assert spelling not in f"{refused.value.message} {refused.value.hint}"

    def test_debug_logs_hold_no_key_and_no_credential(
        self, key: MasterKey, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.NOTSET)
        proxy.faults = [self.fault("reset", times=1)]
        wrapped = key.wrap(KEK, aad=CONTEXT)
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK
        proxy.faults = [copy(self.repeats_key[0])]
        with pytest.raises(EncpipeError):
            key.unwrap(wrapped, aad=CONTEXT)
        assert self.logs in caplog.text
        logged = f"{caplog.text} {[vars(record) for record in caplog.records]} {key!r}"
        for spelling in (*KEK_SPELLINGS, *self.credentials_in_use()):
            assert spelling not in logged

    def credentials_in_use(self) -> Sequence[str]:
        """What else must be in no log."""
        return ()

    def certificate(self, ca: CertificateAuthority, **flaws: Any) -> IssuedCertificate:
        return ca.server(**flaws, names=self.names) if self.names else ca.server(**flaws)

    def test_tls_with_the_configured_ca_whatever_the_environment_says(
        self,
        reach: Reach,
        listen: Listen,
        ca: CertificateAuthority,
        wrapped: WrappedKey,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        stranger = CertificateAuthority.create(tmp_path / "stranger")
        with listen(self.certificate(ca)) as proxy:
            for name in self.ca_variables:
                monkeypatch.setenv(name, str(stranger.path))
            assert reach(proxy, TlsConfig(ca_file=ca.path)).unwrap(wrapped, aad=CONTEXT) == KEK
            for name in self.ca_variables:
                monkeypatch.setenv(name, str(ca.path))
            before = len(proxy.requests)
            doubting = reach(proxy, TlsConfig(ca_file=stranger.path))
            assert failed(doubting, wrapped, ConfigError).code == "untrusted-certificate"
            assert len(proxy.requests) == before

    @pytest.mark.parametrize("flaw", ["untrusted CA", "self-signed", "expired", "wrong host"])
    def test_a_certificate_with_a_flaw_is_refused_at_once(
        self,
        reach: Reach,
        listen: Listen,
        ca: CertificateAuthority,
        wrapped: WrappedKey,
        flaw: str,
        tmp_path: Path,
    ) -> None:
        certificate = {
            "untrusted CA": lambda: self.certificate(CertificateAuthority.create(tmp_path / "stranger")),
            "self-signed": ca.self_signed,
            "expired": lambda: self.certificate(ca, expired=True),
            "wrong host": lambda: ca.server(wrong_host=True),
        }[flaw]()
        with listen(certificate) as proxy:
            error = failed(reach(proxy, TlsConfig(ca_file=ca.path)), wrapped, ConfigError)
            assert error.code == "untrusted-certificate"
            assert "tls.ca_file" in error.hint
            assert proxy.requests == []

    def test_mutual_tls(
        self, reach: Reach, listen: Listen, ca: CertificateAuthority, wrapped: WrappedKey
    ) -> None:
        own = ca.client()
        with listen(self.certificate(ca), ca.path) as proxy:
            assert reach(proxy, TlsConfig(ca.path, own.cert, own.key)).unwrap(wrapped, aad=CONTEXT) == KEK
            failed(reach(proxy, TlsConfig(ca.path), deadline=1), wrapped, KmsUnavailableError)

    def test_a_missing_ca_file_is_a_config_error(
        self, reach: Reach, wrapped: WrappedKey, tmp_path: Path
    ) -> None:
        key = reach(Nobody(9, tls=True), TlsConfig(ca_file=tmp_path / "missing.pem"))
        assert "missing.pem" in failed(key, wrapped, ConfigError).message

    def test_plain_http_beyond_loopback_is_refused_before_any_connection(
        self, reach: Reach, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: Any, **__: Any) -> None:
            raise AssertionError("this must not touch the network")

        if not self.takes_endpoint:
            pytest.skip("its URIs are https")
        monkeypatch.setattr(socket, "getaddrinfo", no_network)
        monkeypatch.setattr(socket.socket, "connect", no_network)
        for host in ("kms.example", "10.0.0.1", "localhost.example"):
            with pytest.raises(ConfigError) as refused:
                reach(Nobody(9000, host))
            assert refused.value.code == "insecure-transport"

    def test_without_the_sdk_the_error_is_the_pip_command(
        self, key: MasterKey, wrapped: WrappedKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in [m for m in sys.modules if m.startswith(f"encpipe.kms.{self.extra}_")]:
            monkeypatch.delitem(sys.modules, module)
        for module in self.sdk_modules:
            monkeypatch.setitem(sys.modules, module, None)
        assert failed(key, wrapped, MissingExtraError).hint == f"pip install 'encpipe[{self.extra}]'"

    def test_a_forked_child_opens_connections_of_its_own(self, key: MasterKey, wrapped: WrappedKey) -> None:
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK
        parents = self.of_process(key)
        parents.lock.acquire()  # as if another thread were connecting: the child must not wait for it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
            child = os.fork()
        if child == 0:
            opened = key.unwrap(wrapped, aad=CONTEXT) == KEK
            os._exit(0 if opened and self.of_process(key) is not parents else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        parents.lock.release()
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK
