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

    @property
    def is_uniform(self) -> bool:
        """Whether all columns fall under the footer key: then one DEK seals the whole file."""
        return set(self.columns.values()) <= {self.footer_key}


def same_columns(one: pq.ParquetSchema, other: pq.ParquetSchema) -> bool:
    """Whether the leaf columns of two files are the same: paths, types and levels; field ids do not count."""
    if one.equals(other):
        return True
    leaves = [[_leaf(schema.column(i)) for i in range(len(schema.names))] for schema in (one, other)]
    return leaves[0] == leaves[1]


def _leaf(column: pq.ColumnSchema) -> tuple[object, ...]:
    levels = (column.max_definition_level, column.max_repetition_level)
    return (column.path, column.physical_type, column.length, str(column.logical_type), *levels)


def count_leaves(kind: pa.DataType) -> int:
    """How many leaf columns Parquet makes of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return count_leaves(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return count_leaves(kind.value_type)
    if kind.num_fields == 0:
        return 1
    return sum(count_leaves(kind.field(i).type) for i in range(kind.num_fields))


def _check_readable(schema: pa.Schema) -> None:
    """Refuse what PyArrow writes and cannot read: lists of a fixed size of 0, however deep they stand.

    Raises `EncpipeError` `unsupported`, naming the column.
    """
    for column in schema:
        if _holds_empty_list(column.type):
            raise EncpipeError(
                f"column {column.name!r} has the type {str(column.type)[:200]}: PyArrow writes lists of the "
                "fixed size 0 as Parquet and cannot read them",
                hint="drop the column, or cast it to a list of any size",
                code="unsupported",
            )


def _holds_empty_list(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_empty_list(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _holds_empty_list(kind.value_type)
    if pa.types.is_fixed_size_list(kind) and kind.list_size == 0:
        return True
    return any(_holds_empty_list(kind.field(i).type) for i in range(kind.num_fields))


class SchemaOnDisk:
    """What Parquet makes of an Arrow schema, asked of PyArrow through an empty file in memory.

    `schema` is what readers get back; `leaves` are the dotted paths of its leaf columns, in file order.
    Raises `EncpipeError` `unsupported` for a type that Parquet cannot hold or PyArrow not read again.
    """

    def __init__(self, schema: pa.Schema) -> None:
        _check_readable(schema)
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

    @property
    def parquet_schema(self) -> pq.ParquetSchema:
        """What every file of this schema has, to be compared by `same_columns`."""
        return self._empty.schema

    def project(self, leaves: Sequence[str]) -> pa.Schema:
        """The schema that a read of these leaves gives."""
        return self._empty.read(columns=list(leaves)).schema
