"""Reading one encrypted Parquet file, only as the one its entry commits to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe import strictjson
from encpipe.aead import Label, digest
from encpipe.errors import EncpipeError, IntegrityError, PlaintextFileError, StorageError
from encpipe.filelist import FileEntry
from encpipe.keyring import DatasetKeys
from encpipe.parquet.keyclients import UnwrappingClient
from encpipe.parquet.schema import Layout, same_columns
from encpipe.parquet.writing import COMMITMENTS_FIELD

SEALED_MAGIC: Final = b"PARE"
PLAINTEXT_MAGIC: Final = b"PAR1"
MIN_FILE_BYTES: Final = 12

_ARROW_ERRORS: Final = (
    pa.ArrowException,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    MemoryError,
)
"""What PyArrow raises for damaged bytes: measured by flipping every byte of a file."""


@dataclass(frozen=True)
class SealedFile:
    """One data file, opened by as many threads as like, each through `open`.

    Handles share nothing: PyArrow decrypts with the key client of the reader that parsed the footer, so a
    shared footer would let one thread answer for what another one read.
    """

    entry: FileEntry
    layout: Layout
    keys: DatasetKeys
    open_input: Callable[[], pa.NativeFile]
    schema: pq.ParquetSchema
    pre_buffer: bool = False

    def open(self, *, only_keys: bool = False) -> Handle:
        """A handle for one thread, after the file was checked against its entry.

        With `only_keys` the handle is for `check_chunks`, which then fetches no data; it reads none later.
        Raises `IntegrityError` (`file-missing`, `file-size`, `file-damaged`, `file-foreign`,
        `dek-commitment`, `file-rows`), `PlaintextFileError`, `StorageError`, or what the keys raise.
        """
        client = UnwrappingClient(self.entry, self.layout, self.keys)
        source = _open(self.entry, self.open_input)
        try:
            with translated(self.entry, client):
                _check_magic(self.entry, source)
                reader = pq.ParquetFile(
                    source,
                    decryption_properties=client.decryption_properties(),
                    pre_buffer=self.pre_buffer and not only_keys,
                    buffer_size=1 if only_keys else 0,
                )
            self._check(client, reader)
        except BaseException:
            source.close()
            raise
        return Handle(self, client, reader, source)

    def ask_keys(self, leaves: Sequence[str]) -> None:
        """Raise what the keys raise if a KEK that these leaves or the footer fall under is refused by now."""
        for name in sorted({self.layout.footer_key, *map(self.layout.columns.__getitem__, leaves)}):
            self.keys.kek(self.layout.keks[name])

    def _check(self, client: UnwrappingClient, reader: pq.ParquetFile) -> None:
        with translated(self.entry, client):
            metadata = reader.metadata
            vector = (metadata.metadata or {}).get(COMMITMENTS_FIELD, b"")
            row_groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        leaves = self._committed_leaves(vector)
        if not client.footer_asked or leaves is None or not (leaves or self.layout.is_uniform):
            raise IntegrityError(
                f"file {self.entry.path} is not the one that was committed: its footer differs",
                hint="restore the file from a copy you trust",
                code="file-foreign",
            )
        if not same_columns(reader.schema, self.schema):
            raise IntegrityError(
                f"file {self.entry.path} has other columns than the dataset",
                hint="someone rewrote the file: restore it from a copy you trust",
                code="file-foreign",
            )
        if row_groups != self.entry.row_groups:
            raise IntegrityError(
                f"file {self.entry.path} has {sum(row_groups)} rows in {len(row_groups)} row groups, "
                f"{self.entry.rows} in {len(self.entry.row_groups)} were committed",
                hint="restore the file from a copy you trust",
                code="file-rows",
            )
        client.leaves = leaves

    def _committed_leaves(self, vector: bytes) -> dict[bytes, str] | None:
        """DEK commitment -> leaf path, empty where one DEK seals the whole file; None for a foreign list."""
        if digest(Label.DEK_VECTOR, vector) != self.entry.columns_commitment:
            return None
        found = strictjson.loads(vector, what=f"the key list of file {self.entry.path}", code="file-foreign")
        return {bytes.fromhex(str(text)): leaf for leaf, text in found.items()}


class Handle:
    """A reader of one file for one thread."""

    def __init__(
        self, file: SealedFile, client: UnwrappingClient, reader: pq.ParquetFile, source: pa.NativeFile
    ) -> None:
        self._file, self.client, self._reader, self.source = file, client, reader, source

    def read(self, row_group: int, leaves: Sequence[str]) -> pa.Table:
        """The given leaves of a row group, top-level columns in file order.

        The KEKs of all leaves must have been unwrapped before; one past its age is asked for again, though
        the handle holds the DEKs. Raises `IntegrityError`, `StorageError`, or what the keys raise.
        """
        entry, client = self._file.entry, self.client
        self._file.ask_keys(leaves)
        client.start_read()
        with translated(entry, client):
            table = self._reader.read_row_group(row_group, columns=list(leaves), use_threads=False)
            if self._file.pre_buffer:  # else the reader keeps the bytes it fetched until its next read
                self._reader.read_row_groups([], columns=[], use_threads=False)
        if entry.row_groups[row_group]:
            self._check_asked(leaves)
        if len(table) != entry.row_groups[row_group]:
            raise IntegrityError(
                f"row group {row_group} of file {entry.path} has another number of rows than committed",
                hint="restore the file from a copy you trust",
                code="file-rows",
            )
        return table

    def check_chunks(self, leaves: Sequence[str], *, row_groups: Sequence[int] | None = None) -> None:
        """Raise `IntegrityError` unless every chunk of the leaves is sealed under its committed DEK, in these
        row groups (None: all).

        To be called before PyArrow is let near the metadata of a column chunk: there a DEK that does not
        unwrap aborts the process, and whoever holds the footer KEK can put one in. A read of no rows asks for
        the same DEKs and raises.
        """
        wanted = set(leaves)
        with translated(self._file.entry, self.client):
            schema = self._reader.metadata.schema
            columns = [i for i in range(len(schema.names)) if schema.column(i).path in wanted]
        if not columns:
            return
        for row_group in range(len(self._file.entry.row_groups)) if row_groups is None else row_groups:
            self.client.start_read()
            with translated(self._file.entry, self.client):
                for _ in self._reader.reader.iter_batches(0, [row_group], columns, use_threads=False):
                    break
            self._check_asked(leaves)

    def codec(self, leaves: Sequence[str]) -> str | None:
        """How the file's values are compressed where that makes them smaller, as `SealedWriter` takes it;
        None in a file without rows. Told by the first row group.

        The KEKs of all leaves must have been unwrapped before. Raises `IntegrityError`, `StorageError`.
        """
        if not self._file.entry.rows:
            return None
        self.check_chunks(leaves, row_groups=(0,))
        wanted = set(leaves)
        with translated(self._file.entry, self.client):
            group = self._reader.metadata.row_group(0)
            chunks = (group.column(i) for i in range(group.num_columns))
            names = [str(chunk.compression) for chunk in chunks if chunk.path_in_schema in wanted]
        return next((name.lower() for name in names if name != "UNCOMPRESSED"), "none")

    def _check_asked(self, leaves: Sequence[str]) -> None:
        if not self.client.leaves:  # one DEK seals the whole file, and the footer opened with it
            return
        asked = self.client.asked_leaves()
        unasked = [leaf for leaf in leaves if leaf not in asked]
        if unasked:
            raise IntegrityError(
                f"column {unasked[0]!r} of file {self._file.entry.path} is not sealed under the key that "
                "was committed",
                hint="someone rewrote the file: restore it from a copy you trust",
                code="file-foreign",
            )

    def close(self) -> None:
        """Release the file. PyArrow's reader is dropped here, before the interpreter ends."""
        self._reader.close(force=True)
        self.source.close()


