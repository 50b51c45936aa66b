"""Where each row of a shuffled epoch goes, and putting it there: straight from where it was decoded.

A *stripe* is a stretch of an owner's rows, as they are given out, some batches long. A block of a lane is
spread over the stripes that its lane's runs lie in; a stripe is whole when every lane has been there.
So a row is moved once, from where it was decoded to where it is given out.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from encpipe.torch import arrowrows
from encpipe.torch.buffers import scratch
from encpipe.torch.order import Permutation, Stretch
from encpipe.torch.values import Column, Objects, Values, join, like, opaque

_PIECE_BYTES: Final = 128 * 1024
"""Gathered at once before it is put in place, so that it stays in the cache."""
_NARROW_BYTES: Final = 128
"""Rows below this are copied together before they are gathered: out of the cache it is twice as fast."""


@dataclass(frozen=True)
class Placement:
    """`runs` runs of `rows` rows each, one after another from row `source` of what is placed, go to rows
    `target`, `target + stride`, ... of a stripe."""

    stripe: int
    source: int
    target: int
    rows: int
    runs: int = 1
    stride: int = 0

    @property
    def stop(self) -> int:
        return self.source + self.rows * self.runs

    def row(self, number: int) -> int:
        """Where the row of this number goes."""
        run, rest = divmod(number, self.rows)
        return self.target + run * self.stride + rest

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """The row of the stripe for each row placed."""
        starts = self.target + self.stride * np.arange(self.runs)
        return (starts[:, None] + np.arange(self.rows)).reshape(-1)


@dataclass(frozen=True)
class _Leg:
    """A lane's part in a stretch: rows `first` to `first + rows` of the lane, as number `turn` of `lanes`
    that take turns with runs of `run` rows. The stretch begins at row `base` of the owner's."""

    first: int
    rows: int
    base: int
    turn: int
    lanes: int
    run: int

    def target(self, row: int) -> int:
        """Where a row of the lane goes among the owner's rows."""
        if self.lanes == 1:
            return self.base + row - self.first
        run, rest = divmod(row - self.first, self.run)
        return self.base + (run * self.lanes + self.turn) * self.run + rest


