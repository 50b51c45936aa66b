"""Rows between reader and batch: cut, joined and interleaved. No I/O.

`Values` maps names to columns of equal length along dimension 0. A column is

    torch.Tensor      numbers, masks, stacks: dense, contiguous along dimension 0
    np.ndarray        of dtype object: the str or bytes of a text column, so that moving rows moves pointers
    pa.Array          text that stays in Arrow; lists of different lengths (large_list of a primitive type)

Nothing here writes into what it is given. `cut` gives views, `join` and `interleave` give copies.
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
from encpipe.torch.buffers import Order, empty, numpy_dtype

Objects: TypeAlias = npt.NDArray[np.object_]
Column: TypeAlias = "torch.Tensor | Objects | pa.Array"
Values: TypeAlias = dict[str, Column]

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
    """The rows with those numbers, in that order, as copies. The numbers are not checked."""
    return {name: _take(column, order) for name, column in values.items()}


def _take(column: Column, order: Order) -> Column:
    if isinstance(column, pa.Array):
        return arrowrows.take(column, order)
    if not isinstance(column, torch.Tensor):
        return column.take(order)
    made = _empty(column, len(order))
    if made.numel():
        item = _item(_row_bytes(column))
        np.take(_opaque(column, item), order, out=_opaque(made, item), mode="clip")
    return made


def join(parts: Sequence[Mapping[str, Column]]) -> Values:
    """The rows of all parts, one part after the other. Of one part: its own columns, not copied."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(columns: Sequence[Column]) -> Column:
    first = columns[0]
    if isinstance(first, pa.Array):
        return arrowrows.concat(columns)
    if isinstance(first, torch.Tensor):
        if first.device.type != "cpu":
            return torch.cat([*columns])
        made = _empty(first, sum(map(len, columns)))
        if made.numel():
            item = _item(_row_bytes(first))
            np.concatenate([_opaque(column, item) for column in columns], out=_opaque(made, item))
        return made
    return np.concatenate(columns)


def interleave(parts: Sequence[Mapping[str, Column]], run: int) -> Values:
    """`run` rows of part 0, `run` rows of part 1, ..., round after round until all are used.

    The parts have equally many rows, a multiple of `run`; anything else raises `ValueError`.
    """
    rows = {length(part) for part in parts}
    if len(rows) != 1 or min(rows) % run:
        raise ValueError(f"parts of {sorted(rows)} rows cannot be interleaved by {run}")
    if len(parts) == 1:
        return dict(parts[0])
    return {name: _interleave([part[name] for part in parts], run) for name in parts[0]}


def _interleave(columns: Sequence[Column], run: int) -> Column:
    first = columns[0]
    count, rows = len(columns), len(first)
    if isinstance(first, pa.Array):
        order = np.arange(count * rows).reshape(count, rows // run, run).swapaxes(0, 1)
        return arrowrows.take(arrowrows.concat(columns), order.reshape(-1))
    if not isinstance(first, torch.Tensor):
        out = np.empty((rows // run, count, run), object)
        for number, column in enumerate(columns):
            out[:, number] = column.reshape(-1, run)
        return out.reshape(-1)
    made = _empty(first, count * rows)
    if made.numel():
        item = _item(run * _row_bytes(first))
        target = _opaque(made, item).reshape(-1, count)
        for number, column in enumerate(columns):
            target[:, number] = _opaque(column, item)
    return made


def _empty(like: torch.Tensor, rows: int) -> torch.Tensor:
    shape = (rows, *like.shape[1:])
    dtype = numpy_dtype(like.dtype)
    if dtype is None:
        return torch.empty(shape, dtype=like.dtype)
    return torch.from_numpy(empty(shape, dtype))


def _row_bytes(tensor: torch.Tensor) -> int:
    return int(tensor.element_size() * math.prod(tensor.shape[1:]))


def _opaque(tensor: torch.Tensor, item: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The tensor's memory as opaque items, which NumPy moves in one piece each."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    try:
        array: npt.NDArray[Any] = tensor.numpy()
    except TypeError:  # NumPy has no such type
        array = tensor.view(_SAME_SIZE[tensor.element_size()]).numpy()
    return (array if array.ndim == 1 else array.reshape(-1)).view(item)


def _item(size: int) -> np.dtype[np.void]:
    return np.dtype((np.void, size))
