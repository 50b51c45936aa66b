"""Columns of one kind each, from Arrow to `Values` and from those to batches. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encpipe.torch import arrowrows
from encpipe.torch.buffers import Anything, Order, empty, gather, gather_wide, is_wide, numpy_dtype, scratch
from encpipe.torch.leaves import (
    Conversion,
    Leaf,
    Nulls,
    Part,
    fill,
    is_text,
    leaf_of,
    plain_text,
    refuse_nulls,
    unsupported,
    valid_of,
)
from encpipe.torch.values import Column, Values

_CHOOSE = "choose other columns with columns=[...], or read it with encpipe.open_dataset"
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

    def load(self, column: pa.ChunkedArray, order: Order | None) -> Values:
        """The column, and its mask, in that order of rows."""

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        """What the batches hold of the column, for each batch."""


def kind_of(field: pa.Field, nulls: Nulls, conversion: Conversion) -> Kind:
    """How the column is to be read. Raises `EncpipeError` `unsupported` where no tensor can hold it."""
    masked = nulls == "mask" and field.nullable
    if is_text(field.type):
        return Text(field.name, masked, nulls, conversion.strings == "arrow")
    inner = field.type
    variable = _is_list(inner)
    if variable:
        if conversion.lists == "error":
            raise unsupported(field.name, inner, 'conversion=Conversion(lists="offsets"), or "pad", reads it')
        inner = inner.value_type
    shape = []
    while pa.types.is_fixed_size_list(inner):
        shape.append(inner.list_size)
        inner = inner.value_type
    leaf = leaf_of(field.name, inner, nulls, conversion)
    if leaf is None:
        raise unsupported(field.name, field.type, _CHOOSE)
    if variable:
        return Ragged(leaf, tuple(shape), masked, conversion.lists == "pad")
    wish = conversion.dtypes.get(field.name, leaf.dtype)
    return Dense(leaf, tuple(shape), masked, numpy_dtype(wish) or _native(leaf))


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in tests)


def _native(leaf: Leaf) -> np.dtype[Any]:
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

    def load(self, column: pa.ChunkedArray, order: Order | None) -> Values:
        name, parts = self.leaf.name, [self.part(chunk) for chunk in column.chunks]
        found: Values = {name: self._load(parts, len(column), order)}
        if self.masked:
            found[mask_name(name)] = _mask(parts, (len(column), *self.shape), order)
        return found

    def part(self, array: pa.Array) -> Part:
        """All numbers of the rows, one after the other."""
        for _ in self.shape:
            array = _elements(array)
        return self.leaf.part(self.leaf.plain(array))

    def _load(self, parts: Sequence[Part], rows: int, order: Order | None) -> torch.Tensor:
        shape = (rows, *self.shape)
        as_it_lies = self.target == _native(self.leaf) and all(part.valid is None for part in parts)
        if order is None:
            if as_it_lies and len(parts) == 1 and self.target != np.bool_:
                # not through NumPy, which shows Arrow's buffers as read-only: torch warns of those
                return torch.from_dlpack(parts[0].array).reshape(shape)
            return torch.from_numpy(_written(parts, empty(shape, self.target)))
        if as_it_lies and is_wide(self.width, self.target):
            return gather_wide([part.values.reshape(-1, *self.shape) for part in parts], order)
        return gather(_written(parts, scratch(shape, self.target)), order)

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        assert isinstance(column, torch.Tensor)
        return {self.leaf.name: split(column, cuts)}


def split(column: torch.Tensor, cuts: Cuts) -> Sequence[torch.Tensor]:
    """Views of the rows between the cuts, which follow one another."""
    if len(cuts) == 1:
        return (column,)
    views: Sequence[torch.Tensor] = column.split(cuts[0][1] - cuts[0][0])
    return views


def _written(parts: Sequence[Part], target: Anything) -> Anything:
    at, flat = 0, target.reshape(-1)
    for part in parts:
        part.write(flat[at : at + len(part.array)])
        at += len(part.array)
    return target


def _mask(parts: Sequence[Part], shape: tuple[int, ...], order: Order | None) -> torch.Tensor:
    """True where there is a value; rows of `shape[1:]`."""
    if all(part.valid is None for part in parts):
        return torch.ones((shape[0] if order is None else len(order), *shape[1:]), dtype=torch.bool)
    masks = [part.mask() for part in parts]
    mask = (masks[0] if len(masks) == 1 else np.concatenate(masks)).reshape(shape)
    return torch.from_numpy(mask) if order is None else gather(mask, order)


def _elements(array: pa.Array) -> pa.Array:
    """The elements of fixed-size lists; those of a null list are null."""
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    valid = valid_of(array)
    if valid is not None:
        values = pc.if_else(pa.array(np.repeat(valid, size)), values, pa.scalar(None, values.type))
    return values


@dataclass(frozen=True)
class Text:
    """Strings and binaries."""

    name: str
    masked: bool
    nulls: Nulls
    arrow: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        return (mask_name(self.name),) if self.masked else ()

    @property
    def others(self) -> tuple[str, ...]:
        return (self.name,)

    def load(self, column: pa.ChunkedArray, order: Order | None) -> Values:
        values = plain_text(arrowrows.whole(column))
        filled = fill(self.name, values, self.nulls) if values.null_count else values
        found: Values = {}
        if self.arrow:
            found[self.name] = filled if order is None else arrowrows.take(filled, order)
        else:
            objects = filled.to_numpy(zero_copy_only=False)
            found[self.name] = objects if order is None else objects.take(order)
        if self.masked:
            found[mask_name(self.name)] = _mask([Part(values, valid_of(values))], (len(values),), order)
        return found

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        if isinstance(column, pa.Array):
            return {self.name: [column.slice(start, stop - start) for start, stop in cuts]}
        assert isinstance(column, np.ndarray)
        objects = column.tolist()
        return {self.name: [objects[start:stop] for start, stop in cuts]}


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, of numbers or of fixed-size lists of them (`shape` is that of one element).

    On the way they are a large_list of a primitive type, without nulls; bools are uint8.
    """

    leaf: Leaf
    shape: tuple[int, ...]
    masked: bool
    pad: bool

    @property
    def _extra(self) -> str:
        return f"{self.leaf.name}_lengths" if self.pad else f"{self.leaf.name}_offsets"

    @property
    def tensors(self) -> tuple[str, ...]:
        name = self.leaf.name
        return (name, self._extra, mask_name(name)) if self.masked else (name, self._extra)

    @property
    def others(self) -> tuple[str, ...]:
        return ()

    @property
    def _width(self) -> int:
        return math.prod(self.shape)

    def load(self, column: pa.ChunkedArray, order: Order | None) -> Values:
        name, array = self.leaf.name, arrowrows.whole(column)
        if array.null_count and self.leaf.nulls == "error":
            raise refuse_nulls(name)
        lists, elements = arrowrows.large_lists(array)
        for _ in self.shape:
            elements = _elements(elements)
        elements = self.leaf.plain(elements)
        if elements.null_count and self.leaf.nulls == "mask":
            raise refuse_nulls(name, "nulls inside of its lists, which no mask of rows shows")
        elements = fill(name, elements, self.leaf.nulls) if elements.null_count else elements
        if pa.types.is_boolean(elements.type):
            elements = elements.cast(pa.uint8())
        packed = pa.LargeListArray.from_arrays(pa.array(lists * self._width), elements)
        found: Values = {name: packed if order is None else arrowrows.take(packed, order)}
        if self.masked:
            found[mask_name(name)] = _mask([Part(array, valid_of(array))], (len(array),), order)
        return found

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        assert isinstance(column, pa.Array)
        offsets = arrowrows.lists_offsets(column) // max(self._width, 1)
        elements = torch.from_dlpack(column.values)
        if self.leaf.dtype == torch.bool:
            elements = elements.view(torch.bool)
        elements = elements.reshape(-1, *self.shape) if self._width else elements.reshape(0, *self.shape)
        made = [self._batch(elements, offsets[start : stop + 1]) for start, stop in cuts]
        return {self.leaf.name: [a for a, _ in made], self._extra: [b for _, b in made]}

    def _batch(
        self, elements: torch.Tensor, offsets: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inside = elements[offsets[0] : offsets[-1]]
        if not self.pad:
            return inside, torch.from_numpy(offsets - offsets[0])
        lengths = np.diff(offsets)
        longest = int(lengths.max(initial=0))
        if (lengths == longest).all():
            padded = inside.reshape(len(lengths), longest, *self.shape)
        else:
            padded = inside.new_zeros((len(lengths), longest, *self.shape))
            padded.numpy()[np.arange(longest) < lengths[:, None]] = inside.numpy()
        return padded, torch.from_numpy(lengths)
