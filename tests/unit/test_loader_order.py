"""The order of an epoch is one function of seed, epoch and core digest, and every row comes once."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowsource import CORE, ROW_BYTES, MemorySource, ids, load, steps

from encpipe.torch.order import (
    BLOCK_ROWS,
    ORDER_VERSION,
    RUN,
    SMALL_ROW_BYTES,
    SMALL_RUN,
    Order,
    Shape,
    stretches,
)

SIZES = [40, 0, 1, 16, 40, 7, 23, 64, 3, 40]
FROZEN_PERMUTATION = [19, 47, 39, 18, 9, 11, 50, 30, 26, 10, 34, 32, 55, 57, 14, 42]
FROZEN_ORDER = [
    1,
    29,
    21,
    0,
    136,
    138,
    32,
    12,
    96,
    153,
    79,
    75,
    65,
    148,
    88,
    89,
    164,
    160,
    120,
    108,
    106,
    168,
    109,
    117,
    185,
    179,
    180,
    178,
    176,
    183,
    190,
    186,
]
"""docs/howto/shuffle.md promises that a seed keeps its order: whoever changes this raises ORDER_VERSION."""

row_groups = st.lists(st.sampled_from([0, 1, 2, 7, 8, 40, 100, 333]), min_size=1, max_size=30)


def order(
    rows: Sequence[int], *, core: str = CORE, epoch: int = 0, size: int = ROW_BYTES, **shape: Any
) -> Order:
    return Order(core, rows, [size * n for n in rows], Shape(True, **shape), epoch)


def stream(found: Order, rows: Sequence[int], lane: int) -> list[int]:
    """The row numbers of a lane, written from the module's docstring."""
    starts = list(itertools.accumulate(rows, initial=0))
    numbers: list[int] = []
    for block in found.lanes[lane]:
        held = [starts[p.row_group] + n for p in block.pieces for n in range(p.start, p.stop)]
        numbers += [held[n] for n in found.permutation(block)]
    return numbers


def sequence(found: Order, rows: Sequence[int]) -> list[int]:
    """The row numbers of the epoch: runs of all lanes, round after round."""
    lanes = [stream(found, rows, lane) for lane in range(len(found.lengths))]
    rounds = range(0, max(found.lengths), found.run)
    return [number for at in rounds for lane in lanes for number in lane[at : at + found.run]]


@settings(deadline=None, max_examples=120)
@given(row_groups, st.integers(1, 16), st.integers(1, 6), st.integers(0, 2**70))
def test_every_row_is_in_one_lane_once(rows: list[int], lanes: int, window: int, seed: int) -> None:
    found = order(rows, lanes=lanes, window=window, seed=seed)
    assert sorted(sequence(found, rows)) == list(range(sum(rows)))
    assert max(found.lengths) - min(found.lengths) <= 1
    for lane, blocks in enumerate(found.lanes):
        assert len(stream(found, rows, lane)) == found.lengths[lane]
        at = 0
        for block in blocks:
            assert (block.lane, block.start) == (lane, at)
            assert 1 <= len(block.pieces) <= window
            at += block.rows


@settings(deadline=None, max_examples=120)
@given(row_groups, st.integers(1, 16), st.integers(0, 50))
def test_few_row_groups_are_cut_and_their_pieces_stand_first(rows: list[int], lanes: int, seed: int) -> None:
    found = order(rows, lanes=lanes, seed=seed)
    held = [[piece for block in blocks for piece in block.pieces] for blocks in found.lanes]
    owners = Counter(piece.row_group for lane in held for piece in lane)
    cut_up = {row_group for row_group, count in owners.items() if count > 1}
    assert len(cut_up) <= lanes - 1
    for lane in held:
        is_cut = [piece.row_group in cut_up for piece in lane]
        assert is_cut == sorted(is_cut, reverse=True)
    # neighbouring readers share at most one: its pieces lie side by side, but for lanes that are full
    with_cut = [n for n, lane in enumerate(held) if lane and lane[0].row_group in cut_up]
    for row_group in cut_up:
        at = [n for n, lane in enumerate(held) if any(piece.row_group == row_group for piece in lane)]
        assert at == [n for n in with_cut if at[0] <= n <= at[-1]]


def test_a_seed_keeps_its_order() -> None:
    assert ORDER_VERSION == 1
    found = order(SIZES, lanes=4, window=2, seed=7, epoch=3)
    assert found.permutation(found.lanes[0][0]).tolist()[:16] == FROZEN_PERMUTATION
    assert sequence(found, SIZES)[:32] == FROZEN_ORDER


def test_the_order_depends_on_seed_epoch_and_core_digest() -> None:
    one = sequence(order(SIZES, seed=1), SIZES)
    assert sequence(order(SIZES, seed=1), SIZES) == one
    others = [order(SIZES, seed=2), order(SIZES, seed=1, epoch=1), order(SIZES, seed=1, core="e" * 64)]
    others += [order(SIZES, seed=1, lanes=4), order(SIZES, seed=1, window=1)]
    for other in others:
        assert sequence(other, SIZES) != one
        assert sorted(sequence(other, SIZES)) == list(range(sum(SIZES)))


def test_seed_and_epoch_are_not_added_up() -> None:
    assert sequence(order(SIZES, seed=1, epoch=2), SIZES) != sequence(order(SIZES, seed=2, epoch=1), SIZES)
    assert sequence(order(SIZES, seed=11, epoch=2), SIZES) != sequence(order(SIZES, seed=1, epoch=12), SIZES)


def test_no_global_random_state_is_read_or_changed() -> None:
    random.seed(1)
    state = random.getstate()
    one = sequence(order(SIZES), SIZES)
    assert random.getstate() == state
    random.seed(2)
    assert sequence(order(SIZES), SIZES) == one


