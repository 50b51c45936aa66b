"""Arrow IPC files and streams as a source (and so Feather V2). The first bytes tell which of both it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa
from pyarrow import ipc

from encpipe.errors import EncpipeError
from encpipe.sources.base import READ_ERRORS, SourceReader, unreadable
from encpipe.sources.locate import Located
from encpipe.sources.stream import BatchReader
from encpipe.sources.unify import Target

_FILE_MAGIC: Final = b"ARROW1"
_FEATHER_V1_MAGIC: Final = b"FEA1"


def schema_of(located: Located, given: pa.Schema | None = None) -> pa.Schema:  # noqa: ARG001 - files say theirs
    """The schema of an IPC file or stream. Raises `source-unreadable`."""
    schema, _, close = _open(located)
    close()
    return schema


def open_reader(located: Located, target: Target, row_group_bytes: int, *, threads: bool) -> SourceReader:  # noqa: ARG001 - IPC decodes nothing
    """The reader of one IPC file or stream."""
    _, batches, close = _open(located)
    return BatchReader(batches, target, row_group_bytes, name=located.name, close=close)


def _open(located: Located) -> tuple[pa.Schema, Iterator[pa.RecordBatch], Callable[[], object]]:
    source = located.open_input()
    try:
        start = source.read_at(8, 0)
        source.seek(0)
        if start[:4] == _FEATHER_V1_MAGIC:
            raise unreadable(located.name, "it is Feather V1", hint="write it again with Feather V2")
        if start[:6] == _FILE_MAGIC:
            reader = ipc.open_file(source)
            return reader.schema, _batches(reader), source.close
        stream = ipc.open_stream(source)
        return stream.schema, iter(stream), source.close
    except EncpipeError:
        source.close()
        raise
    except READ_ERRORS as error:
        source.close()
        raise unreadable(located.name, error, hint="is it an Arrow IPC file or stream?") from None


def _batches(reader: ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)
