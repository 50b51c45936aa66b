"""Sealing the files of a source, in parallel and recorded one by one, so that a stopped write can go on."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

import pyarrow as pa

from encpipe.errors import EncpipeError, StorageError
from encpipe.filelist import FileEntry
from encpipe.keyring import DatasetKeys
from encpipe.keys import new_id
from encpipe.layouts import NewLayouts
from encpipe.parquet import Layout, Sealed, SealedWriter
from encpipe.records import Records
from encpipe.sources import SourceFile
from encpipe.storage import Storage

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""How Hive spells a null partition value in a folder name."""


@dataclass(frozen=True)
class Progress:
    """How far a write or export is; files that an earlier, stopped run finished count as done."""

    files_done: int
    files_total: int
    rows_done: int
    bytes_done: int
    bytes_total: int


ProgressCallback = Callable[[Progress], None]


class Tally:
    """Counts progress from several threads and passes it on."""

    def __init__(self, files_total: int, bytes_total: int, callback: ProgressCallback | None) -> None:
        self._lock = threading.Lock()
        self._totals = (files_total, bytes_total)
        self._callback = callback
        self.files = self.rows = self.bytes = 0

    def add(self, *, files: int = 0, rows: int = 0, size: int = 0) -> None:
        """Add to what is done."""
        with self._lock:
            self.files, self.rows, self.bytes = self.files + files, self.rows + rows, self.bytes + size
            if self._callback is not None:
                done = min(self.bytes, self._totals[1]) if self._totals[1] else self.bytes
                self._callback(Progress(self.files, self._totals[0], self.rows, done, self._totals[1]))


class HashingSink:
    """What PyArrow writes to: passes bytes on, counts them and takes their SHA-256.

    PyArrow loses the type of an error that is raised while it writes; `failure` keeps it.
    """

    closed = False
    mode = "wb"

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0
        self.failure: EncpipeError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            self._stream.write(view)
        except EncpipeError as error:
            self.failure = error
            raise
        except OSError as error:
            self.failure = StorageError(
                f"writing failed: {error.strerror}", hint="free some space and run the command again"
            )
            raise
        self._hash.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        """The stream belongs to the storage."""

    def sha256(self) -> bytes:
        """Of all bytes so far."""
        return self._hash.digest()


def hive_folder(partition: Mapping[str, str | None]) -> str:
    """`a=1/b=x`, percent-encoded as PyArrow and Hive do; "" for no partition."""
    return "/".join(
        f"{quote(name, safe='')}={NULL_PARTITION if value is None else quote(value, safe='')}"
        for name, value in partition.items()
    )


@dataclass(frozen=True)
class SealJob:
    """How the files of one write are sealed: the same for all of them."""

    storage: Storage
    layouts: NewLayouts
    keys: DatasetKeys
    schema: pa.Schema
    plaintext_partitions: tuple[str, ...]
    compression: str

    def seal(self, source: SourceFile, *, threads: bool, tally: Tally) -> FileEntry:
        """Encrypt one source file into a new object. Nothing of it remains after an error."""
        file_id = new_id()
        layout, partition_keks = self.layouts.of(source.partition)
        shown = {k: v for k, v in source.partition.items() if k in self.plaintext_partitions}
        path = f"{hive_folder(shown) or 'data'}/{file_id}.parquet"
        with self.storage.create_file(path) as stream:
            sink = HashingSink(stream)
            sealed = self._copy(source, sink, file_id, layout, threads, tally)
        return FileEntry(
            id=file_id,
            path=path,
            size=sink.size,
            rows=sealed.rows,
            row_groups=sealed.row_groups,
            partition=dict(source.partition),
            sha256=sink.sha256(),
            footer_commitment=sealed.footer_commitment,
            columns_commitment=sealed.columns_commitment,
            partition_keks=partition_keks,
        )

    def _fitted(self, table: pa.Table) -> pa.Table:
        """The table in the order of the schema, and as nullable."""
        fitted = table.select(self.schema.names)
        if fitted.schema.equals(self.schema):
            return fitted
        return pa.Table.from_arrays(fitted.columns, schema=self.schema)

    def _copy(
        self,
        source: SourceFile,
        sink: HashingSink,
        file_id: str,
        layout: Layout,
        threads: bool,
        tally: Tally,
    ) -> Sealed:
        counted = 0
        with source.open(threads=threads) as reader:
            writer = SealedWriter(
                pa.PythonFile(sink, mode="w"),
                self.schema,
                file_id=file_id,
                layout=layout,
                keys=self.keys,
                compression=reader.codec or self.compression,
            )
            try:
                for table in reader.tables():
                    writer.write(self._fitted(table))
                    step = max(0, min(table.nbytes, source.size - counted))
                    counted += step
                    tally.add(rows=len(table), size=step)
                    del table
                sealed = writer.close()
            except BaseException as error:
                writer.abandon()
                if sink.failure is not None and not isinstance(error, KeyboardInterrupt):
                    raise sink.failure from None
                raise
        tally.add(files=1, size=source.size - counted)
        return sealed


def seal_all(
    job: SealJob,
    sources: Sequence[SourceFile],
    done: Mapping[int, FileEntry],
    records: Records,
    *,
    workers: int,
    tally: Tally,
) -> list[FileEntry]:
    """The entries of all sources, in their order; `done` holds those of an earlier run.

    Each finished file is recorded before the next is begun. On the first error no further file is begun;
    those under way are finished and recorded.
    """
    job.layouts.resume(records.partition_keks.values())
    todo = [n for n in range(len(sources)) if n not in done]
    stop = threading.Event()

    def one(n: int) -> FileEntry | None:
        if stop.is_set():
            return None
        try:
            entry = job.seal(sources[n], threads=workers == 1 or len(todo) == 1, tally=tally)
            _record(job, records, n, entry)
        except BaseException:
            stop.set()
            raise
        return entry

    with ThreadPoolExecutor(max(1, min(workers, len(todo))), thread_name_prefix="encpipe-seal") as pool:
        futures = {n: pool.submit(one, n) for n in todo}
        try:
            for future in futures.values():
                future.result()
        except BaseException:
            stop.set()
            raise
    made = {n: future.result() for n, future in futures.items()}
    entries = {**done, **{n: entry for n, entry in made.items() if entry is not None}}
    return [entries[n] for n in range(len(sources))]


def _record(job: SealJob, records: Records, n: int, entry: FileEntry) -> None:
    """Record a finished file, or remove it: nothing else would name it."""
    try:
        records.add(n, entry, job.layouts.made(entry.partition_keks))
    except EncpipeError as error:
        if error.code != "storage-unavailable":  # then the record may be there
            with contextlib.suppress(EncpipeError):
                job.storage.delete(entry.path)
        raise
