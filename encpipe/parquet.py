"""Parquet Modular Encryption through PyArrow: the only importer of `pyarrow.parquet.encryption`.

Guarantees, by construction:

- every file has fresh DEKs, its own factory and properties; every leaf column and the footer are sealed with
  AES-256-GCM; the footer is never in clear;
- a file opens only as the one its `FileEntry` commits to: size, footer DEK, column DEKs, row counts;
- before rows leave this module, the committed DEK of every projected leaf was asked for in that very read:
  else a column that someone rewrote in plaintext, or under another key, would pass unnoticed;
- no PyArrow error leaves: each becomes an `IntegrityError` or `StorageError` that names the file.

PyArrow aborts the process when it meets metadata of a column whose key is refused. So whoever calls here has
unwrapped the KEK of every column concerned before (`DatasetKeys.kek`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from encpipe import strictjson
from encpipe.aead import Label, digest
from encpipe.errors import (
    EncpipeError,
    IntegrityError,
    PlaintextFileError,
    StorageError,
    UnwrapError,
)
from encpipe.filelist import MAX_ROW_GROUPS, FileEntry
from encpipe.keyring import DatasetKeys, dek_commitment, unwrap_dek, wrap_dek

SEALED_MAGIC: Final = b"PARE"
PLAINTEXT_MAGIC: Final = b"PAR1"
MIN_FILE_BYTES: Final = 12
DEK_BITS: Final = 256
COMMITMENTS_FIELD: Final = b"encpipe.dek_commitments"
"""Name of the footer's metadata entry that holds leaf path -> DEK commitment."""

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
class Layout:
    """What all files of a generation share: leaf path -> key name, and key name -> KEK id."""

    columns: Mapping[str, str]
    keks: Mapping[str, str]
    footer_key: str

    def key_id(self, key_name: str) -> str:
        """How a file names the KEK: `<key name>.<KEK id>`."""
        return f"{key_name}.{self.keks[key_name]}"

    def key_names(self, leaves: Sequence[str]) -> set[str]:
        """The key names that reading these leaves needs, the footer key included."""
        return {self.footer_key, *(self.columns[leaf] for leaf in leaves)}


@dataclass(frozen=True)
class Sealed:
    """What the file list has to know of a finished file."""

    rows: int
    row_groups: tuple[int, ...]
    footer_commitment: bytes
    columns_commitment: bytes


class SchemaOnDisk:
    """What Parquet makes of an Arrow schema, asked of PyArrow through an empty file in memory.

    `schema` is what readers get back; `leaves` are the dotted paths of its leaf columns, in file order.
    Raises `EncpipeError` `unsupported` for a type that Parquet cannot hold.
    """

    def __init__(self, schema: pa.Schema) -> None:
        sink = pa.BufferOutputStream()
        try:
            pq.ParquetWriter(sink, schema).close()
            self._empty = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
            self.schema: pa.Schema = self._empty.schema_arrow
        except (pa.ArrowException, NotImplementedError) as error:
            raise EncpipeError(
                f"the schema cannot be written as Parquet: {str(error)[:200]}",
                hint="cast or drop the column",
                code="unsupported",
            ) from None
        parquet = self._empty.schema
        self.leaves: tuple[str, ...] = tuple(parquet.column(i).path for i in range(len(parquet.names)))

    def project(self, leaves: Sequence[str]) -> pa.Schema:
        """The schema that a read of these leaves gives."""
        return self._empty.read(columns=list(leaves)).schema


class _WrappingClient(pe.KmsClient):  # type: ignore[misc]  # PyArrow ships no types
    """Wraps the DEKs of one new file and notes their commitments in the order PyArrow makes them."""

    def __init__(self, file_id: str, layout: Layout, keys: DatasetKeys) -> None:
        super().__init__()
        self._file_id, self._layout, self._keys = file_id, layout, keys
        self.commitments: list[bytes] = []

    def wrap_key(self, dek: bytes, key_id: str) -> str:
        kek = self._keys.kek(key_id.rpartition(".")[2])
        self.commitments.append(dek_commitment(self._file_id, dek))
        return wrap_dek(kek, dek, file_id=self._file_id, key_id=key_id)

    def unwrap_key(self, wrapped: str, key_id: str) -> NoReturn:
        raise NotImplementedError("a writer never unwraps")


