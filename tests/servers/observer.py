"""A server that writes down who connected and what arrived, and answers every request as it is told to.

For tests of what a client does *not* send: to a server whose certificate it must refuse, or after a redirect.
Runs in threads of the test process, on loopback.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from servers.process import HOST


@dataclass(frozen=True)
class Arrived:
    """One request, whole."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Observer:
    """`connections` counts TCP connections, also those that end in the handshake; `versions` are those of TLS
    that were negotiated. `answer` gives the body of an answer with status 200, or None for `status`."""

    context: ssl.SSLContext | None = None
    status: int = 404
    headers: Mapping[str, str] = field(default_factory=dict)
    answer: Callable[[Arrived], bytes | None] = lambda _: None
    connections: int = 0
    versions: list[str | None] = field(default_factory=list)
    requests: list[Arrived] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = _Server(self)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        super().__init__((HOST, 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        self.observer.connections += 1  # in the one thread that accepts
        return super().get_request()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread, where a handshake keeps nobody else waiting."""
        context = self.observer.context
        with contextlib.suppress(OSError):  # the client refused the handshake, or went away: as it may
            if context is not None:
                request = context.wrap_socket(request, server_side=True)
                self.observer.versions.append(request.version())
            with contextlib.closing(request):
                super().finish_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: _Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        observer = self.server.observer
        arrived = Arrived(self.command, self.path, headers, body)
        observer.requests.append(arrived)
        answer = observer.answer(arrived)
        self.send_response(observer.status if answer is None else HTTPStatus.OK)
        for name, value in observer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer or b"")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer or b"")

    def log_message(self, *_: object) -> None:
        pass
