"""A reverse proxy that misbehaves on demand, for tests against real HTTP/1.1 servers (S3, KMS, Vault).

Guarantees:

- Without a matching fault, request and answer pass byte for byte, with the Host header as the client sent it,
  so AWS signatures (SigV4) made for the proxy's address stay valid at the server.
- Every request whose head and body arrived is in `requests`, in order, before any fault acts on it.
- A request meets at most one fault: the first in `faults` that matches and is not used up.
- Only `delay`, `drop_answer` and the faults that spoil an answer let a request reach the server; `status` and
  `reset` do not.
- `stop()` returns after all connections are closed and the thread has ended, also amid a delay or a stall.

Bodies are held in memory whole. `Expect: 100-continue` is answered by the proxy itself.

    with FaultProxy("127.0.0.1", port) as proxy:
        proxy.faults.append(Fault("drop_answer", match=lambda method, path: method == "PUT", times=1))
        client = connect(proxy.url)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, Self

from encpipe.testing._http1 import CRLF, HEAD_END, MAX_HEAD_BYTES, Message, read_answer, read_request

Kind = Literal["delay", "status", "reset", "drop_answer", "truncate", "shorten", "flip_byte", "stall"]

HOST = "127.0.0.1"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close sends RST, not FIN


@dataclass(eq=False)
class Fault:
    """One misbehaviour.

    - `delay`: wait `seconds`, then forward (also if the client has gone meanwhile, as a slow network would).
    - `status`: answer `code` with `body` and `headers`; the server sees nothing.
    - `reset`: reset the connection; the server sees nothing.
    - `drop_answer`: forward, wait for the answer, close without passing it on.
    - `truncate`: pass the head and `at` bytes of the body, then close: the client can tell.
    - `shorten`: pass `at` bytes of the body with a Content-Length that fits: a well-formed lie.
    - `flip_byte`: invert the lowest bit of byte `at` of the answer's body.
    - `stall`: pass the head and `at` bytes of the body, then nothing until the client goes.

    `at` defaults to the middle of the body. Of an answer without a body, `truncate` and `stall` pass half the
    head, and `shorten` and `flip_byte` all of it. `operation` also limits the fault to one AWS JSON
    operation, such as `Decrypt`, which method and path do not tell. `times=None` means always. `hits` counts.
    """

    kind: Kind
    match: Callable[[str, str], bool] | None = None  # (method, path with query)
    times: int | None = None
    seconds: float = 0.0
    code: int = 503
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    at: int | None = None
    operation: str | None = None
    hits: int = 0

    def takes(self, method: str, path: str, operation: str) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        if self.operation is not None and self.operation != operation:
            return False
        return self.match is None or self.match(method, path)


class FaultProxy:
    """Listens on a free loopback port, in a thread with its own event loop.

    `faults` may be changed at any time from any thread. `operations` runs parallel to `requests`: the AWS
    JSON operation of each (`Decrypt`), or an empty string.
    """

    def __init__(
        self,
        upstream_host: str,
        upstream_port: int,
        *,
        tls_upstream: ssl.SSLContext | None = None,
        tls_listen: ssl.SSLContext | None = None,
    ) -> None:
        self.upstream = (upstream_host, upstream_port)
        self.port = 0
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.operations: list[str] = []
        self._tls_upstream = tls_upstream
        self._tls_listen = tls_listen
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls_listen else 'http'}://{HOST}:{self.port}"

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, HOST, 0, ssl=self._tls_listen, limit=MAX_HEAD_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # let the transports tell their sockets to close

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            # The client, or the server behind us, went away: nothing is left to tell anyone.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while (request := await read_request(reader, writer.write)) is not None:
                    if not await self._relay(request, reader, writer):
                        break
                    await writer.drain()
                writer.close()
                await writer.wait_closed()
        except asyncio.CancelledError:
            pass  # only `stop()` cancels, and the stream protocol would log it
        finally:
            writer.transport.abort()
            self._connections.discard(task)

    async def _relay(
        self, request: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection stays open for another request."""
        fault = self._claim(request)
        if fault is None:
            return await self._pass(request, writer)
        if fault.kind == "status":
            writer.write(_status(fault))
            return not request.closes
        if fault.kind == "reset":
            _reset(writer)
            return False
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
            return await self._pass(request, writer)
        answer = await self._forward(request)
        if fault.kind == "drop_answer":
            return False
        return await _spoil(fault, answer, reader, writer)

    def _claim(self, request: Message) -> Fault | None:
        method, path, _ = request.start
        operation = request.header("x-amz-target").rpartition(".")[2]
        self.requests.append((method, path))
        self.operations.append(operation)
        for fault in list(self.faults):
            if fault.takes(method, path, operation):
                fault.hits += 1
                return fault
        return None

    async def _pass(self, request: Message, writer: asyncio.StreamWriter) -> bool:
        answer = await self._forward(request)
        writer.write(answer.wire)
        return not (request.closes or answer.closes)

    async def _forward(self, request: Message) -> Message:
        """One connection per request: a kept one could be closed by the server between two of them."""
        reader, writer = await asyncio.open_connection(
            *self.upstream, ssl=self._tls_upstream, limit=MAX_HEAD_BYTES
        )
        try:
            writer.write(request.wire)
            return await read_answer(reader, request.start[0])
        finally:
            writer.transport.abort()


async def _spoil(
    fault: Fault, answer: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    body = answer.body
    at = len(body) // 2 if fault.at is None else min(fault.at, len(body))
    if fault.kind in ("flip_byte", "shorten") and not body:
        writer.write(answer.wire)
        return not answer.closes
    if fault.kind == "flip_byte":
        flipped = body[:at] + bytes(byte ^ 1 for byte in body[at : at + 1]) + body[at + 1 :]
        writer.write(answer.with_body(flipped).wire)
        return not answer.closes
    if fault.kind == "shorten":
        writer.write(answer.with_body(body[:at]).wire)
        return not answer.closes
    writer.write(answer.with_body(body).head + body[:at] if body else answer.head[: len(answer.head) // 2])
    await writer.drain()
    if fault.kind == "stall":
        await reader.read(1)
    return False


def _status(fault: Fault) -> bytes:
    known = {status.value: status.phrase for status in HTTPStatus}
    lines = [f"HTTP/1.1 {fault.code} {known.get(fault.code, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in fault.headers.items()]
    lines.append(f"Content-Length: {len(fault.body)}")
    return CRLF.join(line.encode("latin-1") for line in lines) + HEAD_END + fault.body


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
