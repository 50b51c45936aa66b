"""Putting each row of a shuffled epoch where it is given out, straight from where it was decoded.

So a row is moved once (`encpipe.torch.weave` says where to). Only what is of no fixed size, text in Arrow
and lists of different lengths, is put together once more at the end.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from encpipe.torch.arrowrows import concat
from encpipe.torch.buffers import empty, scratch
from encpipe.torch.leaves import plain_text
from encpipe.torch.order import Permutation
from encpipe.torch.values import Column, Values, join, like, opaque, take
from encpipe.torch.weave import Placement, Weave

_PIECE_BYTES: Final = 128 * 1024
"""Gathered at once before it is put in place, so that it stays in the cache."""
_NARROW_BYTES: Final = 128
"""Rows below this are copied together before they are gathered: out of the cache it is twice as fast."""
_WIDE_BYTES: Final = 1024
"""Rows from this on go straight to their place, a run at a time."""
_CODE: Final = np.dtype(np.int32)


class _Numbers:
    """A dense column of a stripe, and its memory as opaque rows."""

    def __init__(self, pattern: torch.Tensor, rows: int) -> None:
        self.whole = like(pattern, rows)
        self.rows = opaque(self.whole)


class _Coded:
    """A column of text that repeats: for each row the number of its word, and the words of all blocks."""

    def __init__(self, rows: int) -> None:
        self.rows = np.empty(rows, _CODE)
        self._words: list[pa.Array] = []
        self._lock = threading.Lock()

    def add(self, words: pa.Array) -> int:
        """The number of the first of these."""
        with self._lock:
            self._words.append(words)
            return sum(map(len, self._words[:-1]))

    @property
    def whole(self) -> pa.Array:
        return pa.DictionaryArray.from_arrays(self.rows, concat(self._words))


@dataclass(frozen=True)
class _Stripe:
    """What is being filled: columns that every row has its place in, and pieces of the others."""

    numbers: Mapping[str, _Numbers]
    coded: Mapping[str, _Coded]
    others: Sequence[str]
    names: Sequence[str]
    pieces: list[tuple[Values, npt.NDArray[np.int64]]] = field(default_factory=list)

    @property
    def whole(self) -> Values:
        columns: Values = {name: column.whole for name, column in self.numbers.items()}
        columns |= {name: column.whole for name, column in self.coded.items()}
        if self.others:
            pieces, targets = zip(*self.pieces, strict=True)
            places = np.concatenate(targets)
            order = np.empty_like(places)
            order[places] = np.arange(len(places))
            columns |= take(join(pieces), order)
        return {name: columns[name] for name in self.names}


class Stripes:
    """The stripes that are being filled. Threads place blocks, one takes what is whole."""

    def __init__(self, weave: Weave) -> None:
        self._weave = weave
        self._lock = threading.Lock()
        self._open: dict[int, _Stripe] = {}
        self._pattern: Values = {}

    def place(self, parts: Sequence[Values], order: Permutation, placements: Sequence[Placement]) -> None:
        """Put rows where `placements` say: those that have the numbers in `order`, in that order.

        Rows are numbered through all parts, one after another.
        """
        at = {number: self._stripe(number, parts[0]) for number in {p.stripe for p in placements}}
        stripes = [at[placement.stripe] for placement in placements]
        for name in stripes[0].numbers:
            targets = [stripe.numbers[name].rows for stripe in stripes]
            _place(_numbers([part[name] for part in parts]), order, placements, targets)
        for name in stripes[0].coded:
            words, codes = _codes([part[name] for part in parts])
            firsts = {number: stripe.coded[name].add(words) for number, stripe in at.items()}
            targets = [stripe.coded[name].rows for stripe in stripes]
            _place(codes, order, placements, targets, [firsts[placement.stripe] for placement in placements])
        if stripes[0].others:
            joined = join([{name: _plain(part[name]) for name in stripes[0].others} for part in parts])
            for placement, stripe in zip(placements, stripes, strict=True):
                taken = take(joined, order[placement.source : placement.stop])
                stripe.pieces.append((taken, placement.targets))

    def take(self, number: int) -> Values:
        """A stripe whose rows are all placed."""
        with self._lock:
            stripe = self._open.pop(number)
        return stripe.whole

    def _stripe(self, number: int, pattern: Values) -> _Stripe:
        with self._lock:
            self._pattern = self._pattern or pattern
            if number not in self._open:
                rows = min(self._weave.stripe_rows, self._weave.rows - number * self._weave.stripe_rows)
                self._open[number] = _new_stripe(self._pattern, rows)
            return self._open[number]


def _new_stripe(pattern: Values, rows: int) -> _Stripe:
    tensors = {name: column for name, column in pattern.items() if isinstance(column, torch.Tensor)}
    coded = [name for name, column in pattern.items() if _is_coded(column)]
    return _Stripe(
        {name: _Numbers(column, rows) for name, column in tensors.items()},
        {name: _Coded(rows) for name in coded},
        [name for name in pattern if name not in tensors and name not in coded],
        list(pattern),
    )


def _is_coded(column: Column) -> bool:
    return isinstance(column, pa.Array) and pa.types.is_dictionary(column.type)


def _plain(column: Column) -> Column:
    return plain_text(column) if _is_coded(column) else column


def _numbers(parts: Sequence[Any]) -> npt.NDArray[Any]:
    """The rows of all parts as one array, where they are gathered fastest; until this thread's next call."""
    sources = [opaque(part) for part in parts]
    if not 0 < sources[0].itemsize < _NARROW_BYTES:
        return sources[0] if len(sources) == 1 else np.concatenate(sources)
    return np.concatenate(sources, out=scratch((sum(map(len, sources)),), sources[0].dtype))


