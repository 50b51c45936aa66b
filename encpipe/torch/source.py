"""Where a loader's rows come from: row groups by number."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias, runtime_checkable

import pyarrow as pa

from encpipe.dataset import Dataset, Filter
from encpipe.errors import ConfigError
from encpipe.rowgroups import RowGroups
from encpipe.scan import Scan

_Kept: TypeAlias = (
    "tuple[Dataset, Sequence[str] | None, Filter | None, int, pa.Schema, tuple[int, ...] | None]"
)


@runtime_checkable
class RowGroupSource(Protocol):
    """The only door that rows come in by. encpipe has one source, `ScanSource`; tests and benchmarks feed
    plaintext through others.

    `read` is called from several threads. `close` releases what reading holds; a later `read` opens it again.
    """

    @property
    def dataset_id(self) -> str:
        """Whose rows these are."""
        ...

    @property
    def core_digest(self) -> str:
        """Names the state of the data; the order depends on it."""
        ...

    @property
    def generation(self) -> int:
        """The generation of that state."""
        ...

    @property
    def missing_keys(self) -> tuple[str, ...]:
        """Key names whose columns are left out or null."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """The schema of what `read` gives."""
        ...

    @property
    def rows(self) -> Sequence[int]:
        """How many rows `read` gives for each row group."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each row group in its file, all columns, estimated; fixed for a state of the data."""
        ...

    def read(self, row_group: int) -> pa.Table:
        """The rows of a row group, in their order, in memory of their own: batches may be views of it, and
        may be written to."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


def column_names(columns: Collection[str] | None) -> tuple[str, ...] | None:
    """The names, to be kept. Raises `ConfigError` `filter` for a single string."""
    if isinstance(columns, str):
        raise ConfigError(
            f"columns is {columns!r}: it is a list of names", hint=f"columns=[{columns!r}]", code="filter"
        )
    if isinstance(columns, set | frozenset):
        columns = sorted(columns)  # the order of a set changes from process to process
    return None if columns is None else tuple(columns)


class ScanSource:
    """The chosen columns of a dataset, and the rows for which the filter holds.

    With a filter the first look at `rows` counts them: the filter's columns are read once, by `threads`
    threads. Counts go along in a pickle, so worker processes do not count again.
    """

    def __init__(
        self, dataset: Dataset, columns: Sequence[str] | None, filter: Filter | None, threads: int
    ) -> None:
        columns = column_names(columns)
        scan = dataset.scan(columns, filter, threads=threads)
        self.__setstate__((dataset, columns, filter, threads, scan.schema, None))
        self._scan: Scan | None = scan

    def __getstate__(self) -> _Kept:
        return self._dataset, self._columns, self._filter, self._threads, self.schema, self._rows

    def __setstate__(self, state: _Kept) -> None:
        """Nothing is opened before it is needed: a worker process can then tell what went wrong."""
        self._dataset, self._columns, self._filter, self._threads, self.schema, self._rows = state
        self._lock = threading.RLock()  # a loop left to the garbage collector may end inside of `_groups`
        self._scan = None
        self._open: RowGroups | None = None

    def reopened(self) -> ScanSource:
        """The same rows, for a forked process: nothing that the parent has open is used."""
        found = object.__new__(ScanSource)
        found.__setstate__(self.__getstate__())
        return found

    @property
    def dataset_id(self) -> str:
        return self._dataset.dataset_id

    @property
    def core_digest(self) -> str:
        return self._dataset.core_digest

    @property
    def generation(self) -> int:
        return self._dataset.generation

    @property
    def missing_keys(self) -> tuple[str, ...]:
        return self._dataset.missing_keys

    @property
    def rows(self) -> Sequence[int]:
        if self._rows is None:
            groups = self._groups()
            if groups.filtered:
                with ThreadPoolExecutor(self._threads, thread_name_prefix="encpipe-count") as pool:
                    self._rows = tuple(pool.map(groups.count, range(len(groups))))
            else:
                self._rows = tuple(groups.rows)
        return self._rows

    @property
    def sizes(self) -> Sequence[int]:
        return self._groups().sizes

    def read(self, row_group: int) -> pa.Table:
        while True:
            groups = self._groups()
            try:
                return groups.read(row_group)
            except ValueError:
                with self._lock:
                    if groups is self._open:
                        raise
                # closed by another loop over these rows, which ended meanwhile: they are opened again

    def close(self) -> None:
        with self._lock:
            groups, self._open = self._open, None
        if groups is not None:
            groups.close()

    def _groups(self) -> RowGroups:
        with self._lock:
            if self._scan is None:
                self._scan = self._dataset.scan(self._columns, self._filter, threads=self._threads)
            if self._open is None:
                self._open = self._scan.row_groups()
            return self._open
