"""What comes when: the one order of an epoch, and who owns which part of it. No I/O, no keys.

Without a shuffle it is the dataset's own. Shuffled, it is a function of the core digest, the row counts,
`lanes`, `window`, the seed and the epoch. It does not know threads, workers or ranks.

1. Row groups are dealt to `lanes` lanes of equally many rows (but for one): in an order drawn by seed and
   epoch, the largest first, each to the lane with most room (Graham's rule of 1969). What fits nowhere whole
   is cut, and the cut pieces stand first in their lanes, so that one reader of neighbouring lanes reads a cut
   row group once.
2. A lane is a sequence of *blocks*: up to `window` row groups, none after 32,768 rows or 16 MiB of file. The
   rows of a block are shuffled together.
3. Lanes are interleaved by *runs* of 8 rows, or 32 where a row has less than 1 KiB of file: a run of lane 0,
   one of lane 1, and so on, round after round.

Where an owner of lanes stands is told by what is left of each lane: the next run is taken from the lane that
is least far. So ranks that own neighbouring lanes together take what one rank would, in step, and an owner of
other lanes goes on from the same place.

Random numbers are PCG64's raw stream, which NumPy keeps stable (NEP 19), seeded by SHA-256; a permutation
sorts random keys that carry the index in their low bits, so it depends on no sort's handling of ties.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

ORDER_VERSION: Final = 1
"""Counts up when the same seed would give another order; a resume state carries it."""

LANES: Final = 8
WINDOW: Final = 8
RUN: Final = 8
"""Rows that come from one lane before the next has its turn."""
SMALL_RUN: Final = 32
"""The same where rows are small, so that what is moved at once of each column is worth the move."""
SMALL_ROW_BYTES: Final = 1024
"""Rows below this, in the file, are small."""

BLOCK_ROWS: Final = 32_768
BLOCK_BYTES: Final = 16 * 2**20
"""A block that has either takes no further row group: mixing more would cost memory, not chance."""

Permutation: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """What the order depends on besides the data."""

    shuffle: bool = False
    seed: int = 0
    lanes: int = LANES
    window: int = WINDOW


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a row group."""

    row_group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Block:
    """Pieces that are read together; rows `start` to `start + rows` of `lane`."""

    lane: int
    start: int
    rows: int
    pieces: tuple[Piece, ...]


def pieces(ranges: Iterable[tuple[int, int]], rows: Sequence[int]) -> Iterator[Piece]:
    """The pieces of row groups of `rows` rows each that ranges of rows of the dataset cover, in order."""
    starts = list(itertools.accumulate(rows, initial=0))
    for start, stop in ranges:
        row_group = bisect_right(starts, start) - 1
        while start < stop:
            first, last = starts[row_group], starts[row_group + 1]
            if first < last:
                yield Piece(row_group, start - first, min(stop, last) - first)
            start = max(start, min(stop, last))
            row_group += 1


