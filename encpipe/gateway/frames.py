"""Record batches as messages of Arrow Flight (`FlightData` of Flight.proto). No I/O.

PyArrow writes Arrow's own part; the three fields around it are protobuf's, written here, since PyArrow offers
them inside of its own server only. Bodies are copied once.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

_HEADER: Final = b"\x12"  # field 2, bytes
_BODY: Final = b"\xc2\x3e"  # field 1000, bytes


class Frames:
    """The messages of one stream: the schema's first, then those of each batch in order."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._sink = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._sink, schema) if _has_dictionaries(schema) else None

    def start(self) -> Iterator[bytes]:
        """The schema."""
        if self._writer is not None:
            yield from self._written()
        else:
            yield _frame(pa.ipc.read_message(self._schema.serialize()))

    def batch(self, batch: pa.RecordBatch) -> Iterator[bytes]:
        """One batch, with dictionaries before it where there are new ones."""
        if self._writer is None:
            yield _frame(pa.ipc.read_message(batch.serialize()))
            return
        self._writer.write_batch(batch)
        yield from self._written()

    def _written(self) -> Iterator[bytes]:
        """What the writer wrote since the last call."""
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        reader = pa.ipc.MessageReader.open_stream(data)
        while reader is not None:
            try:
                message = reader.read_next_message()
            except StopIteration:
                return
            yield _frame(message)


def _has_dictionaries(schema: pa.Schema) -> bool:
    return any(_is_dictionary(field.type) for field in schema)


def _is_dictionary(kind: pa.DataType) -> bool:
    inner = getattr(kind, "storage_type", kind)
    if pa.types.is_dictionary(inner):
        return True
    return any(_is_dictionary(inner.field(n).type) for n in range(inner.num_fields))


def _frame(message: pa.Message) -> bytes:
    parts = [_HEADER, _varint(message.metadata.size), message.metadata]
    if message.body is not None and message.body.size:
        parts += [_BODY, _varint(message.body.size), message.body]
    return b"".join(parts)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
