"""Opening and reading a dataset.

`open_dataset` checks the manifest (MACs under every key it gets hold of, pins) and the sealed file list
before it returns; each data file is checked when it is first touched. Nothing is fetched, unwrapped or
decrypted that is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import pyarrow as pa

from encpipe.access import Access, AnyPath, open_access
from encpipe.config import Config
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    ManifestError,
    ShreddedError,
    UntrustedKeyError,
)
from encpipe.filelist import FileEntry
from encpipe.handover import OpenDataset
from encpipe.kms.registry import MasterKeys
from encpipe.parquet import Layout, SealedFile
from encpipe.pins import Pins, PinStore
from encpipe.policy import Policy
from encpipe.projection import Columns, OnMissingKey, columns_of, list_of_names
from encpipe.rowgroups import MAX_OPEN_FILES, Plan
from encpipe.scan import Scan, joined
from encpipe.selection import Filter, is_whole, select
from encpipe.state import MANIFEST_PATH, State, load_state
from encpipe.storage import Storage
from encpipe.wholefiles import WholeFiles, open_at_once

if TYPE_CHECKING:
    import pyarrow.dataset as ds

__all__ = ["Dataset", "Filter", "Integrity", "open_dataset"]

Integrity = Literal["pages", "file-hash"]


def open_dataset(
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_missing_key: OnMissingKey = "error",
    expect_dataset: str | None = None,
    min_generation: int | None = None,
    min_revision: int | None = None,
    expect_core: str | None = None,
    pin_store: AnyPath | None = None,
    expect_key_names: Sequence[str] = (),
    generation: int | None = None,
    max_key_age: float | None = None,
    key_grace: float = 0.0,
    integrity: Integrity = "pages",
) -> Dataset:
    """Open a dataset for reading.

    The master keys that may open it are those the configuration trusts. `on_missing_key` says what becomes
    of columns whose key is denied, absent, shredded or not trusted by this configuration: `error` (when they
    are read), `skip` (left out) or `null` (null, and marked in the schema); of a nested column the parts
    whose key is missing are left out. It is decided here once, and never applies to outages or damage.
    `expect_*`, `min_*` and `pin_store` refuse another or an older dataset; `generation` opens a retained one.
    `expect_key_names` are unwrapped here and have to vouch for the dataset: which column falls under which
    key stands under the footer key only, so who holds that key and can write the storage could else move a
    column under it and forge it.
    `max_key_age` and `key_grace` are seconds (see `DatasetKeys`).
    `integrity="file-hash"` reads every file that is touched as a whole, into memory, and uses it only if its
    SHA-256 is the committed one. It is for readers who must not trust other holders of the dataset's keys who
    can write the storage: `pages`, the default, checks every byte it uses, under keys that those hold, too.
    Who does not trust them with the file list either names `trust.signers`.

    Raises `ConfigError`, `KmsError`, `IntegrityError` or `StorageError`.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    state = load_state(
        access.storage,
        access.master_keys,
        pins=Pins(expect_dataset, min_generation, min_revision, expect_core),
        generation=generation,
        max_key_age=max_key_age,
        key_grace=key_grace,
    )
    with access.master_keys.audit.refusals("open", dataset=access.storage.url):
        _expect(state, list_of_names(expect_key_names, "expect_key_names"))
        if pin_store is not None:
            PinStore(pin_store).check_and_record(access.storage.url, state.manifest)
    return Dataset(access, state, on_missing_key, integrity)


def _expect(state: State, key_names: Sequence[str]) -> None:
    core = state.view.core
    for name in key_names:
        if name not in core.key_names:
            raise ManifestError(
                f"this dataset has no key name {name!r}; it has: {', '.join(sorted(core.key_names))}",
                hint="check expect_key_names=; if it had this key name before, someone replaced the dataset",
            )
        state.keys.kek(core.active(name).id)


class _Shape(NamedTuple):
    """What all files of the generation share."""

    columns: Columns
    layout: Layout