class Order:
    """The shuffled order of one epoch over row groups of `rows` rows and `sizes` bytes each."""

    def __init__(
        self, core_digest: str, rows: Sequence[int], sizes: Sequence[int], shape: Shape, epoch: int
    ) -> None:
        self._shape, self._epoch = shape, epoch
        self._core, self._rows, self._sizes = core_digest, rows, sizes
        total, lanes = sum(rows), shape.lanes
        self.lengths = tuple(total * (lane + 1) // lanes - total * lane // lanes for lane in range(lanes))
        """The rows of each lane."""
        self.run = SMALL_RUN if sum(sizes) < SMALL_ROW_BYTES * total else RUN
        """Rows that come from one lane before the next has its turn."""

    @cached_property
    def lanes(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of each lane."""
        return tuple(tuple(self._blocks(lane, found)) for lane, found in enumerate(self._deal()))

    def permutation(self, block: Block) -> Permutation:
        """For each row of the block, in the order they come, its place among the rows as they are stored."""
        return _permutation(self._random(f"block {block.lane} {block.start}"), block.rows)

    def _random(self, what: str) -> np.random.PCG64:
        text = f"encpipe/1 order\0{self._core}\0{self._shape.seed}\0{self._epoch}\0{what}"
        return np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))

    def _deal(self) -> list[list[Piece]]:
        drawn = _permutation(self._random("row groups"), len(self._rows)).tolist()
        whole, rest, room = self._deal_whole(drawn)
        found: list[list[Piece]] = [[] for _ in room]
        lane = 0
        for row_group in rest:
            start, rows = 0, self._rows[row_group]
            while start < rows:
                while room[lane] == 0:
                    lane += 1
                stop = min(rows, start + room[lane])
                found[lane].append(Piece(row_group, start, stop))
                room[lane] -= stop - start
                start = stop
        turn = {row_group: n for n, row_group in enumerate(drawn)}
        for held, groups in zip(found, whole, strict=True):
            held.extend(Piece(group, 0, self._rows[group]) for group in sorted(groups, key=turn.__getitem__))
        return found

    def _deal_whole(self, drawn: list[int]) -> tuple[list[list[int]], list[int], list[int]]:
        """The row groups of each lane, those that fit nowhere, and the room that is left in each lane."""
        whole: list[list[int]] = [[] for _ in self.lengths]
        rest: list[int] = []
        heap = [(-room, lane) for lane, room in enumerate(self.lengths)]
        heapq.heapify(heap)
        for row_group in sorted(drawn, key=lambda n: -self._rows[n]):
            rows = self._rows[row_group]
            room, lane = heap[0]
            if rows == 0:
                continue
            if rows > -room:
                rest.append(row_group)
                continue
            whole[lane].append(row_group)
            heapq.heapreplace(heap, (room + rows, lane))
        left = [0] * len(whole)
        for room, lane in heap:
            left[lane] = -room
        return whole, rest, left

    def _blocks(self, lane: int, dealt: Sequence[Piece]) -> Iterator[Block]:
        start, rows, size = 0, 0, 0.0
        held: list[Piece] = []
        for piece in dealt:
            held.append(piece)
            rows += piece.rows
            size += self._sizes[piece.row_group] * piece.rows / self._rows[piece.row_group]
            if len(held) == self._shape.window or rows >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield Block(lane, start, rows, tuple(held))
                start, rows, size, held = start + rows, 0, 0.0, []
        if held:
            yield Block(lane, start, rows, tuple(held))

    def blocks(self, lane: int, ranges: Sequence[Range]) -> Iterator[Block]:
        """The blocks of a lane that rows in any of the ranges belong to, each once."""
        found = self.lanes[lane]
        after = 0
        for start, stop in ranges:
            number = max(after, bisect_right(found, start, key=lambda block: block.start) - 1)
            while start < stop and number < len(found) and found[number].start < stop:
                yield found[number]
                number += 1
            after = max(after, number)


def _permutation(random: np.random.PCG64, size: int) -> Permutation:
    """0 to `size` - 1, each order as likely as another (but for ties among random bits, about 1 in 2**30)."""
    if size == 0:
        return np.zeros(0, np.int64)
    bits = np.uint64(size.bit_length())
    keys = (random.random_raw(size) >> bits) << bits
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)


Range: TypeAlias = tuple[int, int]
"""First row and the one after the last."""


@dataclass(frozen=True)
class Stretch:
    """The next `rows` rows of each of `lanes`, from its row in `starts` on, a run of each in turn.

    Of a single lane they come as they stand.
    """

    lanes: tuple[int, ...]
    starts: tuple[int, ...]
    rows: int


def stretches(left: Mapping[int, Sequence[Range]], run: int, rows: int) -> Iterator[Stretch]:
    """What an owner takes next of the ranges of each lane that are left to it: `rows` rows, or all.

    The next run is one of the lane that is least far, counted in runs; of several, of the first.
    """
    lanes = [_Rest(lane, ranges) for lane, ranges in left.items()]
    heap = [(rest.at // run, rest.lane, rest) for rest in lanes if rest.room]
    heapq.heapify(heap)
    while rows > 0 and heap:
        behind, turn = heap[0][0], []
        while heap and heap[0][0] == behind:
            turn.append(heapq.heappop(heap)[2])
        ahead = heap[0][0] - behind if heap else rows
        for stretch in _in_turn(turn, run, rows, ahead):
            yield stretch
            rows -= stretch.rows * len(stretch.lanes)
        for rest in turn:
            if rest.room:
                heapq.heappush(heap, (rest.at // run, rest.lane, rest))


class _Rest:
    """What is left of a lane: it is at row `at`, with `room` rows from there to the end of a range."""

    def __init__(self, lane: int, ranges: Sequence[Range]) -> None:
        self.lane = lane
        self._ranges = iter([found for found in ranges if found[0] < found[1]])
        self.at = self._stop = 0
        self.take(0)

    @property
    def room(self) -> int:
        return self._stop - self.at

    def take(self, rows: int) -> None:
        """Go on by so many rows, and to the next range after the last of one."""
        self.at += rows
        if not self.room:
            self.at, self._stop = next(self._ranges, (0, 0))


def _in_turn(turn: Sequence[_Rest], run: int, rows: int, ahead: int) -> Iterator[Stretch]:
    """Of lanes equally far, `ahead` runs behind all others: whole rounds, or the rest of a run of each."""
    rounds = 0
    if all(rest.at % run == 0 for rest in turn):
        rounds = min(ahead, min(rest.room for rest in turn) // run, rows // (run * len(turn)))
    if rounds:
        yield Stretch(tuple(rest.lane for rest in turn), tuple(rest.at for rest in turn), rounds * run)
        for rest in turn:
            rest.take(rounds * run)
        return
    for rest in turn:
        behind = rest.at // run
        while rows and rest.room and rest.at // run == behind:
            size = min(run - rest.at % run, rest.room, rows)
            yield Stretch((rest.lane,), (rest.at,), size)
            rest.take(size)
            rows -= size
