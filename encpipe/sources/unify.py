"""One schema for all files of a source, and tables brought to it. Pure, no I/O.

Files may lack columns (filled with nulls) and order them differently; a column of another type is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from encpipe.errors import EncpipeError
from encpipe.sources.base import TO_UTF8, unreadable, unsupported


@dataclass(frozen=True)
class Target:
    """What each table of a file is brought to: `schema`, with `fixed` columns checked and left out.

    `fixed` maps partition columns that also stand in the file to the one value (None for null) they may have.
    """

    schema: pa.Schema
    fixed: Mapping[str, pa.Scalar] = field(default_factory=dict)

    def conform(self, table: pa.Table, name: str) -> pa.Table:
        """`table` with exactly `schema`. Raises `source-unreadable` when the file has other columns."""
        for column, value in self.fixed.items():
            _check_fixed(table, column, value, name)
        if table.schema.equals(self.schema, check_metadata=True):
            return table
        columns = [_column(table, want, name) for want in self.schema]
        unknown = set(table.column_names) - set(self.schema.names) - set(self.fixed)
        if unknown:
            raise _changed(name, min(unknown))
        if not columns:
            return table.select([]).replace_schema_metadata(self.schema.metadata)
        return pa.Table.from_arrays(columns, schema=self.schema)


def all_types(target: Target) -> dict[str, pa.DataType]:
    """The types of all columns a file may have, those that are checked and left out included."""
    types = {column.name: column.type for column in target.schema}
    return {**types, **{column: value.type for column, value in target.fixed.items()}}


def _column(table: pa.Table, want: pa.Field, name: str) -> pa.ChunkedArray:
    if want.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, want.type)], want.type)
    column = table.column(want.name)
    if column.type == want.type:
        return column
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(table.num_rows, want.type)], want.type)
    raise _changed(name, want.name)


def _changed(name: str, column: str) -> EncpipeError:
    return unreadable(name, f"its column {column!r} is not what it was when the source was opened")


def _check_fixed(table: pa.Table, column: str, value: pa.Scalar, name: str) -> None:
    if column not in table.column_names:
        return
    found = table.column(column)
    same = (
        found.null_count == len(found)
        if not value.is_valid
        else (found.null_count == 0 and pc.all(pc.equal(found, value)).as_py() is not False)
    )
    if not same:
        raise unreadable(
            name,
            f"its column {column!r} holds other values than the partition folder {column}={value.as_py()}",
            hint="drop the column from the file, or mend the folder's name",
        )


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """The schema of all (file name, schema) pairs; metadata is the first one's.

    A column some file lacks becomes nullable. Raises `unsupported`, naming file and column, when a column's
    type differs or a name stands twice.
    """
    whole: pa.Schema | None = None
    seen: list[pa.Schema] = []
    for name, schema in schemas:
        if any(schema.equals(other) for other in seen):
            continue
        check_names(name, schema)
        whole = schema if whole is None else _join(whole, schema, name)
        seen.append(schema)
    if whole is None:
        raise EncpipeError("the source holds no table", code="source-empty")
    for index, column in enumerate(whole):
        if not column.nullable and any(column.name not in schema.names for schema in seen):
            whole = whole.set(index, column.with_nullable(True))
    return whole


def check_names(name: str, schema: pa.Schema) -> None:
    """Raise `source-unreadable` for a name that is not UTF-8, `unsupported` for one that stands twice."""
    for number in range(len(schema)):
        try:
            _read_names(schema.field(number))
        except UnicodeDecodeError:
            raise unreadable(
                name, f"the name of its column {number + 1} is not UTF-8", hint=TO_UTF8
            ) from None
    if len(set(schema.names)) != len(schema.names):
        twice = next(column for column in schema.names if schema.names.count(column) > 1)
        raise unsupported(
            f"source file {name!r} has two columns named {twice!r}", hint="rename one: keys go by column name"
        )


def _read_names(column: pa.Field) -> None:
    """Names are decoded when they are asked for."""
    _ = column.name
    for number in range(column.type.num_fields):
        _read_names(column.type.field(number))


def _join(whole: pa.Schema, schema: pa.Schema, name: str) -> pa.Schema:
    try:
        return pa.unify_schemas([whole, schema])
    except pa.ArrowException:
        for column in schema:
            if column.name in whole.names:
                _check_joins(whole.field(column.name), column, name)
        raise unsupported(f"source file {name!r} has a schema that does not fit the other files") from None


def _check_joins(known: pa.Field, column: pa.Field, name: str) -> None:
    try:
        pa.unify_schemas([pa.schema([known]), pa.schema([column])])
    except pa.ArrowException:
        raise unsupported(
            f"source file {name!r} has column {column.name!r} as {column.type}, others as {known.type}",
            hint="cast the column to one type, or encrypt the files into datasets of their own",
        ) from None
