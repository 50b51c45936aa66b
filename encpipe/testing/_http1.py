"""Just enough HTTP/1.1 to relay messages byte for byte: heads are kept verbatim, bodies as they were framed.

For tests on loopback only: whole messages are held in memory, and there are no limits on their size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

HEAD_END = b"\r\n\r\n"
CRLF = b"\r\n"
CONTINUE = b"HTTP/1.1 100 Continue" + HEAD_END
MAX_HEAD_BYTES = 1 << 20
NO_BODY_CODES = frozenset({204, 304})


@dataclass(frozen=True)
class Message:
    """A request or answer. `raw` is the body as framed on the wire, `body` what it says."""

    head: bytes  # verbatim, with the empty line
    raw: bytes = b""
    body: bytes = b""
    to_eof: bool = False  # the end of the connection is the end of the body

    @property
    def start(self) -> list[str]:
        return self.head.split(CRLF, 1)[0].decode("latin-1").split(" ", 2)

    def header(self, name: str) -> str:
        """The value of a header, lower case name; empty if absent."""
        for line in self.head.split(CRLF)[1:]:
            key, _, value = line.decode("latin-1").partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return ""

    @property
    def wire(self) -> bytes:
        return self.head + self.raw

    @property
    def closes(self) -> bool:
        return self.to_eof or self.header("connection").lower() == "close" or "HTTP/1.0" in self.start

    def with_body(self, body: bytes) -> Message:
        """The same message with another body and a Content-Length that fits it."""
        framing = (b"content-length:", b"transfer-encoding:")
        lines = [line for line in self.head.split(CRLF) if line and not line.lower().startswith(framing)]
        head = CRLF.join([*lines, b"Content-Length: %d" % len(body)]) + HEAD_END
        return replace(self, head=head, raw=body, body=body, to_eof=False)


async def read_request(reader: asyncio.StreamReader, write: Callable[[bytes], None]) -> Message | None:
    """The next request, or None at the end; answers `Expect: 100-continue` through `write`."""
    try:
        message = Message(await reader.readuntil(HEAD_END))
    except asyncio.IncompleteReadError:
        return None
    if message.header("expect").lower() == "100-continue":
        write(CONTINUE)
    return await _read_body(message, reader, int(message.header("content-length") or 0))


async def read_answer(reader: asyncio.StreamReader, method: str) -> Message:
    """The final answer to a request of this method; interim ones (100 Continue) are swallowed."""
    while True:
        message = Message(await reader.readuntil(HEAD_END))
        code = int(message.start[1])
        if code >= 200:
            break
    if method == "HEAD" or code in NO_BODY_CODES:
        return message
    length = message.header("content-length")
    return await _read_body(message, reader, int(length) if length else None)


async def _read_body(message: Message, reader: asyncio.StreamReader, length: int | None) -> Message:
    if "chunked" in message.header("transfer-encoding").lower():
        raw, body = await _read_chunks(reader)
        return replace(message, raw=raw, body=body)
    if length is None:
        body = await reader.read()
        return replace(message, raw=body, body=body, to_eof=True)
    body = await reader.readexactly(length)
    return replace(message, raw=body, body=body)


async def _read_chunks(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    raw, body = bytearray(), bytearray()
    while True:
        line = await reader.readuntil(CRLF)
        raw += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        chunk = await reader.readexactly(size + len(CRLF))
        raw += chunk
        body += chunk[:size]
    while (line := await reader.readuntil(CRLF)) != CRLF:  # trailers
        raw += line
    return bytes(raw + CRLF), bytes(body)
