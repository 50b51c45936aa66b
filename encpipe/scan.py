"""Reading: row groups decrypted by a few threads, in order, with nothing fetched that is not asked for.

A row group is skipped when the partition values or its statistics rule the filter out. At most `threads` + 2
row groups are in memory. Threads and file handles end with the iteration, also when it is broken off.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from encpipe.filelist import FileEntry
from encpipe.parquet import Handle, SealedFile
from encpipe.projection import Projection, partition_value

if TYPE_CHECKING:
    import pyarrow.compute as pc

Opener = Callable[[FileEntry], SealedFile]


@dataclass(frozen=True)
class Plan:
    """What to read: files in order, the columns for filter and result together, and what comes out.

    `read` covers the filter's columns too, `out` is the result; `filter_leaves` are the leaves in the files
    that the filter refers to.
    """

    files: tuple[FileEntry, ...]
    open_file: Opener
    read: Projection
    out: pa.Schema
    full_schema: pa.Schema
    filter: pc.Expression | None
    filter_leaves: tuple[str, ...]
    threads: int


class Scan:
    """The rows of a dataset, as often as it is iterated. Also an Arrow stream (`__arrow_c_stream__`)."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows this gives."""
        return self._plan.out

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for table in self.tables():
            yield from table.to_batches()

    def tables(self) -> Generator[pa.Table, None, None]:
        """One table for each row group that has rows left, in file order."""
        return _Run(self._plan).tables()

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows as an Arrow stream, read while it is consumed."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def to_table(self) -> pa.Table:
        """All rows in memory."""
        tables = list(self.tables())
        return pa.concat_tables(tables) if tables else self.schema.empty_table()

    def count_rows(self) -> int:
        """How many rows this gives. Without a filter no file is opened."""
        if self._plan.filter is None:
            return sum(entry.rows for entry in self._plan.files)
        return sum(len(table) for table in self.tables())

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_reader().__arrow_c_stream__(requested_schema)


class _Run:
    """One iteration over a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._handles: dict[int, tuple[SealedFile, Handle]] = {}

    def tables(self) -> Generator[pa.Table, None, None]:
        pool = ThreadPoolExecutor(self._plan.threads, thread_name_prefix="encpipe-scan")
        window: deque[Future[pa.Table]] = deque()
        try:
            for file, row_group in self._row_groups(pool):
                window.append(pool.submit(self._read, file, row_group))
                if len(window) > self._plan.threads + 1:
                    yield from _with_rows(window.popleft().result())
            while window:
                yield from _with_rows(window.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            window.clear()
            for _, handle in self._handles.values():
                handle.close()
            self._handles.clear()

    def _row_groups(self, pool: ThreadPoolExecutor) -> Iterator[tuple[SealedFile, int]]:
        ahead: deque[tuple[SealedFile, Future[Sequence[int]]]] = deque()
        for entry in self._plan.files:
            file = self._plan.open_file(entry)
            if not self._plan.filter_leaves:
                yield from ((file, n) for n in range(len(entry.row_groups)))
                continue
            ahead.append((file, pool.submit(self._surviving, file)))
            if len(ahead) > self._plan.threads:
                yield from _planned(*ahead.popleft())
        while ahead:
            yield from _planned(*ahead.popleft())

    def _surviving(self, file: SealedFile) -> Sequence[int]:
        from encpipe import fragments

        plan = self._plan
        return fragments.surviving(file, plan.filter, leaves=plan.filter_leaves, schema=plan.full_schema)

    def _read(self, file: SealedFile, row_group: int) -> pa.Table:
        plan = self._plan
        rows = file.entry.row_groups[row_group]
        table = None
        if plan.read.leaves:
            table = self._handle(file).read(row_group, plan.read.leaves)
        complete = _complete(table, rows, file.entry, plan.read.schema)
        if plan.filter is not None:
            complete = complete.filter(plan.filter)
        return complete.select(plan.out.names)

    def _handle(self, file: SealedFile) -> Handle:
        thread = threading.get_ident()
        with self._lock:
            held = self._handles.get(thread)
        if held is not None and held[0] is file:
            return held[1]
        handle = file.open()
        with self._lock:
            self._handles[thread] = (file, handle)
        if held is not None:
            held[1].close()
        return handle


def _planned(file: SealedFile, row_groups: Future[Sequence[int]]) -> Iterator[tuple[SealedFile, int]]:
    return ((file, n) for n in row_groups.result())


def _with_rows(table: pa.Table) -> Iterator[pa.Table]:
    if len(table):
        yield table


def _complete(table: pa.Table | None, rows: int, entry: FileEntry, schema: pa.Schema) -> pa.Table:
    """The table in the order of `schema`, with partition values and null columns filled in."""
    if not schema.names:
        return pa.table({"": pa.nulls(rows)}).select([])
    read = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))
    if list(read) == schema.names:
        return pa.Table.from_arrays(list(read.values()), schema=schema)
    arrays = []
    for field in schema:
        if field.name in read:
            arrays.append(read[field.name])
        elif field.name in entry.partition:
            value = partition_value(entry.partition[field.name], field.type)
            arrays.append(pa.chunked_array([pa.repeat(value, rows).cast(field.type)]))
        else:
            arrays.append(pa.chunked_array([pa.nulls(rows, field.type)]))
    return pa.Table.from_arrays(arrays, schema=schema)
