"""JSON lines as a source: one object a line.

Fields and types are inferred by PyArrow from the first `BLOCK_BYTES` of each file, or given by a schema; a
later field that is not among them, or a value of another type, is an error that names its line.
A missing field is null. Blank lines are no rows. Text is UTF-8.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
from pyarrow import json

from encpipe.errors import EncpipeError
from encpipe.sources.base import FAILURES, READ_ERRORS, TO_UTF8, SourceReader, unreadable
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
        text, found = _with_line(located, error, rows)
        return unreadable(located.name, text, after_row=None if found else rows, hint=_HINT)

    return BatchReader(
        _checked(reader, located.name),
        target,
        row_group_bytes,
        name=located.name,
        close=close,
        explain=explain,
    )


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
        raise unreadable(located.name, _with_line(located, error, 0)[0], hint=hint) from None


def _checked(batches: json.JSONStreamingReader, name: str) -> Iterator[pa.RecordBatch]:
    """PyArrow takes any bytes for text in JSON, and would write them as text."""
    for batch in batches:
        for column, values in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values.validate(full=True)
            except pa.ArrowInvalid:
                raise unreadable(
                    name, f"values of its column {column!r} are not UTF-8", hint=TO_UTF8
                ) from None
        yield batch
        del batch


def _with_line(located: Located, error: Exception, rows: int) -> tuple[str, bool]:
    """The text of a parse error after `rows` rows with the line it means, and whether it means one.

    PyArrow counts rows from 0 and from the start of a block.
    """
    found = _ROW.search(str(error))
    if found is None:
        return str(error), False
    row = rows + int(found[1])
    line = _line_of(located, row)
    where = f" in row {row + 1}" if line is None else f" in line {line}"
    return _ROW.sub(where, str(error)), True


def _line_of(located: Located, row: int) -> int | None:
    """The number, from 1, of the line that holds a row, from 0; None if the file cannot be read again."""
    try:
        with located.open_stream() as stream:
            for number, line in enumerate(io.BufferedReader(stream), start=1):
                row -= bool(line.strip())
                if row < 0:
                    return number
    except FAILURES:
        pass
    return None
