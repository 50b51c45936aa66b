"""Every client library in use keeps the TLS rules: what it refuses, how fast, and what it never sends.

The servers are observers on loopback. A flaw that a client overlooked would show as a request that arrived.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import ssl
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from pyarrow import fs
from servers.azurekv import ENTRA, HSM_DOMAIN, TENANT, WRITER, FakeAzure, lookup
from servers.ca import CertificateAuthority
from servers.gcpkms import RING, make_account
from servers.observer import Arrived, Observer
from servers.process import HOST

from encpipe import transport
from encpipe.config import AuditConfig, Config, TlsConfig
from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms.aws import AwsKms
from encpipe.kms.azure import AzureKms
from encpipe.kms.base import KmsSettings
from encpipe.kms.gcp import GcpKms
from encpipe.kms.vault import VaultKms
from encpipe.storage import open_storage
from encpipe.testing.faultproxy import Fault, FaultProxy

CONTEXT: Final = KeyContext("d" * 32, "footer", "e" * 32)
KEK: Final = Secret(bytes(range(100, 132)))
ARN: Final = "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555"
SECONDS: Final = 10.0
"""A refusal takes some ms; the rest is for a machine under load. Tries of an outage would take longer."""
REDIRECTS: Final = (*(("https", status) for status in (301, 302, 303, 307, 308)), ("http", 307))
HSM_NAMES: Final = (ENTRA, f"*.{HSM_DOMAIN}")


@dataclass(frozen=True)
class Scene:
    """Where the clients find what they need besides a server."""

    ca: CertificateAuthority
    folder: Path

    def s3(self, url: str, tls: TlsConfig, region: str = "us-east-1", **more: Any) -> Any:
        options = {"key": "key-id", "secret": "s3-secret", "token": "s3-token", "endpoint_url": url}
        options |= {"region_name": region}
        return open_storage("s3://bucket/dataset", config=Config(tls=tls, **more), options=options)


def aws_kms(scene: Scene, url: str, tls: TlsConfig) -> None:
    key = AwsKms(KmsSettings({"endpoint_url": url}, tls=tls)).master_key(f"aws-kms:{ARN}")
    key.unwrap(WrappedKey(key.uri, b"wrapped", "", ""), aad=CONTEXT)


def vault(scene: Scene, url: str, tls: TlsConfig) -> None:
    VaultKms(KmsSettings({"address": url}, tls=tls)).master_key("vault:one").wrap(KEK, aad=CONTEXT)


def gcp_kms(scene: Scene, url: str, tls: TlsConfig) -> None:
    table = {"endpoint_url": url, "service_account_file": str(scene.folder / "writer.json")}
    key = GcpKms(KmsSettings(table, tls=tls)).master_key(f"gcp-kms:{RING}/cryptoKeys/one")
    key.wrap(KEK, aad=CONTEXT)


def s3_by_boto(scene: Scene, url: str, tls: TlsConfig) -> None:
    scene.s3(url, tls).read("a", limit=1)


def s3_by_arrow(scene: Scene, url: str, tls: TlsConfig) -> None:
    scene.s3(url, tls).open_input("a")


def s3_elsewhere(scene: Scene, url: str, tls: TlsConfig) -> None:
    """Ranged reads in a region where Arrow's client cannot be kept from following redirects."""
    scene.s3(url, tls, region="eu-west-1").open_input("a")


Client = Callable[[Scene, str, TlsConfig], None]
CLIENTS: Final[tuple[Client, ...]] = (aws_kms, vault, gcp_kms, s3_by_boto, s3_by_arrow, s3_elsewhere)
every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)


@pytest.fixture(scope="module")
def scene(ca: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("accounts")
    make_account(folder, "writer")
    return Scene(ca, folder)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "VAULT_", "BAO_", "AZURE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "kms-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "kms-token")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("VAULT_TOKEN", "vault-token")
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", WRITER[0])
    monkeypatch.setenv("AZURE_CLIENT_SECRET", WRITER[1])


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Speaking this version and no other, also an old one that OpenSSL has to be talked into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the version: it is the point
        if version < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    return context


