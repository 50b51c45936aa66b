"""Who gives which rows: what is left of an epoch, shared out among ranks and their worker processes. No I/O.

What is left is a list of *parts*, each a list of ranges of rows. Shuffled, part l is what is left of lane l,
and a rank or worker owns whole, neighbouring lanes. Not shuffled, ranges count rows of the dataset, and what
is left is cut into equal parts, one after another, for every worker of every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from encpipe.errors import ConfigError
from encpipe.torch.order import RUN, advance

Uneven: TypeAlias = Literal["drop", "pad"]
"""What makes ranks equally long where rows do not divide: leaving out the surplus, or giving a rank's last
row again (the dataset's last, where it has none). With one rank nothing is left out, nothing given twice."""

_UNEVEN: Final = get_args(Uneven)

Range: TypeAlias = tuple[int, int]
Parts: TypeAlias = tuple[tuple[Range, ...], ...]


@dataclass(frozen=True)
class Place:
    """A worker process (0 of 1 without any) of a rank."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1


def check_place(rank: int, world_size: int, uneven: str, lanes: int | None) -> None:
    """Raise `ConfigError` unless these make sense together; `lanes` is None without a shuffle."""
    if uneven not in _UNEVEN:
        raise ConfigError(f"uneven is {uneven!r}: it is drop or pad", hint='uneven="drop" or "pad"')
    if rank >= world_size:
        raise ConfigError(f"rank {rank} of world_size {world_size}: ranks count from 0")
    if lanes is not None and lanes % world_size:
        raise ConfigError(
            f"{lanes} lanes cannot be shared out among {world_size} ranks: each owns equally many",
            hint=f"lanes={(lanes // world_size + 1) * world_size}, for every run that is to have this order",
        )


class Share:
    """What one place gives of what is left, and what is left when all have given equally many rows.

    `left` are the rows of each place with this worker number, rank by rank: they give equally many.
    """

    def __init__(self, place: Place, left: Sequence[int], uneven: Uneven) -> None:
        self.place = place
        self.rows = min(left) if uneven == "drop" else max(left)
        """How many rows this place gives."""
        self.padding = max(0, self.rows - left[place.rank])
        """How many of them are its last row once more."""

    def batches(self, batch_size: int, *, drop_last: bool) -> int:
        """How many batches this place gives."""
        return self.rows // batch_size if drop_last else -(-self.rows // batch_size)

    @property
    def exact(self) -> tuple[int, ...]:
        """The parts of which this place knows what is left: its own, and its like's in the other ranks."""
        raise NotImplementedError

    @property
    def relies_on(self) -> tuple[int, ...]:
        """The parts of what was left that have to be known exactly for this share to be right."""
        return self.exact

    def after(self, rows: int) -> Parts:
        """What is left of all parts when every place has given `rows` rows."""
        raise NotImplementedError


class LaneShare(Share):
    """A place of a shuffled epoch: whole lanes of `lengths` rows."""

    def __init__(self, place: Place, lengths: Sequence[int], left: Parts | None, uneven: Uneven) -> None:
        self.lengths = tuple(lengths)
        self.positions = (0,) * len(self.lengths) if left is None else _positions(left, self.lengths)
        """How many rows of each lane are gone."""
        self._all = [self._lanes(place, rank) for rank in range(place.world_size)]
        self.lanes = self._all[place.rank]
        super().__init__(place, [self._left(lanes) for lanes in self._all], uneven)

    def _lanes(self, place: Place, rank: int) -> tuple[int, ...]:
        each = len(self.lengths) // place.world_size
        first, last = (each * n // place.workers for n in (place.worker, place.worker + 1))
        return tuple(range(rank * each + first, rank * each + last))

    def _left(self, lanes: Iterable[int]) -> int:
        return sum(self.lengths[lane] - self.positions[lane] for lane in lanes)

    @property
    def exact(self) -> tuple[int, ...]:
        return tuple(lane for lanes in self._all for lane in lanes)

    def after(self, rows: int) -> Parts:
        positions = dict(enumerate(self.positions))
        for rank in range(self.place.world_size):
            for worker in range(self.place.workers):
                like = Place(rank, self.place.world_size, worker, self.place.workers)
                lanes = self._lanes(like, rank)
                positions |= advance(self.positions, self.lengths, lanes, RUN, rows)
        return tuple(((positions[lane], length),) for lane, length in enumerate(self.lengths))


class RangeShare(Share):
    """A place of an epoch in the dataset's own order of `total` rows: one of as many parts as places."""

    def __init__(self, place: Place, total: int, left: Parts | None, uneven: Uneven) -> None:
        if left is not None:
            _check_ranges(left, total)
        places = place.world_size * place.workers
        self._as_left = left is not None and len(left) == places
        if left is not None and self._as_left:
            self._parts = list(left)
        else:
            ranges = [(0, total)] if left is None else sorted(found for part in left for found in part)
            size = _rows(ranges)
            cuts = [size * n // places for n in range(places + 1)]
            self._parts = [tuple(_between(ranges, *cut)) for cut in itertools.pairwise(cuts)]
        self._left_parts = len(left) if left is not None else 0
        self.ranges = self._parts[place.rank * place.workers + place.worker]
        """The rows of this place, in order."""
        super().__init__(place, [_rows(self._parts[n]) for n in _like(place)], uneven)

    @property
    def exact(self) -> tuple[int, ...]:
        return _like(self.place)

    @property
    def relies_on(self) -> tuple[int, ...]:
        return self.exact if self._as_left else tuple(range(self._left_parts))

    def after(self, rows: int) -> Parts:
        return tuple(tuple(_between(part, rows, _rows(part))) for part in self._parts)


def _positions(left: Parts, lengths: Sequence[int]) -> tuple[int, ...]:
    """Where each lane stands, of which the end is left. Raises `ConfigError` `resume-state`."""
    found = tuple(length - _rows(part) for part, length in zip(left, lengths, strict=True))
    if any(part not in ((), ((at, length),)) for part, at, length in zip(left, found, lengths, strict=True)):
        raise _senseless()
    return found


def _check_ranges(left: Parts, total: int) -> None:
    """Raise `ConfigError` `resume-state` for rows that the dataset does not have, or that come twice."""
    ranges = sorted(found for part in left for found in part)
    if any(stop > total for _, stop in ranges):
        raise _senseless()
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(ranges)):
        raise _senseless()


def _senseless() -> ConfigError:
    return ConfigError(
        "the resume state does not fit: it speaks of rows that the dataset does not have",
        hint="it was changed, or put together by hand: take another one",
        code="resume-state",
    )


def _like(place: Place) -> tuple[int, ...]:
    """The numbers of the parts of a worker and of its like in every other rank."""
    return tuple(rank * place.workers + place.worker for rank in range(place.world_size))


def _rows(ranges: Iterable[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _between(ranges: Iterable[Range], first: int, last: int) -> Iterator[Range]:
    """Of the rows of all ranges, one after another, those from number `first` to `last` (exclusive)."""
    passed = 0
    for start, stop in ranges:
        begin, end = max(start, start + first - passed), min(stop, start + last - passed)
        if begin < end:
            yield begin, end
        passed += stop - start
