"""Decrypting a dataset into plaintext files: the one operation that writes plaintext, and only where told."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe.access import AnyPath, overlap, resolve_config
from encpipe.audit import Facts
from encpipe.config import Config
from encpipe.dataset import Dataset, Filter, Integrity
from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.filelist import FileEntry
from encpipe.kms.registry import MasterKeys
from encpipe.opening import open_dataset
from encpipe.projection import OnMissingKey
from encpipe.sealing import HashingSink, ProgressCallback, Tally, hive_folder
from encpipe.storage import Storage, open_storage

MARKER: Final = "_encpipe-incomplete"
"""Stands in the target while it is written, and afterwards if the process was killed."""
_MARKER_TEXT: Final = (
    b"encpipe decrypts into this folder, or was stopped while it did: not all rows are here.\n"
)


@dataclass(frozen=True)
class DecryptReport:
    """What was written in plaintext, and where."""

    url: str
    target: str
    generation: int
    files: int
    rows: int
    bytes_out: int
    missing_keys: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def decrypt_dataset(
    url: AnyPath,
    target: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    filter: Filter | None = None,
    on_missing_key: OnMissingKey = "error",
    compression: str = "snappy",
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    expect_dataset: str | None = None,
    min_generation: int | None = None,
    integrity: Integrity = "pages",
) -> DecryptReport:
    """Write the dataset's rows as plaintext Parquet files into the empty or new folder `target`.

    One file for each encrypted file that has rows left, row groups kept, partition columns as Hive folders.
    Raises `ConfigError` `exists` when `target` is not empty, and whatever reading raises. All or nothing: on
    an error or Ctrl-C every file made so far is removed. The object `MARKER` stands in `target` meanwhile; it
    is left with the files when the process is killed, or when the storage refuses to remove them.
    """
    settings = resolve_config(config, keyring=keyring)
    master_keys = master_keys or MasterKeys(settings)
    place = open_storage(os.fspath(target), config=settings, options=target_options)
    if overlap(os.fspath(target), os.fspath(url)):
        raise ConfigError(
            f"{place.url} is the dataset itself, lies in it, or holds it",
            hint="plaintext belongs into a folder of its own",
        )
    _check_empty(place)
    with open_dataset(
        url,
        config=settings,
        master_keys=master_keys,
        storage_options=storage_options,
        on_missing_key=on_missing_key,
        expect_dataset=expect_dataset,
        min_generation=min_generation,
        integrity=integrity,
    ) as dataset:
        facts = _facts(dataset, place, columns)
        export = _Export(dataset, place, columns, filter, compression)
        tally = Tally(len(dataset.files), sum(entry.size for entry in dataset.files), progress)
        with master_keys.audit.attempt("decrypt", **facts), _all_or_nothing(place, export.made):
            sizes = _run(export, tally, workers or os.cpu_count() or 1)
        return DecryptReport(
            url=dataset.url,
            target=place.url,
            generation=dataset.generation,
            files=sum(size > 0 for size in sizes),
            rows=tally.rows,
            bytes_out=sum(sizes),
            missing_keys=dataset.missing_keys,
        )


def _check_empty(place: Storage) -> None:
    names = {info.path for info in place.list()}
    if MARKER in names:
        raise _unfinished(place)
    if names:
        raise ConfigError(f"{place.url} is not empty", hint="name an empty or a new folder", code="exists")


def _unfinished(place: Storage) -> ConfigError:
    return ConfigError(
        f"{place.url} holds an unfinished decryption, in plaintext",
        hint=f"remove the folder, or wait if another process decrypts into it ({MARKER} marks it)",
        code="exists",
    )


@contextlib.contextmanager
def _all_or_nothing(place: Storage, made: Sequence[str]) -> Iterator[None]:
    """Mark the target as incomplete for the length of the block; on an error remove what was `made`."""
    try:
        place.create(MARKER, _MARKER_TEXT)
    except StorageError as error:
        raise _unfinished(place) if error.code == "exists" else error from None
    try:
        yield
        place.delete(MARKER)
    except BaseException as error:
        try:
            for path in (*made, MARKER):
                place.delete(path)
        except StorageError as left:
            if isinstance(error, EncpipeError):
                error.hint = (
                    f"{error.hint}; plaintext is left in {place.url} ({left.message}): remove it".strip("; ")
                )
        raise


def _run(export: _Export, tally: Tally, workers: int) -> list[int]:
    """The bytes written for each file. No worker writes on after an error."""
    with ThreadPoolExecutor(workers, thread_name_prefix="encpipe-export") as pool:
        try:
            entries = enumerate(export.dataset.files)
            futures = [pool.submit(export.one, n, entry, tally) for n, entry in entries]
            return [future.result() for future in futures]
        except BaseException:
            export.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _facts(dataset: Dataset, place: Storage, columns: Sequence[str] | None) -> Facts:
    """What the audit log is told. Asks for the keys of the columns.

    Raises `ConfigError` `filter` for what would lose the rows: Parquet has none without columns.
    """
    scan = dataset.scan(columns)
    if set(scan.schema.names) <= set(dataset.partitions):
        raise ConfigError(
            "no column is left beside the partition columns, and a file without columns has no rows",
            hint="choose at least one column that is no partition column",
            code="filter",
        )
    return {
        "dataset": dataset.url,
        "dataset_id": dataset.dataset_id,
        "generation": dataset.generation,
        "key_names": dataset.key_names(columns),
        "target": place.url,
        "counts": {"files": len(dataset.files), "rows": dataset.num_rows},
    }


@dataclass(frozen=True)
class _Export:
    dataset: Dataset
    target: Storage
    columns: Sequence[str] | None
    filter: Filter | None
    compression: str
    made: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def one(self, n: int, entry: FileEntry, tally: Tally) -> int:
        """Write one file; the bytes written, 0 when the filter left no rows."""
        scan = self.dataset.scan(self.columns, self.filter, files=[entry], threads=1)
        with contextlib.closing(scan.tables()) as tables:  # an error that is kept would keep its thread
            return self._write(n, entry, scan.schema, tables, tally)

    def _write(
        self, n: int, entry: FileEntry, given: pa.Schema, tables: Iterator[pa.Table], tally: Tally
    ) -> int:
        inside = [name for name in given.names if name not in entry.partition]
        schema = pa.schema([given.field(name) for name in inside], metadata=given.metadata)
        first = next(tables, None)
        if first is None and (entry.rows or self.filter is not None):
            tally.add(files=1, size=entry.size)
            return 0
        shown = {k: entry.partition[k] for k in self.dataset.partitions if k in given.names}
        path = "/".join(filter(None, (hive_folder(shown), f"part-{n:05}.parquet")))
        with self._file(path) as sink:
            with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression=self.compression) as out:
                for table in chain((first,), tables) if first is not None else ():
                    self._go_on()
                    out.write_table(table.select(inside), row_group_size=max(1, len(table)))
                    tally.add(rows=len(table))
            self._go_on()
        tally.add(files=1, size=entry.size)
        return sink.size

    def _go_on(self) -> None:
        if self.stopped.is_set():
            raise CancelledError  # seen by nobody: the error that stopped the others is raised first

    @contextlib.contextmanager
    def _file(self, path: str) -> Iterator[HashingSink]:
        """A new file of the target, entered in `made` before it appears; not if it was there already."""
        try:
            with self.target.create_file(path) as stream:
                yield HashingSink(stream)
                self.made.append(path)
        except StorageError as error:
            if error.code == "exists" and path in self.made:
                self.made.remove(path)
            raise
