"""The fault proxy is invisible without faults, and each fault does what it says and nothing else."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import botocore.exceptions
import pytest
from servers.aws import Kms
from servers.ca import CertificateAuthority
from servers.seaweed import Seaweed

from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = pytest.mark.server

BODY = bytes(range(256)) * 8


class Upstream(http.server.ThreadingHTTPServer):
    """Echoes a PUT's body, answers GET with BODY: framed by length, in chunks, or by its end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, bytes]] = []  # method, Host header, body
        self.port = self.server_address[1]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        if self.path == "/eof":
            self.send_header("Connection", "close")
        elif self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = (
                b"5;x=y\r\n" + body[:5] + b"\r\n%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\nT: v\r\n\r\n"
            )
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.headers["Host"], b""))
        self.answer(b"" if self.path == "/empty" else BODY)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.headers.get("Transfer-Encoding") and (size := int(self.rfile.readline(), 16)):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.server.seen.append((self.command, self.headers["Host"], body))
        self.answer(body)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", upstream.port) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)) as connection:
        yield connection


def get(client: http.client.HTTPConnection, path: str = "/", method: str = "GET") -> bytes:
    client.request(method, path)
    return client.getresponse().read()


@pytest.mark.parametrize("path", ["/", "/chunked", "/eof", "/empty"])
def test_answers_pass_unchanged_however_they_are_framed(
    client: http.client.HTTPConnection, path: str
) -> None:
    assert get(client, path) == (b"" if path == "/empty" else BODY)
    assert get(client, path, "HEAD") == b""


def test_requests_pass_unchanged_and_are_recorded(
    client: http.client.HTTPConnection, proxy: FaultProxy, upstream: Upstream
) -> None:
    client.request("PUT", "/a?b=c", BODY, {"Host": "bucket.example"})
    assert client.getresponse().read() == BODY
    client.request("PUT", "/chunks", iter([b"one", b"two"]), encode_chunked=True)
    assert client.getresponse().read() == b"onetwo"
    assert proxy.requests == [("PUT", "/a?b=c"), ("PUT", "/chunks")]
    assert upstream.seen[0] == ("PUT", "bucket.example", BODY)
    assert upstream.seen[1] == ("PUT", f"127.0.0.1:{proxy.port}", b"onetwo")


def test_connection_is_kept_alive(client: http.client.HTTPConnection) -> None:
    get(client)
    first = client.sock
    get(client, "/chunked")
    assert client.sock is first is not None


def test_expect_continue_is_answered_before_the_body_comes(proxy: FaultProxy) -> None:
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as sock,
        sock.makefile("rb") as answers,
    ):
        sock.sendall(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answers.readline() == b"\r\n"
        sock.sendall(b"body")
        assert answers.readline() == b"HTTP/1.1 200 OK\r\n"


def test_fault_hits_only_what_it_matches_and_only_so_often(
    client: http.client.HTTPConnection, proxy: FaultProxy
) -> None:
    fault = Fault("status", match=lambda method, path: (method, path) == ("GET", "/x"), times=2, body=b"no")
    proxy.faults.append(fault)
    assert get(client, "/") == BODY
    assert [get(client, "/x") for _ in range(3)] == [b"no", b"no", BODY]
    assert fault.hits == 2


def test_status_answers_without_asking_the_server(
    client: http.client.HTTPConnection, proxy: FaultProxy, upstream: Upstream
) -> None:
    proxy.faults = [Fault("status", code=429, body=b"slow down", headers={"Retry-After": "7"})]
    client.request("PUT", "/", b"x")
    answer = client.getresponse()
    assert (answer.status, answer.reason, answer.read()) == (429, "Too Many Requests", b"slow down")
    assert answer.headers["Retry-After"] == "7"
    assert upstream.seen == []


def test_delay_forwards_later(client: http.client.HTTPConnection, proxy: FaultProxy) -> None:
    proxy.faults = [Fault("delay", seconds=0.2)]
    start = time.monotonic()
    assert get(client) == BODY
    assert time.monotonic() - start >= 0.2


def test_drop_answer_leaves_the_work_done(
    client: http.client.HTTPConnection, proxy: FaultProxy, upstream: Upstream
) -> None:
    proxy.faults = [Fault("drop_answer")]
    client.request("PUT", "/", b"x")
    with pytest.raises(http.client.RemoteDisconnected):
        client.getresponse()
    assert [body for _, _, body in upstream.seen] == [b"x"]


def test_reset_leaves_the_server_untouched(
    client: http.client.HTTPConnection, proxy: FaultProxy, upstream: Upstream
) -> None:
    proxy.faults = [Fault("reset")]
    client.request("PUT", "/", b"x")
    with pytest.raises(ConnectionResetError) as reset:
        client.getresponse()
    assert not isinstance(reset.value, http.client.RemoteDisconnected)  # RST, not FIN
    assert upstream.seen == []


@pytest.mark.parametrize("path", ["/", "/chunked", "/eof"])
def test_truncate_is_visible_to_the_client(
    client: http.client.HTTPConnection, proxy: FaultProxy, path: str
) -> None:
    proxy.faults = [Fault("truncate", at=10)]
    with pytest.raises(http.client.IncompleteRead) as incomplete:
        get(client, path)
    assert incomplete.value.partial == BODY[:10]


def test_shorten_is_not_visible_to_the_client(client: http.client.HTTPConnection, proxy: FaultProxy) -> None:
    proxy.faults = [Fault("shorten", at=10)]
    assert get(client, "/chunked") == BODY[:10]


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_flip_byte_inverts_one_bit(client: http.client.HTTPConnection, proxy: FaultProxy, path: str) -> None:
    proxy.faults = [Fault("flip_byte", at=3)]
    assert get(client, path) == BODY[:3] + bytes([BODY[3] ^ 1]) + BODY[4:]
    assert get(client, path, "HEAD") == b""


@pytest.mark.parametrize("path", ["/", "/empty"])
def test_stall_lasts_until_the_client_goes(proxy: FaultProxy, path: str) -> None:
    proxy.faults = [Fault("stall")]
    impatient = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.2)
    with contextlib.closing(impatient) as client, pytest.raises(TimeoutError):
        get(client, path)