def test_rows_of_a_block_are_mixed_across_its_row_groups() -> None:
    rows = [200] * 8
    found = order(rows, lanes=2, window=4)
    assert [[block.rows for block in blocks] for blocks in found.lanes] == [[800], [800]]
    first = stream(found, rows, 0)[:100]
    assert min(Counter(number // 200 for number in first).values()) >= 10


@pytest.mark.parametrize(("rows", "size"), [(BLOCK_ROWS // 2, 1), (100, 100_000)])
def test_a_block_takes_no_more_row_groups_when_it_has_enough_rows_or_bytes(rows: int, size: int) -> None:
    found = order([rows] * 8, lanes=1, window=8, size=size)
    assert [len(block.pieces) for block in found.lanes[0]] == [2, 2, 2, 2]


def test_lanes_take_turns_by_longer_runs_where_rows_are_small() -> None:
    small = SMALL_ROW_BYTES - 1
    assert [order([90, 10], size=size).run for size in (1, small, small + 1)] == [SMALL_RUN, SMALL_RUN, RUN]


def test_each_place_in_a_permutation_is_as_likely() -> None:
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(1200):
        found = order([4], lanes=1, seed=seed)
        seen[tuple(found.permutation(found.lanes[0][0]).tolist())] += 1
    assert len(seen) == 24
    assert sum((count - 50) ** 2 / 50 for count in seen.values()) < 49.7  # chi squared, 23 degrees: p = 0.001


def test_row_groups_are_dealt_anew_each_epoch() -> None:
    firsts = {order([10] * 64, epoch=n).lanes[0][0].pieces[0].row_group for n in range(30)}
    assert len(firsts) > 15


@st.composite
def left_overs(draw: st.DrawFn) -> dict[int, list[tuple[int, int]]]:
    """What may be left of some lanes: ranges of rows, in order."""
    left = {}
    for lane in draw(st.lists(st.integers(0, 7), min_size=1, max_size=6, unique=True)):
        ends = sorted(draw(st.lists(st.integers(0, 90), max_size=6, unique=True)))
        left[lane] = list(zip(ends[::2], ends[1::2], strict=False))
    return left


@settings(deadline=None)
@given(left_overs(), st.integers(0, 300), st.sampled_from([1, 8, 13]))
def test_the_next_run_is_one_of_the_lane_that_is_least_far(
    left: dict[int, list[tuple[int, int]]], rows: int, run: int
) -> None:
    waiting = {
        lane: [n for start, stop in ranges for n in range(start, stop)] for lane, ranges in left.items()
    }
    expected = []
    while len(expected) < rows and any(waiting.values()):  # one row at a time
        lane = min(
            (lane for lane in waiting if waiting[lane]), key=lambda lane: (waiting[lane][0] // run, lane)
        )
        expected.append((lane, waiting[lane].pop(0)))
    given_out = []
    for stretch in stretches(left, run, rows):
        turn = run if len(stretch.lanes) > 1 else stretch.rows
        assert stretch.rows % turn == 0
        for done in range(0, stretch.rows, turn):
            for lane, start in zip(stretch.lanes, stretch.starts, strict=True):
                given_out += [(lane, start + done + n) for n in range(turn)]
    assert given_out == expected


@settings(deadline=None, max_examples=60)
@given(row_groups, st.sampled_from([1, 7, 16, 64, 1000]), st.integers(1, 8), st.data())
def test_a_loader_gives_this_order_with_any_threads_prefetch_and_batch_size(
    rows: list[int], batch_size: int, lanes: int, data: st.DataObject
) -> None:
    size = data.draw(st.sampled_from([1, ROW_BYTES]))
    source = MemorySource(rows, row_bytes=size)
    shape = {"lanes": lanes, "window": data.draw(st.integers(1, 4)), "seed": data.draw(st.integers(0, 9))}
    threads, prefetch = data.draw(st.sampled_from([1, 8])), data.draw(st.sampled_from([0, 1, 7]))
    loader = load(source, batch_size, shuffle=True, threads=threads, prefetch=prefetch, **shape)
    for epoch in range(2):
        found = steps(loader)
        assert [n for batch in found for n in batch] == sequence(
            order(rows, epoch=epoch, size=size, **shape), rows
        )
        assert all(len(batch) == batch_size for batch in found[:-1])
        assert len(found) == len(loader)


@settings(deadline=None, max_examples=40)
@given(row_groups, st.sampled_from([1, 7, 64, 1000]), st.sampled_from([1, 8]), st.sampled_from([0, 5]))
def test_without_a_shuffle_rows_come_as_they_are_stored(
    rows: list[int], batch_size: int, threads: int, prefetch: int
) -> None:
    loader = load(MemorySource(rows), batch_size, threads=threads, prefetch=prefetch)
    assert ids(loader) == ids(loader) == list(range(sum(rows)))


def test_an_epoch_can_be_asked_for_out_of_turn() -> None:
    loader = load(MemorySource(SIZES), 16, shuffle=True, seed=5)
    epochs = [ids(loader) for _ in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    loader.set_epoch(2)
    assert (ids(loader), ids(loader)) == (epochs[2], epochs[3])


@settings(deadline=None, max_examples=20)
@given(row_groups)
def test_every_row_group_is_read_once_in_an_epoch(rows: list[int]) -> None:
    for shuffle in (False, True):
        source = MemorySource(rows)
        ids(load(source, 64, shuffle=shuffle, threads=2))
        assert sorted(source.reads) == [n for n, count in enumerate(rows) if count]
