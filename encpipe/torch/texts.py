"""Strings and binaries. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from encpipe.torch import arrowrows
from encpipe.torch.columns import Cuts, mask, mask_name
from encpipe.torch.leaves import NullRule, Part, fill, plain_text, valid_of
from encpipe.torch.values import Column, Objects, Values

_SAMPLE: Final = 1_024
"""Rows looked at before a column of text is made into objects."""
_SHORT: Final = 64
"""Bytes of a value, on average, up to which it is looked for among others, and moved as bytes."""


@dataclass(frozen=True)
class Text:
    """Strings and binaries."""

    name: str
    masked: bool
    nulls: NullRule
    arrow: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        return (mask_name(self.name),) if self.masked else ()

    @property
    def others(self) -> tuple[str, ...]:
        return (self.name,)

    def load(self, column: pa.ChunkedArray) -> Values:
        return self._load(arrowrows.whole(column), arrow=self.arrow)

    def load_to_move(self, column: pa.ChunkedArray) -> Values:
        """The same, but as Arrow has it where what is to be objects is short: a dictionary, if that pays.

        Moving objects costs a look at each of them, with the interpreter locked.
        """
        array = arrowrows.whole(column)
        short = array.nbytes <= _SHORT * len(array)
        found = self._load(array, arrow=self.arrow or short)
        column = found[self.name]
        if short and not self.arrow and isinstance(column, pa.Array) and _repeats(column):
            found[self.name] = column.dictionary_encode()
        return found

    def _load(self, array: pa.Array, *, arrow: bool) -> Values:
        values = array if _is_plain_dictionary(array) else plain_text(array)
        filled = fill(self.name, values, self.nulls) if values.null_count else values
        found: Values = {self.name: plain_text(filled) if arrow else _objects(filled)}
        if self.masked:
            found[mask_name(self.name)] = mask([Part(values, valid_of(values))], (len(values),))
        return found

    def finish(self, column: Column, cuts: Cuts) -> dict[str, Sequence[Any]]:
        if isinstance(column, pa.Array):
            if self.arrow:
                return {self.name: [column.slice(start, stop - start) for start, stop in cuts]}
            column = _objects(column)
        objects = column.tolist()
        return {self.name: [objects[start:stop] for start, stop in cuts]}

    def rows(self, column: Column) -> Sequence[Any]:
        found: Sequence[Any] = column.tolist()
        return found


def _is_plain_dictionary(array: pa.Array) -> bool:
    """Whether it is a dictionary without nulls that is no longer than its rows are many."""
    return (
        pa.types.is_dictionary(array.type)
        and not array.null_count
        and not array.dictionary.null_count
        and len(array.dictionary) <= len(array)
    )


def _objects(array: pa.Array) -> Objects:
    """The str or bytes of an array without nulls; equal ones are one object if that pays."""
    if not pa.types.is_dictionary(array.type):
        if not _repeats(array):
            made: Objects = array.to_numpy(zero_copy_only=False)
            return made
        array = array.dictionary_encode()
    words: Objects = plain_text(array.dictionary).to_numpy(zero_copy_only=False)
    found: Objects = words.take(array.indices.to_numpy())
    return found


def _repeats(array: pa.Array) -> bool:
    """Whether the first values are so few different ones that finding those costs less than making each."""
    if len(array) < _SAMPLE or array.nbytes > _SHORT * len(array):
        return False
    return len(array.slice(0, _SAMPLE).unique()) * 4 <= _SAMPLE
