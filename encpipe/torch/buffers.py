"""The memory that loading writes to, and rows moved there in an order. No I/O.

Everything heavy is NumPy with the interpreter lock released: torch would start threads of its own for it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encpipe.torch.memory import MEMORY

Order = npt.NDArray[np.int64]
Anything = npt.NDArray[Any]

_WIDE = 128
"""Bytes of a row from which on a gather is as fast out of cold memory as out of the cache."""
_BLOCK = 256 * 1024
"""Bytes moved at once where they pass through the cache."""


class _Scratch(threading.local):
    memory = np.empty(0, np.uint8)


_SCRATCH = _Scratch()


def scratch(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Anything:
    """An array in memory of this thread, used until the next call; ends with the thread.

    Rows are gathered from here: copied here first, a column lies in the cache, which makes its gather twice
    as fast; and no fresh memory has to be mapped in.
    """
    size = math.prod(shape) * dtype.itemsize
    if len(_SCRATCH.memory) < size:
        _SCRATCH.memory = np.empty(size, np.uint8)
    return _SCRATCH.memory[:size].view(dtype).reshape(shape)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Anything:
    """A new array that may be written to, with anything in it."""
    return MEMORY.empty(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def is_wide(width: int, dtype: np.dtype[Any]) -> bool:
    """Whether rows of so many items are gathered from where they are."""
    return width * dtype.itemsize >= _WIDE


@cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any] | None:
    """The same type in NumPy; None where it has none (bfloat16)."""
    try:
        found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        return None
    return found


def gather(source: Anything, order: Order) -> torch.Tensor:
    """The rows of an array in that order, as a tensor of its own. Row numbers are not checked."""
    out = empty((len(order), *source.shape[1:]), source.dtype)
    np.take(source, order, axis=0, out=out, mode="clip")  # without clip NumPy makes one more copy
    return torch.from_numpy(out)


def gather_wide(parts: Sequence[Anything], order: Order) -> torch.Tensor:
    """The same of several arrays, as if they were one, without putting them together first."""
    if len(parts) == 1:
        return gather(parts[0], order)
    first = parts[0]
    out = empty((len(order), *first.shape[1:]), first.dtype)
    rows = max(1, _BLOCK // max(1, first[:1].nbytes))
    starts = np.cumsum([0, *map(len, parts)])
    owner = np.searchsorted(starts, order, side="right") - 1
    for number, part in enumerate(parts):
        places = np.flatnonzero(owner == number)
        numbers = order[places] - starts[number]
        for at in range(0, len(places), rows):
            out[places[at : at + rows]] = np.take(part, numbers[at : at + rows], axis=0)
    return torch.from_numpy(out)
