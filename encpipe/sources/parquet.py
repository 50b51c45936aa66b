"""Parquet files as a source: row groups are kept where they are small enough, else split.

Memory is bounded by `row_group_bytes` of decoded values, read buffers and a page of each column (checked in
tests/unit/test_sources_memory.py): a row group too large is streamed, never read as a whole. Local files are
read with plain reads, not a memory map, whose pages would count against the process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe.errors import EncpipeError
from encpipe.filelist import MAX_ROW_GROUPS
from encpipe.sources.base import READ_ERRORS, SourceReader, unreadable, unsupported
from encpipe.sources.locate import Located
from encpipe.sources.unify import Target

STREAM_BUFFER_BYTES: Final = 16 << 20
"""Read buffers of all columns together while a large row group is streamed."""
_COLUMN_BUFFER_BYTES: Final = (16 << 10, 1 << 20)
"""Bounds of one column's read buffer."""
BATCHES_PER_SLICE: Final = 16
"""A slice is read in so many batches: less is held twice, and one of unexpectedly wide rows can end early."""
_WIDTH: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "FLOAT": 4, "DOUBLE": 8, "INT96": 8}
_OFFSET_BYTES: Final = 4


@dataclass(frozen=True)
class Step:
    """Row groups `first` to `last` (inclusive), read as one table, or as `slices` of about equal rows."""

    first: int
    last: int
    slices: int


def schema_of(located: Located, given: pa.Schema | None = None) -> pa.Schema:  # noqa: ARG001 - files say theirs
    """The Arrow schema of a Parquet file, from its footer. Raises `source-unreadable`."""
    with ParquetReader(located, None, row_group_bytes=0, threads=False) as reader:
        return reader.schema


def open_reader(located: Located, target: Target, row_group_bytes: int, *, threads: bool) -> SourceReader:
    """The reader of one Parquet file."""
    return ParquetReader(located, target, row_group_bytes=row_group_bytes, threads=threads)


