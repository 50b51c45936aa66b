"""One epoch of one owner: blocks read and decrypted by threads ahead of need, put in order, cut into batches.

Not shuffled, batches are views of decoded row groups. Shuffled, threads put each row where it is given out
(`encpipe.torch.stripes`). In memory at once are the blocks that the current batch comes from (one of each
lane that is owned) and `prefetch` more; shuffled, the stripes that those reach into. Threads end with the
iteration, also when it is broken off or raises.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from encpipe.torch.conversion import Batch, Converter
from encpipe.torch.order import Block, Order, Piece, pieces, stretches
from encpipe.torch.share import LaneShare, RangeShare
from encpipe.torch.source import RowGroupSource
from encpipe.torch.stats import Meter
from encpipe.torch.stripes import Stripes
from encpipe.torch.values import Values, cut, join, length
from encpipe.torch.weave import Weave

STRIPE_ROWS: Final = 131_072
STRIPE_BYTES: Final = 32 * 2**20
"""A stripe has so many rows, or so many bytes of file, or one batch if that is more."""

_READER: Final = "encpipe-loader"

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
    """Done to every chunk before it is cut into batches, and to what is made only then (to a device)."""


def batches(plan: Plan, meter: Meter) -> Generator[Batch, None, None]:
    """The batches of `plan`, in order."""
    if plan.batches == 0:
        return
    reading = ThreadPoolExecutor(plan.threads, thread_name_prefix=_READER)
    try:
        with closing(_chunks(plan, reading, meter)) as chunks:
            for batch in itertools.islice(_cut_up(chunks, plan.batch_size, plan.converter), plan.batches):
                if plan.move is not None:
                    batch.update(plan.move({name: batch[name] for name in plan.converter.made_late}))
                yield batch
    finally:
        _end(reading, plan.source)


def _end(reading: ThreadPoolExecutor, source: RowGroupSource) -> None:
    """End the threads and let go of files, before this returns if that can be."""

    def end() -> None:
        reading.shutdown(wait=True, cancel_futures=True)
        source.close()

    if threading.current_thread().name.startswith(_READER):
        # garbage collection runs in any thread: a reader cannot wait for itself, nor for a lock that it holds
        threading.Thread(target=end, name="encpipe-end").start()
    else:
        end()


def _chunks(plan: Plan, reading: ThreadPoolExecutor, meter: Meter) -> Chunks:
    """All rows of the owner, its padding included, where they are wanted."""
    loading = _Loading(plan, reading, meter)
    found = loading.shuffled(plan.order) if plan.order is not None else loading.in_order()
    with closing(_padded(plan, found)) as chunks:
        for chunk in chunks:
            yield chunk if plan.move is None else plan.move(chunk)


def _padded(plan: Plan, chunks: Chunks) -> Chunks:
    padding = plan.share.padding
    left = plan.share.rows - padding
    again: Values = {}
    with closing(chunks):
        for found in chunks:
            chunk = cut(found, 0, left) if length(found) > left else found
            left -= length(chunk)
            if padding and left == 0:
                tail = cut(chunk, length(chunk) - 1, length(chunk))
                again = cut(join([tail] * (padding + 1)), 1, padding + 1)  # a copy: batches may be written to
            yield chunk
            if left == 0:
                break
    if padding:
        yield again or _last_row(plan, padding)


def _last_row(plan: Plan, times: int) -> Values:
    """The last row of the dataset, so often: for a rank that has none of its own to give again."""
    last = max(row_group for row_group, count in enumerate(plan.source.rows) if count)
    table = plan.source.read(last)
    return plan.converter.load(table.take(np.full(times, len(table) - 1)))


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


class _Loading:
    """Loads what an owner needs, ahead of need."""

    def __init__(self, plan: Plan, pool: ThreadPoolExecutor, meter: Meter) -> None:
        self._plan, self._pool, self._meter = plan, pool, meter

    def in_order(self) -> Chunks:
        """The owner's rows in the dataset's order, a row group or what is wanted of it at a time."""
        assert isinstance(self._plan.share, RangeShare)
        wanted = list(pieces(self._plan.share.ranges, self._plan.source.rows))
        reading = _CutGroups(self._plan.source, wanted)
        for future in self._ahead([partial(self._load, [piece], reading) for piece in wanted]):
            yield from self._meter.wait(future)

    def shuffled(self, order: Order) -> Chunks:
        """The owner's rows in the order of the epoch, a stripe at a time."""
        share = self._plan.share
        assert isinstance(share, LaneShare)
        rows = share.rows - share.padding
        weave = Weave(stretches(share.left, share.run, rows), share.run, _stripe_rows(self._plan))
        stripes = Stripes(weave)
        tasks = _by_need(order, share, weave)
        reading = _CutGroups(self._plan.source, [piece for _, block in tasks for piece in block.pieces])

        def place(block: Block) -> None:
            parts = self._load(block.pieces, reading, to_move=True)
            start = time.perf_counter()
            placements = list(weave.placements(block.lane, block.start, block.start + block.rows))
            stripes.place(parts, order.permutation(block), placements)
            self._meter.loaded(converting=time.perf_counter() - start)

        done = 0
        loads = self._ahead([partial(place, block) for _, block in tasks])
        for (first, _), future in zip(tasks, loads, strict=True):
            while first >= (done + 1) * weave.stripe_rows:
                yield stripes.take(done)
                done += 1
            self._meter.wait(future)
        while done * weave.stripe_rows < weave.rows:
            yield stripes.take(done)
            done += 1

    def _ahead(self, calls: Sequence[Callable[[], Any]]) -> Iterator[Future[Any]]:
        """The calls' futures, in order; `prefetch` more are under way when one is given."""
        under_way: deque[Future[Any]] = deque()
        for call in calls:
            under_way.append(self._pool.submit(call))
            if len(under_way) > self._plan.prefetch:
                yield under_way.popleft()
        yield from under_way

    def _load(self, wanted: Sequence[Piece], reading: _CutGroups, *, to_move: bool = False) -> list[Values]:
        """The rows of each piece, as they are stored."""
        start = time.perf_counter()
        tables = reading.read(wanted)
        read = time.perf_counter()
        values = [self._plan.converter.load(table, to_move=to_move) for table in tables]
        sizes, rows = self._plan.source.sizes, self._plan.source.rows
        self._meter.loaded(
            size=sum(sizes[piece.row_group] * piece.rows / rows[piece.row_group] for piece in wanted),
            reading=read - start,
            converting=time.perf_counter() - read,
        )
        return values


