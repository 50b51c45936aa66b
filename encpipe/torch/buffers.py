"""The memory that loading writes to. No I/O.

Everything heavy is NumPy with the interpreter lock released: torch would start threads of its own for it.
"""

from __future__ import annotations

import math
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from encpipe.torch.memory import MEMORY

Order = npt.NDArray[np.int64]
Anything = npt.NDArray[Any]


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


@cache
def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any] | None:
    """The same type in NumPy; None where it has none (bfloat16)."""
    try:
        found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        return None
    return found
