"""Record batches of any size as row groups of the right size; objects that stream Arrow as a source."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pyarrow as pa

from encpipe.errors import ConfigError, EncpipeError
from encpipe.filelist import MAX_ROW_GROUPS
from encpipe.sources.base import READ_ERRORS, Source, SourceFile, SourceReader, unreadable, unsupported
from encpipe.sources.unify import Target, unify
from encpipe.sources.writable import check_writable

MAX_ROWS: Final = 1 << 20
"""Rows of one row group, for sources that have none of their own (PyArrow's default)."""


def regroup(batches: Iterable[pa.RecordBatch], row_group_bytes: int, *, name: str) -> Iterator[pa.Table]:
    """The rows of `batches` as tables of about `row_group_bytes` and at most `MAX_ROWS`, none empty.

    Copies nothing. Raises `unsupported` beyond `MAX_ROW_GROUPS` tables.
    """
    held: list[pa.RecordBatch] = []
    rows = size = made = 0
    for piece, piece_bytes in _pieces(batches, row_group_bytes):
        if held and (size + piece_bytes > row_group_bytes or rows + piece.num_rows > MAX_ROWS):
            made = _count(made, name)
            table, held, rows, size = _table(held), [], 0, 0
            yield table
            del table
        held.append(piece)
        rows += piece.num_rows
        size += piece_bytes
        del piece
    if held:
        _count(made, name)
        table, held = _table(held), []
        yield table


def _count(made: int, name: str) -> int:
    if made == MAX_ROW_GROUPS:
        raise unsupported(
            f"source {name!r} needs more than {MAX_ROW_GROUPS} row groups, the most an encrypted file holds",
            hint="raise the row group size, or split the source",
        )
    return made + 1


def _table(held: list[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(held)
    return table.unify_dictionaries() if len(held) > 1 else table


def _pieces(batches: Iterable[pa.RecordBatch], row_group_bytes: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Every batch that is not empty with its size, cut into even pieces where it is too large."""
    for batch in batches:
        rows, size = batch.num_rows, sum(_bytes(column) for column in batch.columns)
        count = min(rows, max(1, math.ceil(size / row_group_bytes), math.ceil(rows / MAX_ROWS)))
        step = math.ceil(rows / count) if count else 1
        for start in range(0, rows, step):
            piece = batch if count == 1 else batch.slice(start, step)
            yield piece, math.ceil(size * piece.num_rows / rows)
            del piece
        del batch


def _bytes(column: pa.Array) -> int:
    """Bytes of the rows; a dictionary is shared by all slices and left out."""
    return int(column.indices.nbytes if pa.types.is_dictionary(column.type) else column.nbytes)


class BatchReader(SourceReader):
    """Rows from an iterator of record batches.

    `close` releases what the batches come from; `explain(error, rows so far)` words what went wrong.
    """

    def __init__(
        self,
        batches: Iterator[pa.RecordBatch],
        target: Target,
        row_group_bytes: int,
        *,
        name: str,
        close: Callable[[], object],
        explain: Callable[[Exception, int], EncpipeError] | None = None,
    ) -> None:
        self.schema = target.schema
        self._batches = batches
        self._target = target
        self._row_group_bytes = row_group_bytes
        self._name = name
        self._close = close
        self._explain = explain

    def close(self) -> None:
        self._batches = iter(())
        self._close()

    def tables(self) -> Iterator[pa.Table]:
        for table in regroup(self._checked(), self._row_group_bytes, name=self._name):
            yield self._target.conform(table, self._name)
            del table

    def _checked(self) -> Iterator[pa.RecordBatch]:
        rows = 0
        while True:
            try:
                batch = next(self._batches, None)
            except EncpipeError:
                raise
            except READ_ERRORS as error:
                if self._explain is None:
                    raise unreadable(self._name, error, after_row=rows) from None
                raise self._explain(error, rows) from None
            if batch is None:
                return
            rows += batch.num_rows
            yield batch
            del batch


def from_object(source: object, row_group_bytes: int) -> Source:
    """The one-file source of an object with `__arrow_c_stream__`. It is read once and cannot resume.

    Raises `ConfigError` for any other object.
    """
    name = type(source).__name__
    try:
        stream: pa.RecordBatchReader = _stream(source)
        schema = unify([(name, stream.schema)])
    except READ_ERRORS as error:
        raise unreadable(name, error) from None
    check_writable(schema, name)
    opener = _Once(stream, Target(schema), row_group_bytes, name)
    return Source(schema, pa.schema([]), (SourceFile(name, {}, "", 0, opener),), resumable=False)


def _stream(source: Any) -> pa.RecordBatchReader:
    if not hasattr(source, "__arrow_c_stream__"):
        raise ConfigError(
            f"a source is a path, a URL or an object with __arrow_c_stream__, not {type(source).__name__}",
            hint="pass a PyArrow table, a record batch reader, a data frame or a DuckDB relation",
        )
    return pa.RecordBatchReader.from_stream(source)


class _Once:
    """Opens a stream the first time, and never again."""

    def __init__(self, stream: pa.RecordBatchReader, target: Target, row_group_bytes: int, name: str) -> None:
        self._stream: pa.RecordBatchReader | None = stream
        self._target = target
        self._row_group_bytes = row_group_bytes
        self._name = name
        self._lock = threading.Lock()

    def __call__(self, *, threads: bool) -> SourceReader:  # noqa: ARG002 - a stream decodes where it pleases
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is None:
            raise unreadable(self._name, "it is a stream and was read already", hint="pass a new object")
        batches = iter(stream)
        return BatchReader(batches, self._target, self._row_group_bytes, name=self._name, close=stream.close)