class _CutGroups:
    """Reads pieces; a row group of which several are wanted is read once and kept until the last is taken."""

    def __init__(self, source: RowGroupSource, wanted: Iterable[Piece]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._left = Counter(piece.row_group for piece in wanted)
        self._reads: dict[int, Future[pa.Table]] = {}

    def read(self, wanted: Sequence[Piece]) -> list[pa.Table]:
        """The rows of each piece."""
        claims = [self._claim(piece.row_group) for piece in wanted]
        for claim, piece in zip(claims, wanted, strict=True):
            if claim.mine:  # before waiting for what another thread reads
                self._settle(claim.read, piece.row_group)
        return [_rows_of(claim.read.result(), piece) for claim, piece in zip(claims, wanted, strict=True)]

    def _claim(self, row_group: int) -> _Claim:
        with self._lock:
            found = self._reads.get(row_group)
            claim = _Claim(found, mine=False) if found is not None else _Claim(Future(), mine=True)
            left = self._left[row_group] = self._left[row_group] - 1
            if left and claim.mine:
                self._reads[row_group] = claim.read
            elif not left:
                self._reads.pop(row_group, None)
        return claim

    def _settle(self, read: Future[pa.Table], row_group: int) -> None:
        try:
            read.set_result(self._source.read(row_group))
        except BaseException as error:  # noqa: BLE001 - whoever waits for it is to get it too
            read.set_exception(error)


@dataclass(frozen=True)
class _Claim:
    """A row group's read, and whether it is this thread's to do."""

    read: Future[pa.Table]
    mine: bool


def _rows_of(table: pa.Table, piece: Piece) -> pa.Table:
    return table if piece.rows == len(table) else table.slice(piece.start, piece.rows)


def _by_need(order: Order, share: LaneShare, weave: Weave) -> list[tuple[int, Block]]:
    """The blocks that are needed, each with the first of the owner's rows that comes from it, by that row."""
    found = []
    for lane, ranges in share.left.items():
        for block in order.blocks(lane, ranges):
            first = weave.first(lane, block.start, block.start + block.rows)
            if first is not None:
                found.append((first, block))
    return sorted(found, key=lambda need: need[0])


def _stripe_rows(plan: Plan) -> int:
    """Whole batches."""
    total, size = max(1, sum(plan.source.rows)), max(1, sum(plan.source.sizes))
    most = min(STRIPE_ROWS, STRIPE_BYTES * total // size)
    return max(1, most // plan.batch_size) * plan.batch_size
