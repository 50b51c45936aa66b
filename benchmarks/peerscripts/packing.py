"""Rows as peers take them fastest: a row's numbers as one vector for each type.

As a field for each number LitData takes 6 times as long, MosaicML and HF datasets several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

PACKED: Final = {"int64": np.int64, "double": np.float64}
VECTORS: Final = {"int64": torch.int64, "double": torch.float64, "tokens": torch.int32}
_LEAST: Final = 2
"""A single column stays what it is."""


def packs(schema: pa.Schema) -> dict[str, list[str]]:
    """Name of a vector -> the columns in it."""
    found = {kind: [f.name for f in schema if str(f.type) == kind] for kind in PACKED}
    return {kind: names for kind, names in found.items() if len(names) >= _LEAST}


def packed_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """A dict for each row: vectors by type, and the other columns by name."""
    vectors = {}
    taken: set[str] = set()
    for kind, names in packs(batch.schema).items():
        vectors[kind] = np.stack([batch[name].to_numpy() for name in names], axis=1)
        taken.update(names)
    others = {name: _values(batch[name]) for name in batch.schema.names if name not in taken}
    for n in range(len(batch)):
        row: dict[str, Any] = {kind: matrix[n] for kind, matrix in vectors.items()}
        row.update((name, values[n]) for name, values in others.items())
        yield row


def _values(column: pa.Array) -> Any:
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), -1)
    return column.to_pylist()


def packed_table(table: pa.Table) -> pa.Table:
    """The same as columns: a fixed-size list for each type."""
    columns, taken = {}, set()
    for kind, names in packs(table.schema).items():
        matrix = np.stack([table[name].to_numpy() for name in names], axis=1)
        columns[kind] = pa.FixedSizeListArray.from_arrays(matrix.reshape(-1), len(names))
        taken.update(names)
    return pa.table(columns | {name: table[name] for name in table.column_names if name not in taken})


def collated(rows: list[Any]) -> dict[str, Any]:
    """A batch: vectors (or their bytes) as (rows, values), numbers as (rows,), the rest as lists."""
    if not isinstance(rows[0], dict):
        return {"tokens": torch.stack(rows)}
    return {name: _column(name, [row[name] for row in rows]) for name in rows[0]}


def _column(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(values)
    if name in VECTORS:
        return torch.frombuffer(bytearray().join(values), dtype=VECTORS[name]).reshape(len(values), -1)
    if isinstance(first, memoryview):
        return [bytes(value) for value in values]
    return values if isinstance(first, str | bytes) else torch.tensor(values)
