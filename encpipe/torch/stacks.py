"""Several columns packed into one tensor [rows, columns]. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from encpipe.configtable import did_you_mean
from encpipe.errors import ConfigError
from encpipe.torch.buffers import Anything, Order, gather, numpy_dtype, scratch
from encpipe.torch.columns import Dense, Kind, mask_name
from encpipe.torch.leaves import Leaf, mask_of
from encpipe.torch.values import Values

_BLOCK = 2_048
"""Rows written at once, so that a block of all columns stays in the cache."""


@dataclass(frozen=True)
class Stack:
    """Columns of numbers side by side."""

    name: str
    columns: tuple[Dense, ...]
    target: np.dtype[Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns it is made of."""
        return tuple(column.leaf.name for column in self.columns)

    @property
    def masked(self) -> bool:
        """Whether it has a mask."""
        return any(column.masked for column in self.columns)

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it adds to a batch."""
        return (self.name, mask_name(self.name)) if self.masked else (self.name,)

    @property
    def others(self) -> tuple[str, ...]:
        """Nothing else."""
        return ()

    def load(self, table: pa.Table, order: Order | None) -> Values:
        """The stack and its mask, in that order of rows."""
        parts = [
            (len(batch), [column.plain(batch[column.leaf.name]) for column in self.columns])
            for batch in table.to_batches()
        ]
        found: Values = {self.name: self._pack(parts, len(table), order, self.target, Leaf.write)}
        if self.masked:
            found[mask_name(self.name)] = self._pack(
                parts, len(table), order, np.dtype(np.bool_), _write_mask
            )
        return found

    def _pack(
        self,
        parts: Sequence[tuple[int, Sequence[pa.Array]]],
        rows: int,
        order: Order | None,
        dtype: np.dtype[Any],
        write: Callable[[Leaf, pa.Array, Anything], None],
    ) -> torch.Tensor:
        widths = [column.width for column in self.columns]
        ends = np.cumsum(widths).tolist()
        total = ends[-1]
        packed = np.empty((rows, total), dtype) if order is None else scratch(rows, total, dtype)
        at = 0
        for size, part in parts:
            for start in range(0, size, _BLOCK):
                stop = min(start + _BLOCK, size)
                for column, values, width, end in zip(self.columns, part, widths, ends, strict=True):
                    target = packed[at + start : at + stop, end - width : end]
                    write(column.leaf, values.slice(start * width, (stop - start) * width), target)
            at += size
        return torch.from_numpy(packed) if order is None else gather(packed, order)


def _write_mask(_: Leaf, values: pa.Array, target: Anything) -> None:
    """What `Leaf.write` is to values."""
    target[:] = mask_of(values).reshape(target.shape)


def stacks_of(
    kinds: Mapping[str, Kind], stack: Mapping[str, Sequence[str]], dtypes: Mapping[str, torch.dtype]
) -> tuple[Stack, ...]:
    """The stacks that were asked for. Raises `ConfigError` as `Converter` says."""
    return tuple(_stack(name, names, kinds, dtypes.get(name)) for name, names in stack.items())


def _stack(name: str, names: Sequence[str], kinds: Mapping[str, Kind], dtype: torch.dtype | None) -> Stack:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ConfigError(f"stack {name!r} is {names!r}: it is a list of different columns")
    columns = []
    for column in names:
        if column not in kinds:
            raise ConfigError(
                f"stack {name!r} has column {column!r}, which is not read",
                hint=did_you_mean(column, set(kinds)),
            )
        kind = kinds[column]
        if not isinstance(kind, Dense):
            raise ConfigError(
                f"stack {name!r} has column {column!r}, which is no number and no fixed-size list of them",
                hint="leave it out of the stack",
            )
        columns.append(kind)
    common = _common(name, [column.leaf.dtype for column in columns]) if dtype is None else dtype
    # of a type that NumPy lacks it becomes one in the end
    return Stack(name, tuple(columns), numpy_dtype(common) or np.dtype(np.float32))


def _common(name: str, dtypes: Sequence[torch.dtype]) -> torch.dtype:
    try:
        return reduce(torch.promote_types, dtypes)
    except RuntimeError:  # torch knows no common type of, say, uint64 and float32
        raise ConfigError(
            f"stack {name!r} has columns of {', '.join(sorted({str(d) for d in dtypes}))}, of no common type",
            hint=f'choose one: conversion=Conversion(dtypes={{"{name}": torch.float32}})',
        ) from None