def _grouped(layout: Layout) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for leaf, name in layout.columns.items():
        groups.setdefault(layout.key_id(name), []).append(leaf)
    return groups


class SealedWriter:
    """Writes one encrypted Parquet file to an open sink; each `write` becomes one row group.

    The sink is written front to back and not closed. Raises `EncpipeError` `unsupported` beyond 32,767 row
    groups (the format's limit for encrypted files).
    """

    def __init__(
        self,
        sink: Any,
        schema: pa.Schema,
        *,
        file_id: str,
        layout: Layout,
        keys: DatasetKeys,
        compression: str = "snappy",
    ) -> None:
        groups = _grouped(layout)
        client = _WrappingClient(file_id, layout, keys)
        properties = _encryption_properties(client, layout.key_id(layout.footer_key), groups)
        leaves = [leaf for group in groups.values() for leaf in group]
        if len(client.commitments) != 1 + len(leaves):
            raise EncpipeError("PyArrow made another number of data keys than there are columns")
        self._footer_commitment, *columns = client.commitments
        self._vector = strictjson.dumps({leaf: c.hex() for leaf, c in zip(leaves, columns, strict=True)})
        self._row_groups: list[int] = []
        self._writer = pq.ParquetWriter(
            sink,
            schema,
            compression=compression,
            encryption_properties=properties,
            data_page_version="1.0",
            version="2.6",
        )

    def write(self, table: pa.Table) -> None:
        """Append a row group. An empty table is no row group."""
        if not len(table):
            return
        if len(self._row_groups) >= MAX_ROW_GROUPS:
            raise EncpipeError(
                f"the file would have more than {MAX_ROW_GROUPS} row groups",
                hint="write larger row groups, or split the source file",
                code="unsupported",
            )
        self._writer.write_table(table, row_group_size=len(table))
        self._row_groups.append(len(table))

    def close(self) -> Sealed:
        """Write the footer."""
        self._writer.add_key_value_metadata({COMMITMENTS_FIELD.decode(): self._vector.decode()})
        self._writer.close()
        return Sealed(
            rows=sum(self._row_groups),
            row_groups=tuple(self._row_groups),
            footer_commitment=self._footer_commitment,
            columns_commitment=digest(Label.DEK_VECTOR, self._vector),
        )

    def abandon(self) -> None:
        """Release PyArrow's writer after a failure; what the sink holds is of no use."""
        with contextlib.suppress(*_ARROW_ERRORS):
            self._writer.close()


def _encryption_properties(client: pe.KmsClient, footer_key: str, groups: Mapping[str, list[str]]) -> Any:
    config = pe.EncryptionConfiguration(
        footer_key=footer_key,
        column_keys=groups,
        encryption_algorithm="AES_GCM_V1",
        plaintext_footer=False,
        double_wrapping=False,
        data_key_length_bits=DEK_BITS,
        internal_key_material=True,
    )
    factory = pe.CryptoFactory(lambda _: client)
    return factory.file_encryption_properties(pe.KmsConnectionConfig(), config)


