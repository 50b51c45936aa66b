"""Several columns packed into one tensor [rows, columns]. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from encpipe.configtable import did_you_mean
from encpipe.errors import ConfigError
from encpipe.torch.buffers import Anything, empty, numpy_dtype
from encpipe.torch.columns import Dense, Kind, mask_name
from encpipe.torch.leaves import Part
from encpipe.torch.values import Values

_BLOCK = 4_096
"""Rows written at once: few enough that what eight columns touch stays in the cache, enough for few calls."""


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

    def load(self, table: pa.Table) -> Values:
        """The stack and its mask."""
        chunks = [
            (len(batch), [column.part(batch[column.leaf.name]) for column in self.columns])
            for batch in table.to_batches()
        ]
        found: Values = {self.name: self._packed(chunks, len(table), self.target, self._write)}
        if self.masked:
            mask = self._packed(chunks, len(table), np.dtype(np.bool_), self._write_mask)
            found[mask_name(self.name)] = mask
        return found

    def _packed(
        self,
        chunks: Sequence[tuple[int, Sequence[Part]]],
        rows: int,
        dtype: np.dtype[Any],
        write: Callable[[Sequence[Part], int, Anything], None],
    ) -> torch.Tensor:
        packed = empty((rows, sum(column.width for column in self.columns)), dtype)
        at = 0
        with np.errstate(all="ignore"):  # what a cast cannot hold is the caller's wish
            for size, parts in chunks:
                for start in range(0, size, _BLOCK):
                    stop = min(start + _BLOCK, size)
                    write(parts, start, packed[at + start : at + stop])
                at += size
        return torch.from_numpy(packed)

    def _write(self, parts: Sequence[Part], start: int, target: Anything) -> None:
        """Rows from `start` on of all columns, as many as `target` has."""
        left, rows = 0, len(target)
        for column, part in zip(self.columns, parts, strict=True):
            width = column.width
            begin, end = start * width, (start + rows) * width
            if width == 1:  # faster than the general case
                target[:, left] = part.values[begin:end]
            else:
                target[:, left : left + width] = part.values[begin:end].reshape(rows, width)
            if part.gaps is not None:
                first, last = np.searchsorted(part.gaps, (begin, end))
                row, place = np.divmod(part.gaps[first:last] - begin, width)
                target[row, left + place] = part.filler
            left += width

    def _write_mask(self, parts: Sequence[Part], start: int, target: Anything) -> None:
        """The same of where there are values."""
        left, rows = 0, len(target)
        for column, part in zip(self.columns, parts, strict=True):
            width = column.width
            if part.valid is None or not column.masked:
                target[:, left : left + width] = True
            else:
                valid = part.valid[start * width : (start + rows) * width]
                target[:, left : left + width] = valid.reshape(rows, width)
            left += width


def stacks_of(
    kinds: Mapping[str, Kind], stack: Mapping[str, Sequence[str]], dtypes: Mapping[str, torch.dtype]
) -> tuple[Stack, ...]:
    """The stacks that were asked for. Raises `ConfigError` as `Converter` says."""
    if not isinstance(stack, Mapping):
        raise ConfigError(f"stack is {stack!r}: it names tensors", hint='stack={"x": ["column", ...]}')
    return tuple(_stack(name, names, kinds, dtypes.get(name)) for name, names in stack.items())


def _stack(name: str, names: Sequence[str], kinds: Mapping[str, Kind], dtype: torch.dtype | None) -> Stack:
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not names or len({*map(str, names)}) != len(names):
        raise ConfigError(f"stack {name!r} is {names!r}: it is a list of different columns")
    columns = []
    for column in names:
        if column not in kinds:
            raise ConfigError(
                f"stack {name!r} has column {column!r}, which is not read",
                hint=did_you_mean(str(column), set(kinds)),
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
    """The type that holds all values: NumPy's, since torch's rounds int64 with float32."""
    native = [numpy_dtype(dtype) or np.dtype(np.float32) for dtype in dtypes]
    common = np.result_type(*native)
    if common.kind == "f" and all(dtype.kind in "iub" for dtype in native):  # int64 and uint64
        raise ConfigError(
            f"stack {name!r} has columns of {', '.join(sorted({str(d) for d in dtypes}))}, of no common type",
            hint=f'choose one: conversion=Conversion(dtypes={{"{name}": torch.float32}})',
        )
    return torch.from_numpy(np.empty(0, common)).dtype
