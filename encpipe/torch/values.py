"""Rows between reader and batch: cut, joined and moved. No I/O.

`Values` maps names to columns of equal length along dimension 0. A column is

    torch.Tensor      numbers, masks, stacks: dense, contiguous along dimension 0
    np.ndarray        of dtype object: the str or bytes of a text column, so that moving rows moves pointers
    pa.Array          text that stays in Arrow, or does until it is finished; lists of different lengths
                      (large_list of a primitive type)

Nothing here writes into what it is given. `cut` gives views, `join` copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from encpipe.torch import arrowrows
from encpipe.torch.buffers import Order, empty, numpy_dtype, scratch

Objects: TypeAlias = npt.NDArray[np.object_]
Column: TypeAlias = "torch.Tensor | Objects | pa.Array"
Values: TypeAlias = dict[str, Column]

_NARROW = 128
"""A column of rows with fewer bytes is copied before they are taken: out of the cache it is twice as fast."""
_SAME_SIZE = {1: torch.uint8, 2: torch.int16}


def length(values: Mapping[str, Column]) -> int:
    """How many rows there are."""
    return len(next(iter(values.values())))


def cut(values: Mapping[str, Column], start: int, stop: int) -> Values:
    """Rows `start` to `stop` (exclusive), as views."""
    return {
        name: column.slice(start, stop - start) if isinstance(column, pa.Array) else column[start:stop]
        for name, column in values.items()
    }


def take(values: Mapping[str, Column], order: Order) -> Values:
    """The rows with those numbers, in that order, as copies. Raises `IndexError` for one that no row has."""
    rows = length(values)
    if len(order) and (order.min() < 0 or order.max() >= rows):
        raise IndexError(f"rows {order.min()} to {order.max()} of {rows} rows")
    return {name: _take(column, order) for name, column in values.items()}


def _take(column: Column, order: Order) -> Column:
    if isinstance(column, pa.Array):
        return arrowrows.take(column, order)
    if not isinstance(column, torch.Tensor):
        return column.take(order)
    made = like(column, len(order))
    if made.numel():
        source = opaque(column)
        if source.itemsize < _NARROW:
            near = scratch(source.shape, source.dtype)
            near[:] = source
            source = near
        np.take(source, order, out=opaque(made), mode="clip")  # without clip NumPy makes one more copy
    return made


def join(parts: Sequence[Mapping[str, Column]]) -> Values:
    """The rows of all parts, one part after the other. Of one part: its own columns, not copied."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(columns: Sequence[Column]) -> Column:
    first = columns[0]
    if all(isinstance(column, pa.Array) for column in columns):
        return arrowrows.concat(columns)
    if isinstance(first, torch.Tensor):
        return torch.cat([*columns])
    return np.concatenate([np.asarray(column, object) for column in columns])


def like(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """A tensor of so many rows of the same kind, with anything in it."""
    shape = (rows, *tensor.shape[1:])
    dtype = numpy_dtype(tensor.dtype)
    if dtype is None:
        return torch.empty(shape, dtype=tensor.dtype)
    return torch.from_numpy(empty(shape, dtype))


def opaque(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's memory as items of a row each, which NumPy moves in one piece; narrow ones as integers."""
    width = tensor.element_size() * math.prod(tensor.shape[1:])
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    try:
        array: npt.NDArray[Any] = tensor.numpy()
    except TypeError:  # NumPy has no such type
        array = tensor.view(_SAME_SIZE[tensor.element_size()]).numpy()
    flat = array.reshape(-1)
    if width == 0:
        return np.empty(len(tensor), "V0")
    return flat.view(f"u{width}" if width in (1, 2, 4, 8) else f"V{width}")