class ParquetReader(SourceReader):
    """One Parquet file. Without a target its tables are as they stand in the file."""

    def __init__(
        self, located: Located, target: Target | None, *, row_group_bytes: int, threads: bool
    ) -> None:
        self._located = located
        self._target = target
        self._row_group_bytes = row_group_bytes
        self._threads = threads and located.is_local
        self._input = located.open_input()
        try:
            _check_magic(self._input, located)
            self._file: pq.ParquetFile = self._parquet(buffer_size=0)
            found = self._file.schema_arrow
        except EncpipeError:
            self.close()
            raise
        except READ_ERRORS as error:
            self.close()
            raise unreadable(located.name, error, hint="is it a whole Parquet file?") from None
        self.schema = found if target is None else target.schema

    def _parquet(self, *, buffer_size: int, metadata: Any = None) -> pq.ParquetFile:
        return pq.ParquetFile(self._input, metadata=metadata, pre_buffer=False, buffer_size=buffer_size)

    def close(self) -> None:
        self._input.close()

    def tables(self) -> Iterator[pa.Table]:
        steps = plan(self._file.metadata, self._row_group_bytes, name=self._located.name)
        reads = self._raw(steps)
        while True:
            try:
                table = next(reads, None)
            except READ_ERRORS as error:
                raise unreadable(self._located.name, error, hint="the file is damaged") from None
            if table is None:
                return
            yield table if self._target is None else self._target.conform(table, self._located.name)
            del table

    def _raw(self, steps: Iterator[Step]) -> Iterator[pa.Table]:
        streaming: pq.ParquetFile | None = None
        for step in steps:
            if step.slices == 1:
                groups = list(range(step.first, step.last + 1))
                yield self._file.read_row_groups(groups, use_threads=self._threads)
                continue
            if streaming is None:
                streaming = self._streaming()
            yield from self._slices(streaming, step)

    def _streaming(self) -> pq.ParquetFile:
        metadata = self._file.metadata
        least, most = _COLUMN_BUFFER_BYTES
        buffer = min(most, max(least, STREAM_BUFFER_BYTES // max(1, metadata.num_columns)))
        return self._parquet(buffer_size=buffer, metadata=metadata)

    def _slices(self, streaming: pq.ParquetFile, step: Step) -> Iterator[pa.Table]:
        rows = math.ceil(self._file.metadata.row_group(step.first).num_rows / step.slices)
        batches = streaming.iter_batches(
            batch_size=max(1, math.ceil(rows / BATCHES_PER_SLICE)),
            row_groups=[step.first],
            use_threads=self._threads,
        )
        held: list[pa.RecordBatch] = []
        held_rows = held_bytes = 0
        for batch in batches:
            held.append(batch)
            held_rows += batch.num_rows
            held_bytes += batch.nbytes
            del batch
            if held_rows >= rows or held_bytes >= self._row_group_bytes:
                table = pa.Table.from_batches(held)
                held, held_rows, held_bytes = [], 0, 0
                yield table
                del table
        if held_rows:
            yield pa.Table.from_batches(held)


def _check_magic(source: Any, located: Located) -> None:
    if source.size() != located.size:
        raise unreadable(located.name, "it changed since the source was opened", hint="start again")
    tail = source.read_at(4, located.size - 4) if located.size >= 12 else b""
    if tail == b"PARE":
        raise unreadable(
            located.name,
            "it is an encrypted Parquet file",
            hint="name the plaintext; an encpipe dataset is read with open_dataset or `encpipe decrypt`",
        )
    if tail != b"PAR1":
        raise unreadable(
            located.name,
            "it is not a Parquet file, or was cut",
            hint="give its format (--format, source_format=)",
        )


def plan(metadata: Any, row_group_bytes: int, *, name: str) -> Iterator[Step]:
    """How to read the row groups: each as it is, or split; merged only if the format's limit asks for it.

    Raises `unsupported` when even then there are more than `MAX_ROW_GROUPS`.
    """
    steps = [Step(i, i, n) for i, n in _slices_of_groups(metadata, row_group_bytes)]
    if sum(step.slices for step in steps) > MAX_ROW_GROUPS:
        steps = _merge(steps, metadata, row_group_bytes)
    total = sum(step.slices for step in steps)
    if total > MAX_ROW_GROUPS:
        raise unsupported(
            f"source file {name!r} needs {total} row groups; an encrypted file holds {MAX_ROW_GROUPS}",
            hint="raise the row group size, or split the file",
        )
    return iter(steps)


def _slices_of_groups(metadata: Any, row_group_bytes: int) -> Iterator[tuple[int, int]]:
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows:
            size = decoded_bytes(group)
            yield index, min(group.num_rows, max(1, math.ceil(size / row_group_bytes)))


def _merge(steps: list[Step], metadata: Any, row_group_bytes: int) -> list[Step]:
    merged: list[Step] = []
    room = 0
    for step in steps:
        size = decoded_bytes(metadata.row_group(step.first)) if step.slices == 1 else row_group_bytes
        if merged and step.slices == 1 and merged[-1].slices == 1 and size <= room:
            merged[-1] = Step(merged[-1].first, step.last, 1)
            room -= size
        else:
            merged.append(step)
            room = row_group_bytes - size
    return merged


def decoded_bytes(group: Any) -> int:
    """About how large the decoded row group is, in bytes: dictionaries and run lengths can hide a lot."""
    return max(
        int(group.total_byte_size), sum(_chunk_bytes(group.column(i)) for i in range(group.num_columns))
    )


def _chunk_bytes(chunk: Any) -> int:
    values = int(chunk.num_values)
    width = _WIDTH.get(chunk.physical_type)
    if width is not None:
        return values * width
    size = int(chunk.total_uncompressed_size)
    if not any("DICT" in encoding for encoding in chunk.encodings):
        return size
    stats = chunk.statistics
    if stats is None or not stats.has_min_max:
        return max(size, values * 2 * _OFFSET_BYTES)
    return max(size, values * (_OFFSET_BYTES + max(_length(stats.min), _length(stats.max))))


def _length(bound: object) -> int:
    return len(bound) if isinstance(bound, str | bytes) else 16