FLAWS: Final[dict[str, str]] = {
    "unknown CA": "untrusted-certificate",
    "self-signed": "untrusted-certificate",
    "expired": "untrusted-certificate",
    "wrong host": "untrusted-certificate",
    "TLS 1.0 only": "insecure-transport",
    "TLS 1.1 only": "insecure-transport",
    "no TLS": "insecure-transport",
}
every_flaw = pytest.mark.parametrize("flaw", FLAWS)


def flawed(ca: CertificateAuthority, flaw: str, folder: Path, names: tuple[str, ...] = ()) -> Any:
    """The server's side of a connection that has to be refused; None for plain http."""
    old = {"TLS 1.0 only": ssl.TLSVersion.TLSv1, "TLS 1.1 only": ssl.TLSVersion.TLSv1_1}
    if flaw == "no TLS":
        return None
    if flaw in old:
        return only(ca.server(names=names).server_context(), old[flaw])
    if flaw == "unknown CA":
        return CertificateAuthority.create(folder / "stranger").server(names=names).server_context()
    if flaw == "self-signed":
        return ca.self_signed().server_context()
    if flaw == "expired":
        return ca.server(expired=True, names=names).server_context()
    return ca.server(wrong_host=True).server_context()


def refused(act: Callable[[], object], code: str | None = None) -> EncpipeError:
    """The error of our tree, with a hint, in time."""
    start = time.monotonic()
    with pytest.raises(EncpipeError) as caught:
        act()
    assert time.monotonic() - start < SECONDS
    assert caught.value.hint
    assert code is None or caught.value.code == code, caught.value
    return caught.value


@every_flaw
@every_client
def test_a_server_with_a_flaw_gets_no_request(
    scene: Scene, client: Client, flaw: str, tmp_path: Path
) -> None:
    with Observer(flawed(scene.ca, flaw, tmp_path)) as server:
        url = f"https://{HOST}:{server.port}"
        error = refused(lambda: client(scene, url, TlsConfig(ca_file=scene.ca.path)), FLAWS[flaw])
    assert isinstance(error, ConfigError)
    assert server.requests == []
    tries = 3 if client is s3_by_arrow else 1  # its retries cannot tell; they end within a second or two
    assert server.connections <= tries


@every_client
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
def test_a_good_server_gets_one_in_the_newest_version_it_speaks(
    scene: Scene, client: Client, newest: ssl.TLSVersion
) -> None:
    """So that the refusals above are about the flaws."""
    context = scene.ca.server().server_context()
    context.maximum_version = newest
    with Observer(context) as server:
        refused(lambda: client(scene, server.url, TlsConfig(ca_file=scene.ca.path)))  # it answers 404
    assert len(server.requests) == 1
    assert server.versions == [newest.name.replace("_", ".")]


@pytest.mark.parametrize("flaw", ["TLS 1.0 only", "TLS 1.1 only"])
def test_the_old_servers_do_serve_whoever_asks_for_less(
    ca: CertificateAuthority, flaw: str, tmp_path: Path
) -> None:
    context = ca.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    with (
        Observer(flawed(ca, flaw, tmp_path)) as server,
        socket.create_connection((HOST, server.port)) as raw,
        context.wrap_socket(raw, server_hostname=HOST) as connection,
    ):
        assert connection.version() == f"TLSv1{'.1' if '1.1' in flaw else ''}"


@every_client
@pytest.mark.parametrize(("scheme", "status"), REDIRECTS)
def test_a_redirect_takes_nothing_to_another_server(
    scene: Scene, client: Client, scheme: str, status: int
) -> None:
    """Not a request, so no token, no signature and no path; and not over plain http, either."""
    good = scene.ca.server().server_context
    with Observer(good() if scheme == "https" else None) as other:
        away = {"Location": f"{scheme}://localhost:{other.port}/elsewhere"}
        with Observer(good(), status=status, headers=away) as server:
            error = refused(lambda: client(scene, server.url, TlsConfig(ca_file=scene.ca.path)))
    assert other.connections == 0
    assert error.code in ("kms", "config")
    assert len(server.requests) == 1
    del error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # boto3 leaves a socket behind where it breaks (303)
        gc.collect()


