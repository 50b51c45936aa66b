"""CSV files with a header line as a source.

Types are inferred by PyArrow from the first `BLOCK_BYTES` of each file, or given by a schema; a later value
of another type is an error that names its row. `NA`, `NULL`, `nan` and the empty text are null except in text
columns. Quoted values may hold newlines; blank lines are no rows, as for PyArrow. Text is UTF-8: a column
whose values are not is no column of bytes, unless the schema says so. The separator is the comma: a file
whose only column has ";" or a tab in its name is refused, unless the schema has that column.
"""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa
from pyarrow import csv

from encpipe.errors import EncpipeError
from encpipe.sources.base import FAILURES, READ_ERRORS, TO_UTF8, SourceReader, unreadable
from encpipe.sources.locate import BLOCK_BYTES, Located
from encpipe.sources.stream import BatchReader
from encpipe.sources.unify import Target, all_types, check_names

_HINT: Final = "mend the row, or give the column's type with schema="
_NOT_UTF8: Final = f"{TO_UTF8}, or give the column's type with schema="
_HEADER_BYTES: Final = 1 << 16
_COLUMN: Final = re.compile(r"In CSV column #(\d+): ")


def schema_of(located: Located, given: pa.Schema | None = None) -> pa.Schema:
    """The schema inferred from the first block, or of `given` for its columns. Raises `source-unreadable`."""
    with located.open_stream() as stream:
        types = {} if given is None else dict(zip(given.names, given.types, strict=True))
        with _open(located, stream, types, threads=False) as reader:
            schema = reader.schema
    check_names(located.name, schema)
    if len(schema) == 1 and _other_separator(schema.names[0]) and schema.names[0] not in types:
        why = f"its only column is named {schema.names[0][:80]!r}"
        raise unreadable(located.name, why, hint=_separator_hint(schema.names[0]))
    for column in schema:
        if pa.types.is_binary(column.type) and column.name not in types:
            why = f"values of its column {column.name!r} are not UTF-8"
            raise unreadable(located.name, why, hint=_NOT_UTF8)
    return schema


def open_reader(located: Located, target: Target, row_group_bytes: int, *, threads: bool) -> SourceReader:
    """The reader of one CSV file."""
    stream = located.open_stream()
    try:
        reader = _open(located, stream, all_types(target), threads=threads)
    except EncpipeError:
        stream.close()
        raise
    names = reader.schema.names

    def close() -> None:
        reader.close()
        stream.close()

    def explain(error: Exception, rows: int) -> EncpipeError:
        found = str(error) if "Row #" in str(error) else _find_row(located, target)
        text = _COLUMN.sub(lambda m: f"column {names[int(m[1])]!r}: ", found or str(error))
        hint = _NOT_UTF8 if "invalid UTF8" in text else _HINT
        return unreadable(located.name, text, after_row=None if found else rows, hint=hint)

    return BatchReader(iter(reader), target, row_group_bytes, name=located.name, close=close, explain=explain)


def _open(
    located: Located, stream: pa.NativeFile, types: dict[str, pa.DataType], *, threads: bool
) -> csv.CSVStreamingReader:
    try:
        return csv.open_csv(
            stream,
            read_options=csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=threads),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=types),
        )
    except READ_ERRORS as error:
        hint = _separator_hint(_header(located)) or "is it CSV with a header line?"
        raise unreadable(located.name, error, hint=hint) from None


def _header(located: Located) -> str:
    """The first line, as far as it matters; "" if it cannot be read."""
    try:
        with located.open_stream() as stream:
            return bytes(stream.read(_HEADER_BYTES)).partition(b"\n")[0].decode("utf-8", "replace")
    except FAILURES:
        return ""


def _other_separator(header: str) -> str:
    return "" if "," in header else next((mark for mark in ";\t" if mark in header), "")


def _separator_hint(header: str) -> str:
    mark = _other_separator(header)
    return (
        f"is the separator {mark!r}? encpipe reads commas (if not, give the column's type with schema=)"
        if mark
        else ""
    )


def _find_row(located: Located, target: Target) -> str:
    """PyArrow counts rows only without threads: read again up to the damage."""
    with located.open_stream() as stream, _open(located, stream, all_types(target), threads=False) as reader:
        try:
            for _ in reader:
                pass
        except READ_ERRORS as error:
            return str(error)
    return ""
