"""A dataset's own files as what a re-key reads.

Each is used only if its SHA-256 is the committed one: whoever held a KEK that is now replaced could have put
pages of his own into a file, and they would come out under the new one as if a writer had made them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from encpipe.access import Access
from encpipe.commit import Contents
from encpipe.dataset import Dataset
from encpipe.errors import IntegrityError
from encpipe.filelist import FileEntry, FileList
from encpipe.sources import Source, SourceFile, SourceReader
from encpipe.state import State
from encpipe.storage import Storage

WHOLE_BYTES: Final = 64 << 20
WHOLE_REMOTE_BYTES: Final = 256 << 20
"""Files up to this size are read whole, and the bytes that were hashed are those that are decrypted. A larger
one is hashed first and then read from the storage: memory stays bounded, and on a local disk it takes less
time (measured on files of 200 MB: less work by a fifth)."""
_READ_AHEAD: Final = 1
"""Row groups that are decrypted at once, beside the one that is encrypted, where one file is read alone."""


def own_contents(files: FileList) -> Contents:
    """What a new generation of the same data holds, but for the files."""
    schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(files.schema))
    return Contents(
        schema=files.schema,
        write_schema=pa.schema([f for f in schema if f.name not in files.partitions], schema.metadata),
        columns=files.columns,
        partitions=files.partitions,
        policy=files.policy,
    )


def own_source(access: Access, state: State) -> Source:
    """The files of a generation, in its order; each becomes one new file of the same row groups and codec.

    Every KEK of the generation must have been unwrapped before a file is opened.
    """
    schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(state.files.schema))
    openers = _Openers(access, state)
    return Source(
        schema=own_contents(state.files).write_schema,
        partitions=pa.schema([f for f in schema if f.name in state.files.partitions]),
        files=tuple(openers.source_file(entry) for entry in state.files.files),
        resumable=True,
    )


class _Openers:
    """Opens the files of one generation, by any number of threads."""

    def __init__(self, access: Access, state: State) -> None:
        self._whole = Dataset(access, state, integrity="file-hash")
        self._in_parts = Dataset(access, state)
        self._storage = access.storage
        self._most = WHOLE_REMOTE_BYTES if access.storage.remote else WHOLE_BYTES
        self._columns = own_contents(state.files).write_schema.names

    def source_file(self, entry: FileEntry) -> SourceFile:
        def opened(*, threads: bool) -> SourceReader:
            return self._open(entry, threads=threads)

        return SourceFile(entry.path, entry.partition, entry.sha256.hex(), entry.size, opened)

    def _open(self, entry: FileEntry, *, threads: bool) -> SourceReader:
        if entry.size <= self._most:
            return _Reader(self._whole, entry, self._columns, threads=threads)
        _check_hash(self._storage, entry)
        return _Reader(self._in_parts, entry, self._columns, threads=threads)


class _Reader(SourceReader):
    """One file of the dataset; errors are those of a read."""

    def __init__(self, dataset: Dataset, entry: FileEntry, columns: list[str], *, threads: bool) -> None:
        self._threads = threads
        self._scan = dataset.scan(columns, files=[entry], threads=_READ_AHEAD)
        self._groups = self._scan.row_groups()
        self.schema = self._scan.schema
        try:
            self.codec = self._groups.codec(0)
        except BaseException:
            self.close()
            raise

    def tables(self) -> Iterator[pa.Table]:
        if self._threads:
            with contextlib.closing(self._scan.tables()) as tables:
                yield from tables
            return
        for n, rows in enumerate(self._groups.rows):
            if rows:
                yield self._groups.read(n)

    def close(self) -> None:
        self._groups.close()


def _check_hash(storage: Storage, entry: FileEntry) -> None:
    if storage.sha256(entry.path) != entry.sha256:
        raise IntegrityError(
            f"file {entry.path} has other bytes than committed",
            hint="someone rewrote the file, maybe one who has its keys: restore it from a copy you trust",
            code="file-hash",
        )