def test_what_arrow_does_where_it_is_not_kept_from_it(ca: CertificateAuthority) -> None:
    """The fact behind `Connection.arrow_can`. If this fails, Arrow's client can be used in every region."""
    good = ca.server().server_context
    with Observer(None) as other:
        away = {"Location": f"http://localhost:{other.port}/elsewhere"}
        with Observer(good(), status=307, headers=away) as server:
            client = fs.S3FileSystem(
                access_key="key-id",
                secret_key="s3-secret",
                session_token="s3-token",
                region="eu-west-1",
                endpoint_override=f"{HOST}:{server.port}",
                tls_ca_file_path=str(ca.path),
            )
            with pytest.raises(OSError, match="not exist"):
                client.open_input_file("bucket/a")
    (arrived,) = other.requests
    assert arrived.headers["x-amz-security-token"] == "s3-token"
    assert "authorization" not in arrived.headers


@pytest.fixture
def azure(ca: CertificateAuthority) -> Iterator[FakeAzure]:
    with FakeAzure(ca) as running:
        yield running


Lead = Callable[..., None]


@pytest.fixture
def lead(azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> Lead:
    """Says where the names of Entra ID and of the HSM lead to."""
    real = socket.getaddrinfo

    def change(*, entra: int = azure.port, hsm: int = azure.port) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lookup(real, {ENTRA: entra, HSM_DOMAIN: hsm}))

    change()
    return change


def azure_wraps(scene: Scene, azure: FakeAzure) -> None:
    uri = azure.create_key("one", host=f"u{uuid.uuid4().hex[:12]}.{HSM_DOMAIN}")
    settings = KmsSettings({"credential": "environment"}, tls=TlsConfig(ca_file=scene.ca.path))
    AzureKms(settings).master_key(uri).wrap(KEK, aad=CONTEXT)


@every_flaw
@pytest.mark.parametrize("which", ["hsm", "entra"])
def test_azure_servers_with_a_flaw_get_no_request(
    scene: Scene, azure: FakeAzure, lead: Lead, which: str, flaw: str, tmp_path: Path
) -> None:
    azure_wraps(scene, azure)
    with Observer(flawed(scene.ca, flaw, tmp_path, HSM_NAMES)) as server:
        lead(**{which: server.port})
        refused(lambda: azure_wraps(scene, azure), FLAWS[flaw])
    assert server.requests == []
    assert server.connections <= 1


@pytest.mark.parametrize(("scheme", "status"), REDIRECTS)
@pytest.mark.parametrize("which", ["hsm", "entra"])
def test_azure_redirects_take_no_token_and_no_secret_to_another_server(
    scene: Scene, azure: FakeAzure, lead: Lead, which: str, status: int, scheme: str
) -> None:
    """At the HSM when the request has its token, at Entra ID when it has the client's secret."""
    good = scene.ca.server(names=HSM_NAMES).server_context()
    paths = {"hsm": "/keys/", "entra": f"/{TENANT}/oauth2/v2.0/token"}

    def takes(method: str, path: str) -> bool:
        return path.startswith(paths[which]) and bool(which == "entra" or azure.logins)

    with Observer(scene.ca.server().server_context() if scheme == "https" else None) as other:
        away = {"Location": f"{scheme}://localhost:{other.port}/elsewhere"}
        upstream = scene.ca.client_context()
        with FaultProxy(HOST, azure.port, tls_listen=good, tls_upstream=upstream) as proxy:
            lead(**{which: proxy.port})
            fault = Fault("status", takes, code=status, headers=away)
            proxy.faults.append(fault)
            refused(lambda: azure_wraps(scene, azure))
    assert fault.hits
    assert other.connections == 0


PLAIN: Final = "plain.internal"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    """A server beyond loopback, as far as its name goes, that speaks plain http."""
    real = socket.getaddrinfo
    with Observer() as server:
        monkeypatch.setattr(socket, "getaddrinfo", lookup(real, {PLAIN: server.port}))
        yield server


def allowing(sink: str | None, *, required: bool = True) -> TlsConfig:
    config = Config(tls=TlsConfig(allow_plain_http_to=(PLAIN,)), audit=AuditConfig(sink, required=required))
    return config.tls


