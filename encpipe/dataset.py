"""An open dataset: what it holds, and its rows as scans, tables and Arrow streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from encpipe.access import Access
from encpipe.datafiles import DataFiles
from encpipe.errors import (
    ConfigError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    ShreddedError,
    UntrustedKeyError,
)
from encpipe.filelist import FileEntry
from encpipe.handover import OpenDataset
from encpipe.policy import Policy
from encpipe.projection import Columns, OnMissingKey
from encpipe.scan import Scan, joined
from encpipe.selection import Filter, select
from encpipe.state import State
from encpipe.storage import Storage

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["Dataset", "Filter", "Integrity"]

Integrity = Literal["pages", "file-hash"]


class Dataset:
    """An open dataset: one generation, for as long as this object lives. Safe to use from several threads.

    Also an Arrow stream (`__arrow_c_stream__`), so that DuckDB, Polars and pandas take it directly.

    Works on in a forked child, with the keys that are held at the fork. May be pickled: the pickle holds no
    key (see `MasterKeys` and `Access` for what it refuses), and the other process opens exactly this
    generation on first use, with the same columns missing; one whose key is refused only there is an error.
    A copy, deep or not, shares the keys and is to be closed by itself.
    """

    def __init__(
        self,
        access: Access,
        state: State,
        on_missing_key: OnMissingKey = "error",
        integrity: Integrity = "pages",
    ) -> None:
        if on_missing_key not in ("error", "skip", "null"):
            raise ConfigError(
                f"on_missing_key is {on_missing_key!r}: it is error, skip or null",
                hint='on_missing_key="error", "skip" or "null"',
            )
        if integrity not in get_args(Integrity):
            raise ConfigError(
                f"integrity is {integrity!r}: it is pages or file-hash", hint='integrity="file-hash"'
            )
        self._open = OpenDataset.of(access, state)
        self._data = DataFiles(self._open, whole=integrity == "file-hash")
        self._all: pa.Schema | None = None
        self._missing: Mapping[str, OnMissingKey] = self._decide(on_missing_key)

    @classmethod
    def _of(cls, opened: OpenDataset, missing: Mapping[str, OnMissingKey], whole: bool) -> Dataset:
        made = cls.__new__(cls)
        made._open, made._missing = opened, missing
        made._data, made._all = DataFiles(opened, whole=whole), None
        return made

    def __reduce__(self) -> tuple[Callable[..., Dataset], tuple[Any, ...]]:
        return Dataset._of, (self._open, self._missing, self._data.whole is not None)

    def __copy__(self) -> Dataset:
        return self._of(self._open.copy(), self._missing, self._data.whole is not None)

    def __deepcopy__(self, memo: object) -> Dataset:
        return self.__copy__()

    @property
    def _storage(self) -> Storage:
        return self._open.storage

    @property
    def _state(self) -> State:
        return self._open.state

    @property
    def _columns(self) -> Columns:
        return self._data.columns

    def _decide(self, outcome: OnMissingKey) -> dict[str, OnMissingKey]:
        if outcome == "error":
            return {}
        missing: dict[str, OnMissingKey] = {}
        for name in self._columns.key_names(self._state.files.columns):
            try:
                self._state.keys.kek(self._state.view.core.active(name).id)
            except (KeyAccessDeniedError, KeyNotFoundError, ShreddedError, UntrustedKeyError):
                missing[name] = outcome
        return missing

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows that a scan of all columns gives."""
        if self._all is None:
            self._all = self._columns.project(None, missing=self._missing).schema
        return self._all

    @property
    def url(self) -> str:
        """Where the dataset lies."""
        return self._storage.url

    @property
    def dataset_id(self) -> str:
        """32 hex digits, the same for the dataset's whole life."""
        return self._state.view.core.dataset_id

    @property
    def generation(self) -> int:
        """Which state of the data this is; counts up with every data commit."""
        return self._state.view.core.generation

    @property
    def core_digest(self) -> str:
        """SHA-256 (hex) that names this state of the data; a re-wrap does not change it."""
        return self._state.view.digest

    @property
    def num_rows(self) -> int:
        """Rows of all files together."""
        return sum(entry.rows for entry in self.files)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The data files, in the order they are read."""
        return self._state.files.files

    @property
    def partitions(self) -> tuple[str, ...]:
        """The partition columns: constant within a file, their values in the sealed file list."""
        return self._columns.partitions

    @property
    def policy(self) -> Policy:
        """The policy the dataset was written under."""
        return self._state.files.policy

    def key_names(self, columns: Sequence[str] | None = None) -> tuple[str, ...]:
        """The key names under which a read of these columns (default: all) decrypts, sorted."""
        leaves = self._columns.project(columns, missing=self._missing).leaves
        return tuple(sorted(self._columns.key_names(leaves)))

    @property
    def missing_keys(self) -> tuple[str, ...]:
        """The key names that could not be had, when `on_missing_key` is not `error`."""
        return tuple(sorted(self._missing))

    @property
    def kms_calls(self) -> int:
        """KMS calls of this process that gave a key so far: at most one for each key name."""
        return self._state.keys.unwraps

    def scan(
        self,
        columns: Sequence[str] | None = None,
        filter: Filter | None = None,
        *,
        files: Sequence[FileEntry] | None = None,
        threads: int | None = None,
    ) -> Scan:
        """The rows of the chosen columns for which the filter holds; read when it is iterated.

        `columns` are names or dotted paths of nested columns; `files` are some of `self.files` (default:
        all); `threads` row groups are decrypted at once (default: one for each core). Row groups are skipped
        by partition values and statistics. Raises `ConfigError` `filter` for what the dataset does not have,
        and a `KmsError` when a key it needs is refused.
        """
        chosen = select(self._columns, columns, filter, missing=self._missing)
        self._data.unwrap(chosen.read.leaves)
        kept = chosen.prune(self.files if files is None else tuple(files))
        return Scan(self._data.plan(chosen, kept, threads=threads))

    def check_file(self, entry: FileEntry) -> None:
        """Open a file and check size, footer and row counts; no data is read (all of it with `file-hash`).

        Raises `IntegrityError` or `StorageError`.
        """
        self._data.open(entry).open().close()

    def to_table(
        self,
        columns: Sequence[str] | None = None,
        filter: Filter | None = None,
    ) -> pa.Table:
        """All rows that `scan` gives, in memory."""
        return self.scan(columns, filter).to_table()

    def head(self, rows: int = 10, columns: Sequence[str] | None = None) -> pa.Table:
        """The first rows."""
        found: list[pa.Table] = []
        scan = self.scan(columns, threads=1)
        tables = scan.tables()
        while rows > sum(map(len, found)):
            table = next(tables, None)
            if table is None:
                break
            found.append(table)
        tables.close()
        return joined(found, scan.schema).slice(0, rows)

    def count_rows(self, filter: Filter | None = None) -> int:
        """How many rows there are for which the filter holds."""
        if filter is None:
            return self.num_rows
        return self.scan([], filter).count_rows()

    def to_pyarrow(
        self,
        columns: Sequence[str] | None = None,
        *,
        trust_storage_after_the_check: bool = False,
    ) -> ds.Dataset:
        """A PyArrow dataset over the encrypted files, each with its own keys.

        For tools that push projection and filter down into PyArrow (DuckDB, Polars); all others are better
        served by `scan`. Every file is opened and every column chunk's key checked here. PyArrow then opens
        the files anew at every scan, and in a dataset with column keys it takes a plaintext file that was put
        in their place meanwhile. So such a dataset is refused (`unsupported`) unless you say that you trust
        whoever can write the storage, with `trust_storage_after_the_check`; and so is every one with
        `integrity="file-hash"`.

        Columns of which a key is missing, or only a part was chosen, are left out: PyArrow reads whole
        columns. Needs a storage that Arrow itself can read (local, S3).
        """
        return self._data.as_pyarrow(columns, missing=self._missing, unchecked=trust_storage_after_the_check)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.scan().__arrow_c_stream__(requested_schema)

    def close(self) -> None:
        """Release connections. Scans under way are not to be used afterwards."""
        self._storage.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self._open.loaded:
            return f"Dataset({self.url!r}, not used yet in this process)"
        return f"Dataset({self.url!r}, generation {self.generation}, {self.num_rows} rows)"
