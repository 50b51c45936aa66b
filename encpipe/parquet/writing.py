"""Writing one encrypted Parquet file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe import strictjson
from encpipe.aead import Label, digest
from encpipe.errors import EncpipeError
from encpipe.filelist import MAX_ROW_GROUPS
from encpipe.keyring import DatasetKeys
from encpipe.parquet.encoding import codecs, dictionary_leaves
from encpipe.parquet.keyclients import WrappingClient, encryption_properties
from encpipe.parquet.schema import Layout

COMMITMENTS_FIELD: Final = b"encpipe.dek_commitments"
"""Name of the footer's metadata entry that holds leaf path -> DEK commitment."""


@dataclass(frozen=True)
class Sealed:
    """What the file list has to know of a finished file."""

    rows: int
    row_groups: tuple[int, ...]
    footer_commitment: bytes
    columns_commitment: bytes


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
        groups = {} if layout.is_uniform else _grouped(layout)
        client = WrappingClient(file_id, layout, keys)
        properties = encryption_properties(client, layout.key_id(layout.footer_key), groups)
        leaves = [leaf for group in groups.values() for leaf in group]
        if len(client.commitments) != 1 + len(leaves):
            raise EncpipeError("PyArrow made another number of data keys than was asked for")
        self._footer_commitment, *columns = client.commitments
        self._vector = strictjson.dumps({leaf: c.hex() for leaf, c in zip(leaves, columns, strict=True)})
        self._row_groups: list[int] = []
        self._sink, self._schema, self._properties = sink, schema, properties
        self._compression, self._leaves = compression, tuple(layout.columns)
        self._writer: pq.ParquetWriter | None = None

    def _open(self, first: pa.Table) -> pq.ParquetWriter:
        dictionary = dictionary_leaves(first, self._leaves)
        return pq.ParquetWriter(
            self._sink,
            self._schema,
            compression=codecs(first, self._leaves, self._compression, dictionary),
            use_dictionary=dictionary,
            encryption_properties=self._properties,
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
        if self._writer is None:
            self._writer = self._open(table)
        self._writer.write_table(table, row_group_size=len(table))
        self._row_groups.append(len(table))

    def close(self) -> Sealed:
        """Write the footer."""
        if self._writer is None:
            self._writer = self._open(self._schema.empty_table())
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
        if self._writer is not None:
            with contextlib.suppress(pa.ArrowException, OSError, EncpipeError):
                self._writer.close()


def _grouped(layout: Layout) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for leaf, name in layout.columns.items():
        groups.setdefault(layout.key_id(name), []).append(leaf)
    return groups
