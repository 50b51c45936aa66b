"""Columns of one kind each, from Arrow to `Values` and from those to batches. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encpipe.torch.buffers import empty, numpy_dtype
from encpipe.torch.leaves import Leaf, Part, valid_of
from encpipe.torch.values import Column, Values

Cuts = Sequence[tuple[int, int]]
"""Where batches begin and end."""


class Kind(Protocol):
    """One column of the schema."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What it adds to a batch as tensors."""

    @property
    def others(self) -> tuple[str, ...]:
        """What it adds to a batch that is no tensor."""

    def load(self, column: pa.ChunkedArray) -> Values:
        """The column, and its mask."""

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        """What the batches hold of the column, for each batch."""

    def rows(self, column: Column) -> Sequence[Any]:
        """What samples hold of the column, for each row."""


def native(leaf: Leaf) -> np.dtype[Any]:
    """The type that the values have without a cast."""
    found = numpy_dtype(leaf.dtype)
    assert found is not None, leaf.dtype
    return found


def mask_name(name: str) -> str:
    """What the mask of a column or stack is called."""
    return f"{name}_mask"


@dataclass(frozen=True)
class Dense:
    """Numbers, and fixed-size lists of them: `shape` is that of one row, `target` the type they become."""

    leaf: Leaf
    shape: tuple[int, ...]
    masked: bool
    target: np.dtype[Any]

    @property
    def tensors(self) -> tuple[str, ...]:
        name = self.leaf.name
        return (name, mask_name(name)) if self.masked else (name,)

    @property
    def others(self) -> tuple[str, ...]:
        return ()

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape)

    @cached_property
    def _lies_as_it_is(self) -> bool:
        """Whether Arrow's memory is the tensor's, where there are no nulls."""
        kind = self.leaf.kind
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        return number and not self.shape and self.target == native(self.leaf)

    def load(self, column: pa.ChunkedArray) -> Values:
        if self._lies_as_it_is and column.num_chunks == 1 and not self.masked:
            chunk = column.chunk(0)
            if not chunk.null_count:  # in the way that costs least: this is done for every column
                return {self.leaf.name: torch.from_dlpack(chunk)}
        name, parts = self.leaf.name, [self.part(chunk) for chunk in column.chunks]
        found: Values = {name: self._load(parts, len(column))}
        if self.masked:
            found[mask_name(name)] = mask(parts, (len(column), *self.shape))
        return found

    def part(self, array: pa.Array) -> Part:
        """All numbers of the rows, one after the other."""
        for _ in self.shape:
            array = elements_of(array)
        return self.leaf.part(self.leaf.plain(array))

    def _load(self, parts: Sequence[Part], rows: int) -> torch.Tensor:
        shape = (rows, *self.shape)
        if len(parts) == 1 and self.target == native(self.leaf) != np.bool_ and not parts[0].all_null:
            return parts[0].tensor().reshape(shape)
        made = empty(shape, self.target)
        at, flat = 0, made.reshape(-1)
        for part in parts:
            part.write(flat[at : at + len(part.array)])
            at += len(part.array)
        return torch.from_numpy(made)

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        assert isinstance(column, torch.Tensor)
        return {self.leaf.name: split(column, cuts)}

    def rows(self, column: Column) -> Sequence[Any]:
        assert isinstance(column, torch.Tensor)
        return list(column.unbind())


def split(column: torch.Tensor, cuts: Cuts) -> Sequence[torch.Tensor]:
    """The rows between the cuts, which follow one another; not copied.

    Each is a tensor of its own all the same, in a storage of its own: else what is done to one batch shows in
    the others (`share_memory_` moves all of them, a write spoils the backward pass of another, and
    `torch.save` writes them all).
    """
    if column.device.type == "cpu" and numpy_dtype(column.dtype) is not None:
        array = column.numpy()
        return [torch.from_numpy(array[start:stop]) for start, stop in cuts]
    return [column[start:stop].data for start, stop in cuts]


def mask(parts: Sequence[Part], shape: tuple[int, ...]) -> torch.Tensor:
    """True where there is a value; rows of `shape[1:]`."""
    if all(part.valid is None for part in parts):
        return torch.ones(shape, dtype=torch.bool)
    masks = [part.mask() for part in parts]
    return torch.from_numpy(masks[0] if len(masks) == 1 else np.concatenate(masks)).reshape(shape)


def elements_of(array: pa.Array) -> pa.Array:
    """The elements of fixed-size lists; those of a null list are null."""
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    valid = valid_of(array)
    if valid is not None:
        values = pc.if_else(pa.array(np.repeat(valid, size)), values, pa.scalar(None, values.type))
    return values