def _shape_of(state: State) -> _Shape:
    return _Shape(columns_of(state.files, state.view.core.key_names), state.layout)


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
        self._whole = WholeFiles() if integrity == "file-hash" else None
        self._open = OpenDataset.of(access, state)
        self._made: _Shape | None = _shape_of(state)
        self._all: pa.Schema | None = None
        self._missing: Mapping[str, OnMissingKey] = self._decide(on_missing_key)

    @classmethod
    def _of(cls, opened: OpenDataset, missing: Mapping[str, OnMissingKey], whole: bool) -> Dataset:
        made = cls.__new__(cls)
        made._open, made._missing = opened, missing
        made._whole = WholeFiles() if whole else None
        made._made, made._all = None, None
        return made

    def __reduce__(self) -> tuple[Callable[..., Dataset], tuple[Any, ...]]:
        return Dataset._of, (self._open, self._missing, self._whole is not None)

    def __copy__(self) -> Dataset:
        return self._of(self._open.copy(), self._missing, self._whole is not None)

    def __deepcopy__(self, memo: object) -> Dataset:
        return self.__copy__()

    @property
    def _storage(self) -> Storage:
        return self._open.storage

    @property
    def _state(self) -> State:
        return self._open.state

    @property
    def _shape(self) -> _Shape:
        if self._made is None:  # twice does no harm, and a lock might stay locked in a forked child
            self._made = _shape_of(self._state)
        return self._made

    @property
    def _columns(self) -> Columns:
        return self._shape.columns

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
        self._unwrap(chosen.read.leaves)
        kept = chosen.prune(self.files if files is None else tuple(files))
        return Scan(
            Plan(
                files=kept,
                open_file=self._open_file,
                read=chosen.read,
                out=chosen.out.schema,
                full_schema=self._columns.schema,
                filter=chosen.filter,
                filter_leaves=chosen.filter_leaves,
                threads=threads or pa.cpu_count(),
                open_files=self._open_files(kept),
            )
        )

    def _unwrap(self, leaves: Sequence[str]) -> None:
        core = self._state.view.core
        for name in sorted(self._columns.key_names(leaves)):
            self._state.keys.kek(core.active(name).id)

    def _open_files(self, files: Sequence[FileEntry]) -> int:
        if self._whole is None:
            return MAX_OPEN_FILES
        return open_at_once(max((entry.size for entry in files), default=0), MAX_OPEN_FILES)

    def _open_file(self, entry: FileEntry) -> SealedFile:
        def stored() -> pa.NativeFile:
            return self._open.open_input(entry.path)

        whole = self._whole
        return SealedFile(
            entry,
            self._shape.layout,
            self._state.keys,
            stored if whole is None else lambda: whole.open(entry, stored),
            self._columns.parquet_schema,
            pre_buffer=self._storage.remote and whole is None,
        )

    def check_file(self, entry: FileEntry) -> None:
        """Open a file and check size, footer and row counts; no data is read (all of it with `file-hash`).

        Raises `IntegrityError` or `StorageError`.
        """
        self._open_file(entry).open().close()

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
        checked = self._shape.layout.is_uniform and self._whole is None
        if not (checked or trust_storage_after_the_check):
            raise EncpipeError(
                "PyArrow would not notice another file, even a plaintext file, in the place of a checked one",
                hint="use scan() or the dataset itself as an Arrow stream; where nobody else can write the "
                "storage, to_pyarrow(trust_storage_after_the_check=True)",
                code="unsupported",
            )
        projection = self._columns.project(columns, missing=self._missing)
        self._unwrap(projection.leaves)
        names = [name for name in projection.schema.names if is_whole(self._columns, name, projection)]
        schema = pa.schema([projection.schema.field(name) for name in names], projection.schema.metadata)
        from encpipe import fragments

        made = [
            fragments.checked_fragment(
                self._open_file(entry),
                *self._storage.arrow_path(entry.path),
                leaves=projection.leaves,
                schema=self._columns.schema,
            )
            for entry in self.files
        ]
        system = self._storage.arrow_path(MANIFEST_PATH)[0]
        return fragments.pyarrow_dataset(made, schema, system)

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