class Weave:
    """Where the rows of each lane go among an owner's rows, which are cut into stripes of `stripe_rows`."""

    def __init__(self, stretches: Iterable[Stretch], run: int, stripe_rows: int) -> None:
        self.stripe_rows = stripe_rows
        self._legs: dict[int, list[_Leg]] = defaultdict(list)
        base = 0
        for stretch in stretches:
            for turn, (lane, start) in enumerate(zip(stretch.lanes, stretch.starts, strict=True)):
                self._legs[lane].append(_Leg(start, stretch.rows, base, turn, len(stretch.lanes), run))
            base += stretch.rows * len(stretch.lanes)
        self.rows = base
        """How many rows there are."""

    def first(self, lane: int, start: int, stop: int) -> int | None:
        """Where the first row comes that is one of rows `start` to `stop` of a lane; None when none does."""
        legs = (leg for leg in self._legs[lane] if leg.first < stop and start < leg.first + leg.rows)
        return min((leg.target(max(start, leg.first)) for leg in legs), default=None)

    def placements(self, lane: int, start: int, stop: int) -> Iterator[Placement]:
        """For rows `start` to `stop` of a lane; `source` counts from `start`."""
        for leg in self._legs[lane]:
            first, last = max(start, leg.first), min(stop, leg.first + leg.rows)
            if first < last:
                yield from self._of_leg(leg, first, last, start)

    def _of_leg(self, leg: _Leg, first: int, last: int, start: int) -> Iterator[Placement]:
        if leg.lanes == 1:
            yield from self._contiguous(leg.target(first), first - start, last - first)
            return
        while first < last:
            target = leg.target(first)
            begun = (first - leg.first) % leg.run
            stripe, row = divmod(target, self.stripe_rows)
            room = self.stripe_rows - row
            stride = leg.lanes * leg.run
            whole = 0
            if room >= leg.run and not begun:
                whole = min((last - first) // leg.run, (room - leg.run) // stride + 1)
            if whole:
                yield Placement(stripe, first - start, row, leg.run, whole, stride)
                first += whole * leg.run
            else:
                rows = min(leg.run - begun, last - first)
                yield from self._contiguous(target, first - start, rows)
                first += rows

    def _contiguous(self, target: int, source: int, rows: int) -> Iterator[Placement]:
        while rows:
            stripe, row = divmod(target, self.stripe_rows)
            some = min(rows, self.stripe_rows - row)
            yield Placement(stripe, source, row, some)
            target, source, rows = target + some, source + some, rows - some


class _Numbers:
    """A dense column of a stripe, and its memory as opaque rows."""

    def __init__(self, column: torch.Tensor, rows: int) -> None:
        self.whole = like(column, rows)
        self.rows = opaque(self.whole)


class _Scattered:
    """A column that is no tensor: pieces, and where their rows go. Put together when all are there."""

    def __init__(self) -> None:
        self.pieces: list[tuple[pa.Array | Objects, npt.NDArray[np.int64]]] = []

    @property
    def whole(self) -> pa.Array | Objects:
        columns, targets = zip(*self.pieces, strict=True)
        order = np.argsort(np.concatenate(targets))
        if all(isinstance(column, pa.Array) for column in columns):
            return arrowrows.take(arrowrows.concat(columns), order)
        return np.concatenate([np.asarray(column, object) for column in columns]).take(order)


_Stripe: TypeAlias = "dict[str, _Numbers | _Scattered]"


class Stripes:
    """The stripes that are being filled. Threads place blocks, one takes what is whole."""

    def __init__(self, weave: Weave) -> None:
        self._weave = weave
        self._lock = threading.Lock()
        self._open: dict[int, _Stripe] = {}

    def place(self, parts: Sequence[Values], order: Permutation, placements: Sequence[Placement]) -> None:
        """Put rows where `placements` say: those that have the numbers in `order`, in that order.

        Rows are numbered through all parts, one after another.
        """
        stripes = {number: self._stripe(number, parts[0]) for number in {p.stripe for p in placements}}
        for name, first in parts[0].items():
            columns = [stripes[placement.stripe][name] for placement in placements]
            if isinstance(first, torch.Tensor):
                _place_numbers([part[name] for part in parts], order, placements, columns)
                continue
            column = join([{name: part[name]} for part in parts])[name]
            for placement, target in zip(placements, columns, strict=True):
                if isinstance(target, _Scattered):
                    rows = order[placement.source : placement.stop]
                    taken = (
                        arrowrows.take(column, rows) if isinstance(column, pa.Array) else column.take(rows)
                    )
                    target.pieces.append((taken, placement.targets))

    def take(self, number: int) -> Values:
        """A stripe whose rows are all placed."""
        with self._lock:
            stripe = self._open.pop(number)
        return {name: column.whole for name, column in stripe.items()}

    def _stripe(self, number: int, pattern: Values) -> _Stripe:
        with self._lock:
            if number not in self._open:
                rows = min(self._weave.stripe_rows, self._weave.rows - number * self._weave.stripe_rows)
                self._open[number] = {name: _room(column, rows) for name, column in pattern.items()}
            return self._open[number]


def _room(column: Column, rows: int) -> _Numbers | _Scattered:
    return _Numbers(column, rows) if isinstance(column, torch.Tensor) else _Scattered()


def _place_numbers(
    parts: Sequence[Any], order: Permutation, placements: Sequence[Placement], columns: Sequence[Any]
) -> None:
    sources = [opaque(part) for part in parts]
    width = sources[0].itemsize
    if width == 0:
        return
    if width < _NARROW_BYTES:
        source = scratch((len(order),), sources[0].dtype)
        np.concatenate(sources, out=source)
    else:
        source = sources[0] if len(sources) == 1 else np.concatenate(sources)
    most = max(1, _PIECE_BYTES // width)
    moved = np.empty(min(most, len(order)), source.dtype)
    for placement, column in zip(placements, columns, strict=True):
        for first, rows, runs in _portions(placement, most):
            start = placement.source + first
            taken = moved[: rows * runs]
            # without clip NumPy makes one more copy; row numbers are those of a permutation
            source.take(order[start : start + rows * runs], out=taken, mode="clip")
            _put(column.rows, placement.row(first), placement.stride, taken, rows)


def _portions(placement: Placement, most: int) -> Iterator[tuple[int, int, int]]:
    """(first row, rows of a run, runs) that are moved at once: about `most` rows."""
    if placement.runs == 1:
        for first in range(0, placement.rows, most):
            yield first, min(most, placement.rows - first), 1
        return
    at_once = max(1, most // placement.rows)
    for run in range(0, placement.runs, at_once):
        yield run * placement.rows, placement.rows, min(at_once, placement.runs - run)


def _put(target: npt.NDArray[Any], start: int, stride: int, taken: npt.NDArray[Any], rows: int) -> None:
    """Runs of `rows` rows, one after another in `taken`, to rows `start`, `start + stride`, ..."""
    if len(taken) == rows:
        target[start : start + rows] = taken
        return
    # a run as one opaque item: NumPy then moves it in one piece
    run = _item(rows * target.itemsize)
    shape, strides = len(taken) // rows, (stride * target.itemsize,)
    np.ndarray(shape, run, target.data, start * target.itemsize, strides)[:] = taken.view(run)


@cache
def _item(size: int) -> np.dtype[Any]:
    """Of so many bytes."""
    return np.dtype((np.void, size))
