"""Who gives which rows: what is left of an epoch, shared out among ranks and their worker processes. No I/O.

What is left is a list of *parts*, each a list of ranges of rows. Shuffled, part l is what is left of lane l,
and a rank or worker owns whole, neighbouring lanes. Not shuffled, ranges count rows of the dataset, and what
is left is cut into equal parts, one after another, for every worker of every rank.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

from encpipe.errors import ConfigError
from encpipe.torch.order import Range, stretches

Uneven: TypeAlias = Literal["drop", "pad"]
"""What makes ranks equally long where rows do not divide: leaving out the surplus, or giving a rank's last
row again (the dataset's last, where it has none). With one rank nothing is left out, nothing given twice."""

_UNEVEN: Final = get_args(Uneven)

Parts: TypeAlias = tuple[tuple[Range, ...], ...]


@dataclass(frozen=True)
class Place:
    """A worker process (0 of 1 without any) of a rank."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1

    def all(self) -> list[Place]:
        """Every worker of every rank."""
        ranks, workers = range(self.world_size), range(self.workers)
        return [Place(rank, self.world_size, worker, self.workers) for rank in ranks for worker in workers]

    def likes(self) -> list[Place]:
        """The workers of this number in all ranks, this one included: they give equally many batches."""
        return [place for place in self.all() if place.worker == self.worker]

    @property
    def number(self) -> int:
        """Where this stands in `all`."""
        return self.rank * self.workers + self.worker

    def lanes(self, lanes: int) -> range:
        """The lanes, of so many, that this owns."""
        each = lanes // self.world_size
        first, last = (each * n // self.workers for n in (self.worker, self.worker + 1))
        return range(self.rank * each + first, self.rank * each + last)


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

    `sizes` are the rows of each place with this worker number, rank by rank: they give equally many.
    """

    def __init__(self, place: Place, sizes: Sequence[int], uneven: Uneven) -> None:
        self.place = place
        self.rows = min(sizes) if uneven == "drop" else max(sizes)
        """How many rows this place gives."""
        self.padding = max(0, self.rows - sizes[place.rank])
        """How many of them are its last row once more."""

    def batches(self, batch_size: int, *, drop_last: bool) -> int:
        """How many batches this place gives."""
        return self.rows // batch_size if drop_last else -(-self.rows // batch_size)

    @property
    def exact(self) -> tuple[int, ...]:
        """The parts of which this place knows what is left: its own, and its like's in the other ranks."""
        raise NotImplementedError

    def after(self, rows: int) -> Parts:
        """What is left of all parts when every place has given `rows` rows."""
        raise NotImplementedError


class LaneShare(Share):
    """A place of a shuffled epoch: whole lanes of `lengths` rows, which take turns with runs of `run` rows.

    Lanes that are not in step are brought there first: what is left of them before the first run that all of
    them have whole (the *head*) is cut into equal parts for the workers of one number in all ranks.
    """

    def __init__(
        self,
        place: Place,
        lengths: Sequence[int],
        run: int,
        left: Parts | None,
        uneven: Uneven,
        *,
        exact: Collection[int] = (),
    ) -> None:
        self.place, self.run, self._lanes = place, run, len(lengths)
        parts = tuple(((0, length),) for length in lengths) if left is None else left
        _check_lanes(parts, lengths)
        self._of = {other: self._whole_lanes(other, parts) for other in place.all()}
        if left is not None and len(exact) == len(lengths):
            self._share_heads(parts, lengths)
        self.left = self._of[place]
        """The ranges of each lane that this place gives."""
        sizes = [sum(map(_rows, self._of[like].values())) for like in place.likes()]
        super().__init__(place, sizes, uneven)

    def _whole_lanes(self, place: Place, parts: Parts) -> dict[int, tuple[Range, ...]]:
        return {lane: parts[lane] for lane in place.lanes(self._lanes)}

    def _share_heads(self, parts: Parts, lengths: Sequence[int]) -> None:
        """Bring lanes that are not in step there, together: the workers of one number in all ranks do so for
        their lanes. Workers of a rank do not share, since they need not be in step when a state is taken."""
        for worker in range(self.place.workers):
            likes = replace(self.place, worker=worker).likes()
            lanes = [lane for like in likes for lane in like.lanes(self._lanes)]
            begins = [
                parts[lane][-1][0] if parts[lane] and parts[lane][-1][1] == lengths[lane] else lengths[lane]
                for lane in lanes
            ]
            step = -(-max(begins, default=0) // self.run) * self.run
            heads = {lane: tuple(_overlap(parts[lane], 0, step)) for lane in lanes}
            size = sum(map(_rows, heads.values()))
            for number, like in enumerate(likes):
                own = self._of[like]
                first, last = (size * n // len(likes) for n in (number, number + 1))
                for lane, head in heads.items():
                    rest = _overlap(own[lane], step, lengths[lane]) if lane in own else ()
                    own[lane] = (*_between(head, first, last), *rest)
                    first, last = first - _rows(head), last - _rows(head)

    @property
    def exact(self) -> tuple[int, ...]:
        return tuple(lane for like in self.place.likes() for lane in like.lanes(self._lanes))

    def after(self, rows: int) -> Parts:
        parts: list[list[Range]] = [[] for _ in range(self._lanes)]
        for lanes in self._of.values():
            gone: Counter[int] = Counter()
            for stretch in stretches(lanes, self.run, rows):
                gone.update(dict.fromkeys(stretch.lanes, stretch.rows))
            for lane, ranges in lanes.items():
                parts[lane].extend(_between(ranges, gone[lane], _rows(ranges)))
        return tuple(tuple(_merged(sorted(part))) for part in parts)


class RangeShare(Share):
    """A place of an epoch in the dataset's own order of `total` rows: one of as many parts as places."""

    def __init__(
        self, place: Place, total: int, left: Parts | None, uneven: Uneven, *, exact: Collection[int] = ()
    ) -> None:
        parts = (((0, total),),) if left is None else left
        ranges = sorted(found for part in parts for found in part)
        _check_ranges(ranges, total)
        places = place.all()
        if left is None or len(exact) == len(left):
            cuts = [_rows(ranges) * n // len(places) for n in range(len(places) + 1)]
            parts = tuple(tuple(_between(ranges, *cut)) for cut in itertools.pairwise(cuts))
        elif len(left) != len(places):
            raise one_worker_only()
        self._parts = parts
        self.ranges = parts[place.number]
        """The rows of this place, in order."""
        super().__init__(place, [_rows(parts[like.number]) for like in place.likes()], uneven)

    @property
    def exact(self) -> tuple[int, ...]:
        return tuple(like.number for like in self.place.likes())

    def after(self, rows: int) -> Parts:
        return tuple(tuple(_between(part, rows, _rows(part))) for part in self._parts)


def one_worker_only() -> ConfigError:
    """For a state that only one worker process can go on from."""
    return ConfigError(
        "the resume state is that of one worker process, and this loader needs those of all",
        hint="encpipe.torch.merge_states makes one out of them",
        code="resume-state",
    )


def _check_lanes(parts: Parts, lengths: Sequence[int]) -> None:
    for part, length in zip(parts, lengths, strict=True):
        _check_ranges(part, length)


def _check_ranges(ranges: Sequence[Range], total: int) -> None:
    """Raise `ConfigError` `resume-state` for rows that there are not, or that come twice."""
    ends = [0, *(stop for _, stop in ranges)]
    if ends[-1] > total or any(end > start for end, (start, _) in zip(ends, ranges, strict=False)):
        raise ConfigError(
            "the resume state does not fit: it speaks of rows that there are not, or of some twice",
            hint="it was changed, or put together by hand: take another one",
            code="resume-state",
        )


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


def _overlap(ranges: Iterable[Range], first: int, last: int) -> Iterator[Range]:
    """The ranges, as far as they lie between row `first` and row `last` (exclusive)."""
    cut = ((max(start, first), min(stop, last)) for start, stop in ranges)
    return ((start, stop) for start, stop in cut if start < stop)


def _merged(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same rows in as few ranges as can be; `ranges` are sorted."""
    held: Range | None = None
    for start, stop in ranges:
        if held is not None and held[1] == start:
            held = held[0], stop
            continue
        if held is not None:
            yield held
        held = start, stop
    if held is not None:
        yield held
