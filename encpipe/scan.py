"""Reading in order: row groups decrypted by a few threads, with nothing fetched that is not asked for.

A row group is skipped when the partition values or its statistics rule the filter out. At most `threads` + 2
row groups are in memory. Threads and file handles end with the iteration, also when it is broken off.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from encpipe.rowgroups import Plan, RowGroups

Result = TypeVar("Result")


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
        with contextlib.closing(self._each(RowGroups.read)) as tables:
            yield from filter(len, tables)

    def _each(self, work: Callable[[RowGroups, int], Result]) -> Generator[Result, None, None]:
        """What `work` makes of each row group that is not ruled out, in file order."""
        threads = self._plan.threads
        window: deque[Future[Result]] = deque()
        with RowGroups(self._plan, open_files=threads) as groups:
            pool = ThreadPoolExecutor(threads, thread_name_prefix="encpipe-scan")
            try:
                for index in self._indices(groups, pool):
                    window.append(pool.submit(work, groups, index))
                    if len(window) > threads + 1:
                        yield window.popleft().result()
                while window:
                    yield window.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                window.clear()

    def _indices(self, groups: RowGroups, pool: ThreadPoolExecutor) -> Iterator[int]:
        """The row groups to read, their statistics looked at a few files ahead."""
        if not self._plan.filter_leaves:
            yield from range(len(groups))
            return
        ahead: deque[Future[Sequence[int]]] = deque()
        for file in range(len(self._plan.files)):
            ahead.append(pool.submit(groups.surviving, file))
            if len(ahead) > self._plan.threads:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()

    def row_groups(self) -> RowGroups:
        """The row groups for reading in any order by any number of threads; to be closed."""
        return RowGroups(self._plan)

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows as an Arrow stream, read while it is consumed."""
        return pa.RecordBatchReader.from_batches(self.schema, iter(self))

    def to_table(self) -> pa.Table:
        """All rows in memory."""
        return joined(list(self.tables()), self.schema)

    def count_rows(self) -> int:
        """How many rows this gives. Without a filter no file is opened."""
        if self._plan.filter is None:
            return sum(entry.rows for entry in self._plan.files)
        return sum(self._each(RowGroups.count))

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_reader().__arrow_c_stream__(requested_schema)


def joined(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """One table of all rows. Without columns it still has their number, which PyArrow drops."""
    if schema.names:
        return pa.concat_tables(tables) if tables else schema.empty_table()
    rows = pa.nulls(sum(map(len, tables)))
    return pa.table({"": rows}, metadata=schema.metadata).select([])
