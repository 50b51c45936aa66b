"""Where each row of a shuffled epoch goes. No I/O.

A *stripe* is a stretch of an owner's rows, as they are given out, some batches long. A block of a lane is
spread over the stripes that its lane's runs lie in; a stripe is whole when every lane has been there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from encpipe.torch.order import Stretch


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