def _codes(parts: Sequence[Any]) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The words of all parts, and for each row the number of its word; until this thread's next call."""
    arrays = [part if isinstance(part, pa.Array) else pa.array(part) for part in parts if len(part)]
    coded = [array if _is_coded(array) else array.dictionary_encode() for array in arrays]
    words = [plain_text(part.dictionary) for part in coded]
    found = scratch((sum(map(len, coded)),), _CODE)
    at = 0
    for part, first in zip(coded, itertools.accumulate(map(len, words), initial=0), strict=False):
        np.add(part.indices.to_numpy(), first, out=found[at : at + len(part)], casting="unsafe")
        at += len(part)
    return concat(words), found


def _place(
    source: npt.NDArray[Any],
    order: Permutation,
    placements: Sequence[Placement],
    targets: Sequence[npt.NDArray[Any]],
    added: Sequence[int] | None = None,
) -> None:
    """Put rows of `source`, and to each what is to be `added` to it, in the placement's target."""
    width = source.itemsize
    if width == 0:
        return
    most = max(1, _PIECE_BYTES // width)
    moved = empty((min(most, len(order)),), source.dtype)
    for placement, target, more in zip(placements, targets, added or [0] * len(targets), strict=True):
        for first, rows, runs in _portions(placement, most if width < _WIDE_BYTES else 1):
            start, at = placement.source + first, placement.row(first)
            taken = target[at : at + rows] if runs == 1 else moved[: rows * runs]
            # without clip NumPy makes one more copy; row numbers are those of a permutation
            source.take(order[start : start + rows * runs], out=taken, mode="clip")
            if more:
                taken += more
            if runs > 1:
                _put(target, at, placement.stride, taken, rows)


def _portions(placement: Placement, most: int) -> Iterator[tuple[int, int, int]]:
    """(first row, rows of a run, runs) that are moved at once: about `most` rows."""
    if placement.runs == 1:
        yield 0, placement.rows, 1
        return
    at_once = max(1, most // placement.rows)
    for run in range(0, placement.runs, at_once):
        yield run * placement.rows, placement.rows, min(at_once, placement.runs - run)


def _put(target: npt.NDArray[Any], start: int, stride: int, taken: npt.NDArray[Any], rows: int) -> None:
    """Runs of `rows` rows, one after another in `taken`, to rows `start`, `start + stride`, ..."""
    # a run as one opaque item: NumPy then moves it in one piece
    run = _item(rows * target.itemsize)
    shape, strides = len(taken) // rows, (stride * target.itemsize,)
    np.ndarray(shape, run, target.data, start * target.itemsize, strides)[:] = taken.view(run)


@cache
def _item(size: int) -> np.dtype[Any]:
    """Of so many bytes."""
    return np.dtype((np.void, size))
