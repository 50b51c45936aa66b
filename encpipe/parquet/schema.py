"""What Parquet makes of an Arrow schema, and which key each of its leaves falls under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe.errors import EncpipeError


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