def _open(entry: FileEntry, open_input: Callable[[], pa.NativeFile]) -> pa.NativeFile:
    try:
        return open_input()
    except StorageError as error:
        if error.code != "not-found":
            raise
        raise IntegrityError(
            f"file {entry.path} of the dataset is missing",
            hint="restore the file; `encpipe verify` lists what else is gone",
            code="file-missing",
        ) from None


def _check_magic(entry: FileEntry, source: pa.NativeFile) -> None:
    size = source.size()
    if size != entry.size:
        raise IntegrityError(
            f"file {entry.path} has {size} bytes, {entry.size} were committed",
            hint="the file was cut or replaced: restore it from a copy you trust",
            code="file-size",
        )
    head = source.read_at(4, 0) if size >= MIN_FILE_BYTES else b""
    tail = source.read_at(4, size - 4) if size >= MIN_FILE_BYTES else b""
    if PLAINTEXT_MAGIC in (head, tail):
        raise PlaintextFileError(
            f"file {entry.path} is a plaintext Parquet file where an encrypted one belongs",
            hint="someone replaced the file: restore it from a copy you trust",
        )
    if head != SEALED_MAGIC or tail != SEALED_MAGIC:
        raise IntegrityError(
            f"file {entry.path} is not an encrypted Parquet file",
            hint="restore the file from a copy you trust",
            code="file-damaged",
        )


@contextlib.contextmanager
def translated(entry: FileEntry, client: UnwrappingClient) -> Iterator[None]:
    """Turn what PyArrow raises into our errors; what the key client raised comes first."""
    try:
        yield
    except EncpipeError:
        raise
    except _ARROW_ERRORS as error:
        if client.failure is not None:
            raise client.failure from None
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            raise StorageError(
                f"file {entry.path} cannot be read: {error.strerror or 'the storage did not answer'}",
                hint="try again; the dataset is unchanged",
                code="storage-unavailable",
            ) from None
        if isinstance(error, MemoryError):
            raise IntegrityError(
                f"reading file {entry.path} takes more memory than there is",
                hint="read fewer columns or with fewer threads; if that does not help, the file was changed",
                code="file-damaged",
            ) from None
        raise IntegrityError(
            f"file {entry.path} cannot be decrypted or decoded: it was changed after it was written",
            hint="restore the file from a copy you trust",
            code="file-damaged",
        ) from None
