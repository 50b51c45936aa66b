"""Several columns packed into one tensor [rows, columns]. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from encpipe.configtable import did_you_mean
from encpipe.errors import ConfigError
from encpipe.torch.arrowrows import Order
from encpipe.torch.columns import Dense, Kind, gather, mask_name
from encpipe.torch.leaves import mask_of, numpy_of
from encpipe.torch.values import Values

_BLOCK = 2_048
"""Rows written at once, so that a block of all columns stays in the cache."""


@dataclass(frozen=True)
class Stack:
    """Columns of numbers side by side."""

    name: str
    columns: tuple[Dense, ...]
    dtype: torch.dtype

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

    def load(self, arrays: Mapping[str, pa.Array], order: Order | None) -> Values:
        """The stack and its mask, in that order of rows."""
        plain = [column.plain(arrays[column.leaf.name]) for column in self.columns]
        filled = [column.leaf.fill(values) for column, values in zip(self.columns, plain, strict=True)]
        rows = len(arrays[self.names[0]])
        found: Values = {self.name: self._pack([numpy_of(v) for v in filled], rows, self.dtype, order)}
        if self.masked:
            masks = [mask_of(values) for values in plain]
            found[mask_name(self.name)] = self._pack(masks, rows, torch.bool, order)
        return found

    def _pack(
        self, parts: Sequence[npt.NDArray[Any]], rows: int, dtype: torch.dtype, order: Order | None
    ) -> torch.Tensor:
        widths = [column.width for column in self.columns]
        out = torch.empty((rows, sum(widths)), dtype=dtype)
        target: Any = out if dtype == torch.bfloat16 else out.numpy()
        wide = [part.reshape(rows, width) for part, width in zip(parts, widths, strict=True)]
        ends = np.cumsum(widths).tolist()
        for start in range(0, rows, _BLOCK):
            block = slice(start, start + _BLOCK)
            for part, width, end in zip(wide, widths, ends, strict=True):
                target[block, end - width : end] = part[block]
        return out if order is None else gather(target, order)


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
    return Stack(name, tuple(columns), dtype or _common(name, [column.leaf.dtype for column in columns]))


def _common(name: str, dtypes: Sequence[torch.dtype]) -> torch.dtype:
    try:
        return reduce(torch.promote_types, dtypes)
    except RuntimeError:  # torch knows no common type of, say, uint64 and float32
        raise ConfigError(
            f"stack {name!r} has columns of {', '.join(sorted({str(d) for d in dtypes}))}, of no common type",
            hint=f'choose one: conversion=Conversion(dtypes={{"{name}": torch.float32}})',
        ) from None