class _UnwrappingClient(pe.KmsClient):  # type: ignore[misc]  # PyArrow ships no types
    """Unwraps the DEKs of one file, refuses any that its entry does not commit to, and notes which leaves
    were asked for. Arrow calls from several threads, about seven times for each column chunk."""

    def __init__(
        self,
        entry: FileEntry,
        layout: Layout,
        keys: DatasetKeys,
        leaves: Mapping[bytes, str] | None = None,
    ) -> None:
        super().__init__()
        self._entry, self._keys = entry, keys
        self._keks = {layout.key_id(name): kek_id for name, kek_id in layout.keks.items()}
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self.leaves = leaves
        self.asked: set[bytes] = set()
        self.footer_asked = False
        self.failure: EncpipeError | None = None

    def wrap_key(self, dek: bytes, key_id: str) -> NoReturn:
        raise NotImplementedError("a reader never wraps")

    def unwrap_key(self, wrapped: str, key_id: str) -> bytes:
        try:
            with self._lock:
                found = self._known.get((wrapped, key_id))
            if found is None:
                found = self._unwrap(wrapped, key_id)
                with self._lock:
                    self._known[(wrapped, key_id)] = found
        except EncpipeError as error:
            self.failure = self.failure or error
            raise
        dek, commitment = found
        self.asked.add(commitment)
        return dek

    def _unwrap(self, wrapped: str, key_id: str) -> tuple[bytes, bytes]:
        kek_id = self._keks.get(key_id)
        if kek_id is None:
            raise UnwrapError(
                f"file {self._entry.path} names a key that its generation does not have",
                hint="the file was swapped or edited: restore it from a copy you trust",
            )
        dek = unwrap_dek(self._keys.kek(kek_id), wrapped, file_id=self._entry.id, key_id=key_id)
        commitment = dek_commitment(self._entry.id, dek)
        is_footer = commitment == self._entry.footer_commitment
        if not is_footer and (self.leaves is None or commitment not in self.leaves):
            raise UnwrapError(
                f"file {self._entry.path} uses a data key that the file list does not commit to",
                hint="the file was rewritten after it was committed: restore it from a copy you trust",
                code="dek-commitment",
            )
        self.footer_asked = self.footer_asked or is_footer
        return dek, commitment

    def decryption_properties(self) -> Any:
        factory = pe.CryptoFactory(lambda _: self)
        return factory.file_decryption_properties(pe.KmsConnectionConfig(), pe.DecryptionConfiguration())


@dataclass
class SealedFile:
    """One data file, opened by as many threads as like, each through `open`.

    The first `open` checks the file against its entry; the others share the parsed footer.
    """

    entry: FileEntry
    layout: Layout
    keys: DatasetKeys
    open_input: Callable[[], pa.NativeFile]
    pre_buffer: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _metadata: pq.FileMetaData | None = field(default=None, repr=False)
    _leaves: dict[bytes, str] = field(default_factory=dict, repr=False)

    def open(self) -> Handle:
        """A handle for one thread.

        Raises `IntegrityError` (file-size, file-damaged, file-foreign, dek-commitment, file-rows),
        `PlaintextFileError`, `StorageError` (file-missing as `IntegrityError`) or what the keys raise.
        """
        with self._lock:
            known = self._metadata
            client = _UnwrappingClient(
                self.entry, self.layout, self.keys, None if known is None else self._leaves
            )
            source = _open(self.entry, self.open_input)
            try:
                reader = self._reader(client, source, known)
                if known is None:
                    self._check(client, reader)
            except BaseException:
                source.close()
                raise
        return Handle(self, client, reader, source)

    def surviving(self, expression: Any, schema: pa.Schema, known: Any) -> Sequence[int]:
        """The row groups whose statistics do not rule the filter out; `known` holds for every row.

        The KEKs of all columns in the filter must have been unwrapped before.
        """
        handle = self.open()
        try:
            with translated(self.entry, handle.client):
                form = _fragment_format(handle.client)
                fragment = form.make_fragment(handle.source, partition_expression=known)
                subset = fragment.subset(expression, schema=schema)
                return [info.id for info in subset.row_groups]
        finally:
            handle.close()

    def fragment(self, system: Any, path: str, *, leaves: Sequence[str], known: Any) -> Any:
        """A fragment for a PyArrow dataset, after every column chunk's key was checked.

        The KEKs of all leaves must have been unwrapped before.
        """
        handle = self.open()
        try:
            handle.check_chunks(leaves)
            form = _fragment_format(_UnwrappingClient(self.entry, self.layout, self.keys, self._leaves))
        finally:
            handle.close()
        return form.make_fragment(path, system, partition_expression=known)

    def _reader(
        self, client: _UnwrappingClient, source: pa.NativeFile, known: pq.FileMetaData | None
    ) -> pq.ParquetFile:
        with translated(self.entry, client):
            if known is None:
                _check_magic(self.entry, source)
            return pq.ParquetFile(
                source,
                metadata=known,
                decryption_properties=client.decryption_properties(),
                pre_buffer=self.pre_buffer,
            )

    def _check(self, client: _UnwrappingClient, reader: pq.ParquetFile) -> None:
        with translated(self.entry, client):
            metadata = reader.metadata
            vector = (metadata.metadata or {}).get(COMMITMENTS_FIELD, b"")
            row_groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if not client.footer_asked or digest(Label.DEK_VECTOR, vector) != self.entry.columns_commitment:
            raise IntegrityError(
                f"file {self.entry.path} is not the one that was committed: its footer differs",
                hint="restore the file from a copy you trust",
                code="file-foreign",
            )
        if row_groups != self.entry.row_groups:
            raise IntegrityError(
                f"file {self.entry.path} has {sum(row_groups)} rows in {len(row_groups)} row groups, "
                f"{self.entry.rows} in {len(self.entry.row_groups)} were committed",
                hint="restore the file from a copy you trust",
                code="file-rows",
            )
        leaves = strictjson.loads(vector, what=f"the key list of file {self.entry.path}", code="file-foreign")
        self._leaves = {bytes.fromhex(str(text)): leaf for leaf, text in leaves.items()}
        client.leaves = self._leaves
        self._metadata = metadata


