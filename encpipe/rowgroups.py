"""Row groups of a dataset, each read by its number, by any number of threads, in any order.

What is read is decrypted, projected, filled in (partition values, nulls) and filtered; nothing is fetched
that is not asked for, and no row group is kept. Open files are kept for the next read of the same file.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from encpipe.filelist import FileEntry
from encpipe.parquet import Handle, SealedFile
from encpipe.projection import Projection, filter_columns, filter_failure, partition_value

if TYPE_CHECKING:
    import pyarrow.compute as pc

Opener = Callable[[FileEntry], SealedFile]

MAX_OPEN_FILES: Final = 64
"""Handles that stay open. Shuffled reading comes back to the same few dozen files; each handle costs a
descriptor, of 1,024 that a process commonly has, and about 1.5 kB for each column chunk of its file."""


@dataclass(frozen=True)
class Plan:
    """What to read: files in order, the columns for filter and result together, and what comes out.

    `read` covers the filter's columns too, `out` is the result; `filter_leaves` are the leaves in the files
    that the filter refers to. `open_files` may stay open between reads.
    """

    files: tuple[FileEntry, ...]
    open_file: Opener
    read: Projection
    out: pa.Schema
    full_schema: pa.Schema
    filter: pc.Expression | None
    filter_leaves: tuple[str, ...]
    threads: int
    open_files: int = MAX_OPEN_FILES


class RowGroups:
    """The row groups of a plan's files, numbered from 0 in file order. Any number of threads may use it.

    At most `open_files` handles stay open, or one for each thread that is reading. To be closed; reads that
    are under way then finish.
    """

    def __init__(self, plan: Plan, *, open_files: int = MAX_OPEN_FILES) -> None:
        self._plan = plan
        self._handles = _Handles(min(open_files, plan.open_files))
        self._starts = list(itertools.accumulate((len(f.row_groups) for f in plan.files), initial=0))
        self._lock = threading.Lock()
        self._judging: dict[int, threading.Lock] = {}
        self._judged: dict[int, frozenset[int]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def schema(self) -> pa.Schema:
        """The schema of what `read` gives."""
        return self._plan.out

    @property
    def filtered(self) -> bool:
        """Whether `read` may give fewer rows than `rows` says."""
        return self._plan.filter is not None

    @cached_property
    def rows(self) -> Sequence[int]:
        """The rows of each row group as committed, before the filter."""
        return tuple(rows for entry in self._plan.files for rows in entry.row_groups)

    @cached_property
    def sizes(self) -> Sequence[int]:
        """Encrypted bytes of each row group with all its columns: its file's size by share of rows."""
        return tuple(
            entry.size * rows // max(entry.rows, 1) for entry in self._plan.files for rows in entry.row_groups
        )

    def read(self, index: int) -> pa.Table:
        """The rows of a row group that the filter keeps.

        Raises `IntegrityError` for a file or row group that is not as committed, `StorageError`, a
        `KmsError` when a key is asked for again (`max_key_age`) and refused, or `ConfigError` `filter` where
        the filter cannot be evaluated on these rows; `ValueError` after `close`.
        """
        plan = self._plan
        return self._filtered(index, plan.read.leaves, plan.read.schema).select(plan.out.names)

    def count(self, index: int) -> int:
        """How many rows of a row group the filter keeps.

        Reads only the filter's columns, and nothing where the statistics rule the row group out or there is
        no filter. Raises what `read` raises.
        """
        plan = self._plan
        if plan.filter is None:
            return self.rows[index]
        if plan.filter_leaves and index not in self._survivors(self._file(index)):
            return 0
        return len(self._filtered(index, plan.filter_leaves, self._filter_schema))

    def in_file(self, file: int) -> range:
        """The row groups of the plan's file of this number."""
        return range(self._starts[file], self._starts[file + 1])

    def surviving(self, file: int) -> Sequence[int]:
        """The row groups of a file that its statistics do not rule out, in order.

        No data is read, and without a filter on columns in the file not even the file. Raises what `read`
        raises.
        """
        return sorted(self._survivors(file)) if self._plan.filter_leaves else self.in_file(file)

    def codec(self, file: int) -> str | None:
        """How the plan's file of this number is compressed, as `SealedWriter` takes it; None without rows or
        columns to read. Raises what `read` raises."""
        plan = self._plan
        if not plan.read.leaves:
            return None
        with self._handles.lend(file, plan.open_file(plan.files[file]).open) as handle:
            return handle.codec(plan.read.leaves)

    def close(self) -> None:
        """Close all files; those that are being read are closed when the read ends. Idempotent."""
        self._handles.close()

    def __enter__(self) -> RowGroups:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _file(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"row group {index} of {len(self)}")
        return bisect_right(self._starts, index) - 1

    def _survivors(self, file: int) -> frozenset[int]:
        with self._lock:
            lock = self._judging.setdefault(file, threading.Lock())
        with lock:
            found = self._judged.get(file)
            if found is None:
                found = self._judged[file] = self._judge(file)
        return found

    def _judge(self, file: int) -> frozenset[int]:
        from encpipe import fragments

        plan, groups = self._plan, self.in_file(file)
        self._handles.check_open()
        sealed = plan.open_file(plan.files[file])
        found = fragments.surviving(sealed, plan.filter, leaves=plan.filter_leaves, schema=plan.full_schema)
        return frozenset(groups[n] for n in found)

    @cached_property
    def _filter_schema(self) -> pa.Schema:
        plan = self._plan
        return pa.schema([field for field in plan.read.schema if field.name in self._filter_columns])

    @cached_property
    def _filter_columns(self) -> Sequence[str]:
        return filter_columns(self._plan.filter, self._plan.full_schema)

    def _filtered(self, index: int, leaves: Sequence[str], schema: pa.Schema) -> pa.Table:
        file = self._file(index)
        entry, row_group = self._plan.files[file], index - self._starts[file]
        table = None
        if leaves:
            with self._handles.lend(file, self._plan.open_file(entry).open) as handle:
                table = handle.read(row_group, leaves)
        complete = _complete(table, entry.row_groups[row_group], entry, schema)
        if self._plan.filter is None:
            return complete
        try:
            return complete.filter(self._plan.filter)
        except pa.ArrowException as error:
            raise filter_failure(error, self._filter_columns, entry.path) from None