@pytest.mark.parametrize("fault", [Fault("stall"), Fault("delay", seconds=3600)])
def test_stop_does_not_wait_for_faults(upstream: Upstream, fault: Fault) -> None:
    claimed = threading.Event()
    with socket.socket() as sock, FaultProxy("127.0.0.1", upstream.port) as proxy:

        def match(method: str, path: str) -> bool:
            claimed.set()
            return True

        fault.match = match
        proxy.faults = [fault]
        sock.connect(("127.0.0.1", proxy.port))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert claimed.wait(10)
    assert not any(thread.name == "fault-proxy" for thread in threading.enumerate())


def proxied(seaweed: Seaweed, ca: CertificateAuthority, tls: bool) -> FaultProxy:
    upstream = urlsplit(seaweed.https if tls else seaweed.http)
    assert upstream.hostname is not None
    assert upstream.port is not None
    listen: ssl.SSLContext | None = ca.server().server_context() if tls else None
    trust = ca.client_context() if tls else None
    return FaultProxy(upstream.hostname, upstream.port, tls_upstream=trust, tls_listen=listen)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_signed_s3_requests_pass(seaweed: Seaweed, bucket: str, ca: CertificateAuthority, tls: bool) -> None:
    content = os.urandom(300_000)
    with proxied(seaweed, ca, tls) as proxy, contextlib.closing(seaweed.client(endpoint=proxy.url)) as s3:
        s3.put_object(Bucket=bucket, Key="a b/ü", Body=content)
        assert s3.get_object(Bucket=bucket, Key="a b/ü", Range="bytes=10-19")["Body"].read() == content[10:20]
        assert s3.get_object(Bucket=bucket, Key="a b/ü")["Body"].read() == content
        assert s3.head_object(Bucket=bucket, Key="a b/ü")["ContentLength"] == len(content)
        assert [method for method, _ in proxy.requests] == ["PUT", "GET", "GET", "HEAD"]


def test_lost_answer_to_a_conditional_put_ends_in_412_although_written(
    seaweed: Seaweed, bucket: str, ca: CertificateAuthority
) -> None:
    with proxied(seaweed, ca, False) as proxy:
        proxy.faults = [Fault("drop_answer", match=lambda method, _: method == "PUT", times=1)]
        with contextlib.closing(seaweed.client(endpoint=proxy.url, attempts=3)) as s3:
            with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
                s3.put_object(Bucket=bucket, Key="k", Body=b"ours", IfNoneMatch="*")
            assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"ours"
        assert [method for method, _ in proxy.requests] == ["PUT", "PUT", "GET"]


def test_fault_for_one_kms_operation(roto_kms: Kms) -> None:
    upstream = urlsplit(roto_kms.endpoint)
    assert upstream.port is not None
    throttle = Fault(
        "status",
        operation="Decrypt",
        code=400,
        body=b'{"__type":"ThrottlingException"}',
        headers={"Content-Type": "application/x-amz-json-1.1"},
    )
    arn = roto_kms.create_key()
    with FaultProxy("127.0.0.1", upstream.port) as proxy:
        proxy.faults = [throttle]
        with contextlib.closing(roto_kms.client(endpoint=proxy.url)) as kms:
            blob = kms.encrypt(KeyId=arn, Plaintext=b"key")["CiphertextBlob"]
            with pytest.raises(botocore.exceptions.ClientError, match="ThrottlingException"):
                kms.decrypt(CiphertextBlob=blob)
        assert proxy.operations == ["Encrypt", "Decrypt"]
