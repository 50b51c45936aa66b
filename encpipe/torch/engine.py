"""One epoch of one owner: blocks read and decrypted by threads ahead of need, put in order, cut into batches.

In memory at once: the current block of each lane that is owned, `prefetch` blocks ahead of need, and two
chunks (of one batch or 8 MiB). Threads end with the iteration, also when it is broken off or raises.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from encpipe.torch.conversion import Batch, Converter
from encpipe.torch.order import RUN, Block, Order, Piece, pieces, stretches
from encpipe.torch.share import LaneShare, RangeShare
from encpipe.torch.source import RowGroupSource
from encpipe.torch.stats import Meter
from encpipe.torch.values import Values, cut, interleave, join, length

CHUNK_ROWS: Final = 32_768
CHUNK_BYTES: Final = 8 * 2**20
"""Lanes are interleaved this much at a time: the calls are cheap then, and it stays in cache."""

Chunks = Generator[Values, None, None]


@dataclass(frozen=True)
class Plan:
    """What an epoch is made of."""

    source: RowGroupSource
    converter: Converter
    share: LaneShare | RangeShare
    order: Order | None
    batch_size: int
    batches: int
    threads: int
    prefetch: int
    move: Callable[[Values], Values] | None = None
    """Done to every chunk before it is cut into batches (to a device)."""


def batches(plan: Plan, meter: Meter) -> Generator[Batch, None, None]:
    """The batches of `plan`, in order."""
    if plan.batches == 0:
        return
    with closing(_chunks(plan, meter)) as chunks:
        yield from itertools.islice(_cut_up(chunks, plan.batch_size, plan.converter), plan.batches)


def _chunks(plan: Plan, meter: Meter) -> Chunks:
    reading = ThreadPoolExecutor(plan.threads, thread_name_prefix="encpipe-loader")
    loading = _Loading(plan, reading, meter)
    try:
        found = _padded(loading, plan.share.rows - plan.share.padding, plan.share.padding)
        if loading.interleaved or plan.move is not None:
            found = _ahead(found, plan.move, meter)
        with closing(found):
            yield from found
    finally:
        reading.shutdown(wait=True, cancel_futures=True)
        plan.source.close()


def _ahead(chunks: Chunks, move: Callable[[Values], Values] | None, meter: Meter) -> Chunks:
    """The same chunks, the next one made by a thread while one is used."""

    def make() -> Values | None:
        found = next(chunks, None)
        return found if found is None or move is None else move(found)

    with closing(chunks), ThreadPoolExecutor(1, thread_name_prefix="encpipe-order") as making:
        coming = making.submit(make)
        while (chunk := meter.wait(coming)) is not None:
            coming = making.submit(make)
            yield chunk


def _padded(loading: _Loading, rows: int, padding: int) -> Chunks:
    again: Values = {}
    with closing(loading.chunks(rows)) as chunks:
        for chunk in chunks:
            rows -= length(chunk)
            if padding and rows == 0:
                tail = cut(chunk, length(chunk) - 1, length(chunk))
                again = cut(join([tail] * (padding + 1)), 1, padding + 1)  # a copy: batches may be written to
            yield chunk
    if padding:
        yield again or loading.last_row(padding)


def _cut_up(chunks: Iterable[Values], rows: int, converter: Converter) -> Iterator[Batch]:
    """Batches of `rows` rows, views of a chunk where they lie within one; the last may be shorter."""
    held: list[Values] = []
    missing = rows
    for chunk in chunks:
        start, size = 0, length(chunk)
        if held:
            start = min(missing, size)
            held.append(cut(chunk, 0, start))
            missing -= start
            if missing:
                continue
            yield converter.finish(join(held))
            held = []
        whole = start + (size - start) // rows * rows
        if whole > start:
            yield from converter.split(cut(chunk, start, whole), rows)
        if whole < size:
            held.append(cut(chunk, whole, size))
        missing = rows - (size - whole)
    if held:
        yield converter.finish(join(held))


@dataclass(frozen=True)
class _Task:
    """Pieces to read together, to be shuffled as `block` when there is one, less their first `skip` rows."""

    pieces: tuple[Piece, ...]
    block: Block | None = None
    skip: int = 0


class _Loading:
    """Loads blocks in the order of need, and gives their rows out in the order of the epoch."""

    def __init__(self, plan: Plan, pool: ThreadPoolExecutor, meter: Meter) -> None:
        self._plan, self._pool, self._meter = plan, pool, meter
        self._tasks: list[_Task] = []
        self._turns: dict[int, deque[int]] = {}
        share, order = plan.share, plan.order
        if isinstance(share, RangeShare):
            self._tasks = [_Task((piece,)) for piece in pieces(share.ranges, plan.source.rows)]
        elif order is not None:
            lanes = {lane: list(_tasks(order, lane, share.positions[lane])) for lane in share.lanes}
            self._tasks, self._turns = _by_need(lanes)
        self.interleaved = len(self._turns) > 1
        self._futures: dict[int, Future[Values]] = {}
        self._submitted = self._taken = 0
        self._cut_groups = _CutGroups(plan.source, self._tasks)
        self._current: dict[int, tuple[Values, int]] = {}

    def chunks(self, rows: int) -> Chunks:
        """The next `rows` rows of the owner."""
        return self._interleaved(rows) if self.interleaved else self._one_after_another(rows)

    def last_row(self, times: int) -> Values:
        """The last row of the dataset, so often: for a rank that has none of its own to give again."""
        rows = self._plan.source.rows
        last = max(row_group for row_group, count in enumerate(rows) if count)
        return self._plan.converter.load(self._plan.source.read(last), np.full(times, rows[last] - 1))

    def _one_after_another(self, rows: int) -> Chunks:
        for number in range(len(self._tasks)):
            values = self._load(number)
            if length(values) >= rows:
                yield cut(values, 0, rows)
                return
            rows -= length(values)
            yield values

    def _interleaved(self, rows: int) -> Chunks:
        share = self._plan.share
        assert isinstance(share, LaneShare)
        positions = list(share.positions)
        wanted = _chunk_rows(self._plan, len(share.lanes))
        while rows > 0:
            at_once = min(rows, wanted)
            for stretch in list(stretches(positions, share.lengths, share.lanes, RUN, at_once)):
                parts = [self._take(lane, stretch.rows) for lane in stretch.lanes]
                for lane in stretch.lanes:
                    positions[lane] += stretch.rows
                yield interleave(parts, RUN) if len(parts) > 1 else parts[0]
            rows -= at_once

    def _take(self, lane: int, rows: int) -> Values:
        """The next rows of a lane."""
        parts = []
        while rows > 0:
            if lane not in self._current:
                self._current[lane] = self._load(self._turns[lane].popleft()), 0
            values, start = self._current[lane]
            stop = min(length(values), start + rows)
            parts.append(cut(values, start, stop))
            rows -= stop - start
            if stop == length(values):
                del self._current[lane]
            else:
                self._current[lane] = values, stop
        return join(parts)

    def _load(self, number: int) -> Values:
        """What a task gives; those after it, up to `prefetch`, are begun."""
        last = min(len(self._tasks), max(number, self._taken) + self._plan.prefetch + 1)
        while self._submitted < last:
            self._futures[self._submitted] = self._pool.submit(self._run, self._tasks[self._submitted])
            self._submitted += 1
        self._taken += 1
        future = self._futures.pop(number)
        return future.result() if self.interleaved else self._meter.wait(future)

    def _run(self, task: _Task) -> Values:
        start = time.perf_counter()
        tables = [self._cut_groups.read(piece) for piece in task.pieces]
        table = pa.concat_tables(tables) if len(tables) > 1 else tables[0]
        read = time.perf_counter()
        shuffled = self._plan.order
        order = shuffled.permutation(task.block) if shuffled is not None and task.block is not None else None
        values = self._plan.converter.load(table, order)
        sizes, rows = self._plan.source.sizes, self._plan.source.rows
        self._meter.loaded(
            size=sum(sizes[piece.row_group] * piece.rows / rows[piece.row_group] for piece in task.pieces),
            reading=read - start,
            converting=time.perf_counter() - read,
        )
        return cut(values, task.skip, length(values)) if task.skip else values


class _CutGroups:
    """Reads pieces; a row group of which several are wanted is read once and kept until the last is taken."""

    def __init__(self, source: RowGroupSource, tasks: Sequence[_Task]) -> None:
        self._source = source
        self._lock = threading.Lock()
        wanted = Counter(piece.row_group for task in tasks for piece in task.pieces)
        self._left = {row_group: count for row_group, count in wanted.items() if count > 1}
        self._reads: dict[int, Future[pa.Table]] = {}

    def read(self, piece: Piece) -> pa.Table:
        table = self._whole(piece.row_group)
        return table if piece.rows == len(table) else table.slice(piece.start, piece.rows)

    def _whole(self, row_group: int) -> pa.Table:
        with self._lock:
            if row_group not in self._left:
                mine = reading = None
            else:
                mine = None if row_group in self._reads else Future[pa.Table]()
                reading = self._reads.setdefault(row_group, mine) if mine else self._reads[row_group]
                self._left[row_group] -= 1
                if not self._left[row_group]:
                    del self._left[row_group], self._reads[row_group]
        if reading is None:
            return self._source.read(row_group)
        if mine is not None:
            try:
                mine.set_result(self._source.read(row_group))
            except BaseException as error:  # noqa: BLE001 - whoever waits for it is to get it too
                mine.set_exception(error)
        return reading.result()


def _tasks(order: Order, lane: int, position: int) -> Iterator[_Task]:
    """What is to be read of a lane from `position` on."""
    for block in order.lanes[lane][max(0, order.block_at(lane, position)) :]:
        skip = max(0, position - block.start)
        if skip < block.rows:
            yield _Task(block.pieces, block, skip)


def _by_need(lanes: dict[int, list[_Task]]) -> tuple[list[_Task], dict[int, deque[int]]]:
    """All tasks in the order in which their first rows come, and for each lane the numbers of its own."""
    keyed = [
        ((task.block.start + task.skip) // RUN, lane, n, task)
        for lane, found in lanes.items()
        for n, task in enumerate(found)
        if task.block is not None
    ]
    keyed.sort(key=lambda item: item[:3])
    turns: dict[int, deque[int]] = {lane: deque() for lane in lanes}
    for number, (_, lane, _, _) in enumerate(keyed):
        turns[lane].append(number)
    return [task for *_, task in keyed], turns


def _chunk_rows(plan: Plan, lanes: int) -> int:
    """Rows to interleave at once: whole batches and whole rounds, if that does not take too many."""
    total = max(1, sum(plan.source.rows))
    most = min(CHUNK_ROWS, int(CHUNK_BYTES * total / max(1, sum(plan.source.sizes))))
    both = math.lcm(plan.batch_size, RUN * lanes)
    unit = both if both <= 2 * CHUNK_ROWS else plan.batch_size
    return max(1, most // unit) * unit
