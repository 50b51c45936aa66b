"""Whether Parquet can hold a schema at all. Pure."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe.errors import EncpipeError
from encpipe.sources.base import unsupported


def check_writable(schema: pa.Schema, name: str) -> None:
    """Raise `unsupported`, naming the column, unless PyArrow can write `schema` as Parquet."""
    if not schema.names:
        raise EncpipeError(f"source {name!r} has no columns", code="source-empty")
    if _why_not(schema) is None:
        return
    for column in schema:
        why = _why_not(pa.schema([column]))
        if why is not None:
            raise unsupported(
                f"column {column.name!r} of source {name!r} has the type {column.type}: {why}",
                hint="cast the column to a type that Parquet has",
            )
    raise unsupported(f"the schema of source {name!r} cannot be written as Parquet: {_why_not(schema)}")


def _why_not(schema: pa.Schema) -> str | None:
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), schema).close()
    except pa.ArrowException as error:
        return str(error).splitlines()[0]
    return None