class _Handles:
    """Open files. A handle belongs to one reader until it is given back (docs/adr/0001)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[tuple[int, Handle]] = []
        self._lent = 0
        self._closed = False

    @contextlib.contextmanager
    def lend(self, file: int, open_file: Callable[[], Handle]) -> Iterator[Handle]:
        """A handle of this file for one read. One whose read raises is closed and not lent again."""
        handle = self._take(file)
        try:
            if handle is None:
                handle = open_file()
            yield handle
        except BaseException:
            with self._lock:
                self._lent -= 1
            if handle is not None:
                handle.close()
            raise
        self._give_back(file, handle)

    def _take(self, file: int) -> Handle | None:
        with self._lock:
            self.check_open()
            self._lent += 1
            for n in reversed(range(len(self._idle))):
                if self._idle[n][0] == file:
                    return self._idle.pop(n)[1]
            surplus = self._surplus()
        _close(surplus)
        return None

    def _give_back(self, file: int, handle: Handle) -> None:
        with self._lock:
            self._lent -= 1
            self._idle.append((file, handle))
            surplus = self._surplus()
        _close(surplus)

    def _surplus(self) -> list[tuple[int, Handle]]:
        """Take out the handles above the limit, those that were used longest ago; once closed, all."""
        count = len(self._idle) if self._closed else max(len(self._idle) + self._lent - self._limit, 0)
        surplus, self._idle = self._idle[:count], self._idle[count:]
        return surplus

    def check_open(self) -> None:
        """Raise `ValueError` after `close`, as Python's files do."""
        if self._closed:
            raise ValueError("these row groups are closed")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            surplus = self._surplus()
        _close(surplus)


def _close(handles: Sequence[tuple[int, Handle]]) -> None:
    for _, handle in handles:
        handle.close()


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