class Handle:
    """A reader of one file for one thread."""

    def __init__(
        self, file: SealedFile, client: _UnwrappingClient, reader: pq.ParquetFile, source: pa.NativeFile
    ) -> None:
        self._file, self.client, self._reader, self.source = file, client, reader, source

    def read(self, row_group: int, leaves: Sequence[str], *, use_threads: bool = False) -> pa.Table:
        """The given leaves of a row group, top-level columns in file order.

        The KEKs of all leaves must have been unwrapped before. Raises `IntegrityError`, `StorageError`.
        """
        entry, client = self._file.entry, self.client
        client.asked.clear()
        with translated(entry, client):
            table = self._reader.read_row_group(row_group, columns=list(leaves), use_threads=use_threads)
        if entry.row_groups[row_group]:
            self._check_asked(leaves)
        if len(table) != entry.row_groups[row_group]:
            raise IntegrityError(
                f"row group {row_group} of file {entry.path} has another number of rows than committed",
                hint="restore the file from a copy you trust",
                code="file-rows",
            )
        return table

    def check_chunks(self, leaves: Sequence[str]) -> None:
        """Raise `IntegrityError` unless every chunk of the leaves is sealed under its committed DEK."""
        wanted = set(leaves)
        with translated(self._file.entry, self.client):
            metadata = self._reader.metadata
            paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            columns = [i for i, path in enumerate(paths) if path in wanted]
        for row_group in range(len(self._file.entry.row_groups)):
            self.client.asked.clear()
            with translated(self._file.entry, self.client):
                for column in columns:
                    metadata.row_group(row_group).column(column)
            self._check_asked(leaves)

    def _check_asked(self, leaves: Sequence[str]) -> None:
        known = self.client.leaves or {}
        asked = {known[commitment] for commitment in self.client.asked if commitment in known}
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


def _fragment_format(client: _UnwrappingClient) -> ds.ParquetFileFormat:
    options = ds.ParquetFragmentScanOptions(decryption_properties=client.decryption_properties())
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


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
def translated(entry: FileEntry, client: _UnwrappingClient) -> Iterator[None]:
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
        raise IntegrityError(
            f"file {entry.path} cannot be decrypted or decoded: it was changed after it was written",
            hint="restore the file from a copy you trust",
            code="file-damaged",
        ) from None