PLAIN_CLIENTS: Final = (aws_kms, vault, gcp_kms)


@pytest.mark.parametrize("client", PLAIN_CLIENTS, ids=lambda client: client.__name__)
def test_plain_http_that_is_allowed_leaves_one_audit_line(
    scene: Scene, client: Client, plain: Observer, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    tls, url = allowing(f"file:{log}"), f"http://{PLAIN}:{plain.port}"
    for _ in range(2):
        refused(lambda: client(scene, url, tls))
    assert len(plain.requests) == 2
    (line,) = [line for line in log.read_text().splitlines() if '"event":"plain-http"' in line]
    assert f'"target":"{url}"' in line


@pytest.mark.parametrize("client", PLAIN_CLIENTS, ids=lambda client: client.__name__)
def test_plain_http_without_its_audit_line_does_not_happen(
    scene: Scene, client: Client, plain: Observer, tmp_path: Path
) -> None:
    tls, url = allowing(f"file:{tmp_path}/no/folder"), f"http://{PLAIN}:{plain.port}"
    refused(lambda: client(scene, url, tls), "audit")
    assert plain.requests == []


def test_both_clients_of_s3_tell_the_audit_log(scene: Scene, plain: Observer, tmp_path: Path) -> None:
    url = f"http://{PLAIN}:{plain.port}"
    for name, use in (("boto", "exists"), ("arrow", "arrow_path")):
        log = tmp_path / name
        audit = AuditConfig(f"file:{log}")
        storage = scene.s3(url, TlsConfig(allow_plain_http_to=(PLAIN,)), audit=audit)
        if use == "exists":
            refused(lambda made=storage: made.size("a"))
        else:
            storage.arrow_path("a")
        assert log.read_text().count('"event":"plain-http"') == 1
    broken = AuditConfig(f"file:{tmp_path}/no/folder")
    storage = scene.s3(url, TlsConfig(allow_plain_http_to=(PLAIN,)), audit=broken)
    arrived = len(plain.requests)
    for act in (lambda: storage.size("a"), lambda: storage.arrow_path("a")):
        assert isinstance(refused(act, "audit"), StorageError)
    assert len(plain.requests) == arrived


INSTANCE: Final = "169.254.169.254"


def test_link_local_addresses_give_credentials_and_nothing_else(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK gets the role of an instance over plain http, and sends what it asks of KMS to KMS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    role = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "role-id", "SecretAccessKey": "role-secret"}
    role |= {
        "Token": "role-token",
        "Expiration": "2099-01-01T00:00:00Z",
        "LastUpdated": "2020-01-01T00:00:00Z",
    }

    def answer(arrived: Arrived) -> bytes:
        if arrived.method == "PUT":
            return b"session"
        return json.dumps(role).encode() if arrived.path.endswith("/the-role") else b"the-role"

    real = socket.getaddrinfo
    with Observer(answer=answer) as instance, Observer(scene.ca.server().server_context()) as server:
        monkeypatch.setattr(socket, "getaddrinfo", lookup(real, {INSTANCE: instance.port}))
        refused(lambda: aws_kms(scene, server.url, TlsConfig(ca_file=scene.ca.path)))  # it answers 404
    assert server.requests[0].headers["x-amz-security-token"] == "role-token"
    assert {arrived.body for arrived in instance.requests} == {b""}
    refused(lambda: aws_kms(scene, f"http://{INSTANCE}", TlsConfig()), "insecure-transport")


def test_a_forked_child_tells_the_audit_log_anew(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    tls, url = allowing(f"file:{log}"), f"http://{PLAIN}"
    transport.announce(url, tls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
        child = os.fork()
    if child == 0:
        transport.announce(url, tls)
        transport.announce(url, tls)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    transport.announce(url, tls)
    transport.announce(f"http://{PLAIN}:81", tls)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["target"] for line in lines] == [f"{url}:80", f"{url}:80", f"{url}:81"]
    assert lines[0]["pid"] != lines[1]["pid"]


def test_loopback_and_https_leave_no_line(scene: Scene, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    with Observer() as server:
        refused(lambda: vault(scene, server.url, allowing(f"file:{log}")))
    assert not log.exists()
