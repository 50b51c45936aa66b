"""Lists of different lengths. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from encpipe.torch import arrowrows
from encpipe.torch.columns import Cuts, elements_of, mask, mask_name, split
from encpipe.torch.leaves import Leaf, Part, fill, refuse_nulls, valid_of
from encpipe.torch.values import Column, Values


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
    def made_late(self) -> tuple[str, ...]:
        """Those of them that `finish` makes."""
        return self.leaf.name, self._extra

    @property
    def others(self) -> tuple[str, ...]:
        return ()

    @property
    def _width(self) -> int:
        return math.prod(self.shape)

    def load(self, column: pa.ChunkedArray) -> Values:
        name, array = self.leaf.name, arrowrows.whole(column)
        if array.null_count and self.leaf.nulls == "error":
            raise refuse_nulls(name)
        lists, elements = arrowrows.large_lists(array)
        for _ in self.shape:
            elements = elements_of(elements)
        elements = self.leaf.plain(elements)
        if elements.null_count and self.leaf.nulls == "mask":
            raise refuse_nulls(name, "nulls inside of its lists, which no mask of rows shows")
        elements = fill(name, elements, self.leaf.nulls) if elements.null_count else elements
        if pa.types.is_boolean(elements.type):
            elements = elements.cast(pa.uint8())
        found: Values = {name: pa.LargeListArray.from_arrays(pa.array(lists * self._width), elements)}
        if self.masked:
            found[mask_name(name)] = mask([Part(array, valid_of(array))], (len(array),))
        return found

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        elements, offsets = self._apart(column)
        made = [self._batch(elements, offsets[start : stop + 1]) for start, stop in cuts]
        return {self.leaf.name: [a for a, _ in made], self._extra: [b for _, b in made]}

    def rows(self, column: Column) -> Sequence[Any]:
        elements, offsets = self._apart(column)
        return list(elements[offsets[0] : offsets[-1]].split(np.diff(offsets).tolist()))

    def _apart(self, column: Column) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """All elements, and where each row's begin and the last one's end."""
        assert isinstance(column, pa.Array)
        offsets = arrowrows.lists_offsets(column) // max(self._width, 1)
        elements = torch.from_dlpack(column.values)
        if self.leaf.dtype == torch.bool:
            elements = elements.view(torch.bool)
        return elements.reshape(-1 if self._width else 0, *self.shape), offsets

    def _batch(
        self, elements: torch.Tensor, offsets: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (inside,) = split(elements, [(offsets[0], offsets[-1])])
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
