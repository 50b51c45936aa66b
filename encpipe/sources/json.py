"""JSON lines as a source: one object a line.

Fields and types are inferred by PyArrow from the first `BLOCK_BYTES` of each file, or given by a schema; a
later field that is not among them, or a value of another type, is an error that names its row.
A missing field is null.
"""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa
from pyarrow import json

from encpipe.errors import EncpipeError
from encpipe.sources.base import READ_ERRORS, SourceReader, unreadable
from encpipe.sources.locate import BLOCK_BYTES, Located
from encpipe.sources.stream import BatchReader
from encpipe.sources.unify import Target, all_types

_ROW: Final = re.compile(r" in row (\d+)")
_HINT: Final = "give the fields and their types with schema="


def schema_of(located: Located, given: pa.Schema | None = None) -> pa.Schema:
    """The schema inferred from the first block, or of `given` for its fields. Raises `source-unreadable`."""
    with located.open_stream() as stream, _open(located, stream, given, "infer", threads=False) as reader:
        return reader.schema


def open_reader(located: Located, target: Target, row_group_bytes: int, *, threads: bool) -> SourceReader:
    """The reader of one file of JSON lines."""
    stream = located.open_stream()
    try:
        reader = _open(located, stream, pa.schema(list(all_types(target).items())), "error", threads=threads)
    except EncpipeError:
        stream.close()
        raise

    def close() -> None:
        reader.close()
        stream.close()

    def explain(error: Exception, rows: int) -> EncpipeError:
        text, found = _ROW.subn(lambda m: f" in row {rows + int(m[1]) + 1}", str(error))
        return unreadable(located.name, text, after_row=None if found else rows, hint=_HINT)

    return BatchReader(iter(reader), target, row_group_bytes, name=located.name, close=close, explain=explain)


def _open(
    located: Located, stream: pa.NativeFile, schema: pa.Schema | None, unexpected: str, *, threads: bool
) -> json.JSONStreamingReader:
    try:
        return json.open_json(
            stream,
            read_options=json.ReadOptions(block_size=BLOCK_BYTES, use_threads=threads),
            parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
        )
    except READ_ERRORS as error:
        hint = "a JSON source holds one object a line, not one array"
        raise unreadable(located.name, error, hint=hint) from None
