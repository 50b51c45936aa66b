"""CSV files with a header line as a source.

Types are inferred by PyArrow from the first `BLOCK_BYTES` of each file, or given by a schema; a later value
of another type is an error that names its row. `NA`, `NULL`, `nan` and the empty text are null except in text
columns. Quoted values may hold newlines; blank lines are no rows, as for PyArrow.
"""

from __future__ import annotations

import pyarrow as pa
from pyarrow import csv

from encpipe.errors import EncpipeError
from encpipe.sources.base import READ_ERRORS, SourceReader, unreadable
from encpipe.sources.locate import BLOCK_BYTES, Located
from encpipe.sources.stream import BatchReader
from encpipe.sources.unify import Target, all_types

_HINT = "mend the row, or give the column's type with schema="


def schema_of(located: Located, given: pa.Schema | None = None) -> pa.Schema:
    """The schema inferred from the first block, or of `given` for its columns. Raises `source-unreadable`."""
    with located.open_stream() as stream:
        types = {} if given is None else dict(zip(given.names, given.types, strict=True))
        with _open(located, stream, types, threads=False) as reader:
            return reader.schema


def open_reader(located: Located, target: Target, row_group_bytes: int, *, threads: bool) -> SourceReader:
    """The reader of one CSV file."""
    stream = located.open_stream()
    try:
        reader = _open(located, stream, all_types(target), threads=threads)
    except EncpipeError:
        stream.close()
        raise

    def close() -> None:
        reader.close()
        stream.close()

    def explain(error: Exception, rows: int) -> EncpipeError:
        found = str(error) if "Row #" in str(error) else _find_row(located, target)
        return unreadable(located.name, found or error, after_row=None if found else rows, hint=_HINT)

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
        raise unreadable(located.name, error, hint="is it CSV with a header line?") from None


def _find_row(located: Located, target: Target) -> str:
    """PyArrow counts rows only without threads: read again up to the damage."""
    with located.open_stream() as stream, _open(located, stream, all_types(target), threads=False) as reader:
        try:
            for _ in reader:
                pass
        except READ_ERRORS as error:
            return str(error)
    return ""
