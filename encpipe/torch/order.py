"""What comes when: the one order of an epoch, and who owns which part of it. No I/O, no keys.

Without a shuffle it is the dataset's own. Shuffled, it is a function of the core digest, the row counts,
`lanes`, `window`, the seed and the epoch. It does not know threads, workers or ranks.

1. Row groups are dealt to `lanes` lanes of equally many rows (N/L, the first N mod L have one more): in an
   order drawn by seed and epoch, the largest first, each to the lane with most room (Graham's rule of 1969).
   What fits nowhere whole is cut, and the cut pieces stand first in their lanes, so that one reader of
   neighbouring lanes reads a cut row group once.
2. A lane is a sequence of *blocks*: up to `window` row groups, none after 32,768 rows or 16 MiB of file. The
   rows of a block are shuffled together.
3. Lanes are interleaved by *runs* of 8 rows: 8 of lane 0, 8 of lane 1, and so on, round after round.

Where an owner of lanes stands is told by how many rows of each lane are gone (its *positions*): the next run
is taken from the lane that is least far, in rounds. So ranks that own neighbouring lanes together take what
one rank would, in step, and an owner of other lanes goes on from the same positions.

Random numbers are PCG64's raw stream, which NumPy keeps stable (NEP 19), seeded by SHA-256; a permutation
sorts random keys that carry the index in their low bits, so it depends on no sort's handling of ties.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

ORDER_VERSION: Final = 1
"""Counts up when the same seed would give another order; a resume state carries it."""

LANES: Final = 8
WINDOW: Final = 4
RUN: Final = 8
"""Rows that come from one lane before the next has its turn: 8 values of 8 bytes fill a cache line."""

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
        self.lengths = tuple(total // lanes + (lane < total % lanes) for lane in range(lanes))
        """The rows of each lane."""

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

    def block_at(self, lane: int, position: int) -> int:
        """The index of the block of `lane` that holds row `position`."""
        return bisect_right(self.lanes[lane], position, key=lambda block: block.start) - 1


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


@dataclass(frozen=True)
class Stretch:
    """The next `rows` rows of each of `lanes`, interleaved by runs; of a single lane: as they stand."""

    lanes: tuple[int, ...]
    rows: int


def stretches(
    positions: Sequence[int], lengths: Sequence[int], lanes: Sequence[int], run: int, rows: int
) -> Iterator[Stretch]:
    """What an owner of `lanes` takes next, `rows` rows or to the end, in as few stretches as can be."""
    at = {lane: positions[lane] for lane in lanes if positions[lane] < lengths[lane]}
    while rows > 0 and at:
        behind = min(position // run for position in at.values())
        turn = tuple(lane for lane, position in at.items() if position // run == behind)
        rounds = 0
        if all(at[lane] % run == 0 for lane in turn):
            ahead = min((at[lane] // run - behind for lane in at if lane not in turn), default=rows)
            room = min(lengths[lane] - at[lane] for lane in turn) // run
            rounds = min(ahead, room, rows // (run * len(turn)))
        if rounds:
            stretch = Stretch(turn, rounds * run)
        else:
            lane = turn[0]
            stretch = Stretch((lane,), min(run - at[lane] % run, lengths[lane] - at[lane], rows))
        yield stretch
        rows -= stretch.rows * len(stretch.lanes)
        for lane in stretch.lanes:
            at[lane] += stretch.rows
            if at[lane] == lengths[lane]:
                del at[lane]


def advance(
    positions: Sequence[int], lengths: Sequence[int], lanes: Sequence[int], run: int, rows: int
) -> dict[int, int]:
    """Where an owner of `lanes` stands `rows` rows later."""
    after = {lane: positions[lane] for lane in lanes}
    for stretch in stretches(positions, lengths, lanes, run, rows):
        for lane in stretch.lanes:
            after[lane] += stretch.rows
    return after
