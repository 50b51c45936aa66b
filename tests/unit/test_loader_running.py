"""A running loader: its threads end with the loop, and it reads no further ahead than it says."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import torch
from rowsource import MemorySource, ids, load, steps

from encpipe import IntegrityError

ROWS = [300] * 60
TOTAL = sum(ROWS)
SHUFFLES = pytest.mark.parametrize("shuffle", [False, True])


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


_BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_other_tests() -> None:
    _BEFORE.clear()
    _BEFORE.update(threading.enumerate())


def threads() -> set[str]:
    found = set(threading.enumerate()) - _BEFORE
    return {thread.name for thread in found if thread.name.startswith("encpipe-")}


def settled(source: MemorySource) -> int:
    """How many row groups have been read when no more are, as long as nobody asks for a batch."""
    count, since = len(source.reads), time.monotonic()
    while time.monotonic() - since < 0.15:
        time.sleep(0.005)
        if len(source.reads) != count:
            count, since = len(source.reads), time.monotonic()
    return count


# Threads


def test_threads_end_with_the_epoch_before_the_loop_is_over() -> None:
    ids(load(MemorySource(ROWS), shuffle=True, threads=3))
    assert not threads()


@SHUFFLES
def test_threads_end_when_the_loop_breaks(shuffle: bool) -> None:
    for _batch in load(MemorySource(ROWS), 10, shuffle=shuffle, threads=3):
        assert threads()
        break
    until(lambda: not threads())


@SHUFFLES
def test_threads_end_when_the_loop_raises(shuffle: bool) -> None:
    def train() -> None:
        for _batch in load(MemorySource(ROWS), 10, shuffle=shuffle, threads=3):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    gc.collect()
    until(lambda: not threads())


@SHUFFLES
def test_threads_end_when_the_iterator_is_dropped(shuffle: bool) -> None:
    batches = iter(load(MemorySource(ROWS), 10, shuffle=shuffle, threads=3))
    next(batches)
    assert threads()
    del batches
    until(lambda: not threads())


@pytest.mark.parametrize(("shuffle", "needed"), [(False, 2), (True, 20)])
def test_threads_end_when_garbage_is_collected_in_one_of_them(shuffle: bool, needed: int) -> None:
    """A reader cannot wait for itself: files would stay open."""
    source = MemorySource([300] * 400, row_bytes=40_000)
    inside, dropped = threading.Event(), threading.Event()

    def collects(row_group: int) -> None:
        if len(source.reads) > needed:  # ahead of the first batch's need
            inside.set()
            assert dropped.wait(20)
            gc.collect()

    def run() -> None:
        batches = iter(load(source, 10, shuffle=shuffle, threads=2))
        next(batches)
        assert inside.wait(20)
        garbage: list[Any] = [batches]
        garbage.append(garbage)

    source.before_read = collects
    gc.disable()
    try:
        run()
        dropped.set()
        until(lambda: not threads())
        assert source.closed == 1
    finally:
        gc.enable()


@SHUFFLES
@pytest.mark.parametrize("at", [0, 7, 59])
def test_what_a_reader_raises_comes_out_of_the_loop_and_ends_the_threads(shuffle: bool, at: int) -> None:
    source = MemorySource(ROWS)

    def damaged(row_group: int) -> None:
        if row_group == at:
            raise IntegrityError("row group is damaged", hint="restore it")

    source.before_read = damaged
    found = []
    with pytest.raises(IntegrityError, match="is damaged"):
        found += ids(load(source, 10, shuffle=shuffle, threads=3))
    until(lambda: not threads())


def test_a_cut_row_group_that_cannot_be_read_fails_every_lane_that_wants_it() -> None:
    source = MemorySource([1000])

    def fails(row_group: int) -> None:
        raise IntegrityError("damaged", hint="")

    source.before_read = fails
    with pytest.raises(IntegrityError):
        ids(load(source, 10, shuffle=True, threads=3))
    assert source.reads == [0]


def test_what_a_transform_raises_comes_out_of_the_loop_and_ends_the_threads() -> None:
    def transform(batch: dict[str, Any]) -> None:
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        list(load(MemorySource(ROWS), 10, shuffle=True, transform=transform))
    until(lambda: not threads())


def test_a_transform_runs_in_the_training_thread_and_its_result_is_given() -> None:
    seen = []

    def transform(batch: dict[str, Any]) -> tuple[int, torch.Tensor]:
        seen.append(threading.current_thread())
        return len(seen), batch["i"]

    found = list(load(MemorySource([5, 5]), 4, transform=transform))
    assert [(n, numbers.tolist()) for n, numbers in found] == [
        (1, [0, 1, 2, 3]),
        (2, [4, 5, 6, 7]),
        (3, [8, 9]),
    ]
    assert set(seen) == {threading.main_thread()}


def test_files_are_let_go_after_each_epoch() -> None:
    source = MemorySource(ROWS)
    loader = load(source, 1000, shuffle=True)
    ids(loader)
    assert source.closed == 1
    next(iter(loader))
    gc.collect()
    assert source.closed == 2


# How far ahead


@pytest.mark.parametrize("prefetch", [0, 3])
@SHUFFLES
def test_no_more_is_read_than_a_block_of_each_lane_and_prefetch(shuffle: bool, prefetch: int) -> None:
    """A row group is a block here, and two stripes or chunks of 8 MiB are less than one."""
    source = MemorySource([500] * 200, row_bytes=40_000, make=numbers)
    options = {"lanes": 4, "threads": 2, "prefetch": prefetch}
    batches = iter(load(source, 50, shuffle=shuffle, **options))
    ahead = prefetch + (4 if shuffle else 0) + 3
    for n, _batch in enumerate(itertools.islice(batches, 300)):
        assert len(source.reads) <= (n + 1) * 50 / 500 + ahead
        if n % 60 == 0:
            assert settled(source) <= (n + 1) * 50 / 500 + ahead
    assert len(source.reads) >= 30
    batches.close()


def numbers(start: int, rows: int) -> pa.Table:
    return pa.table({"i": pa.array(range(start, start + rows), pa.int64())})


def test_blocks_are_read_by_as_many_threads_as_were_asked_for() -> None:
    source, together = MemorySource(ROWS), threading.Barrier(3)
    source.before_read = lambda row_group: together.wait(20)  # passes with three readers at a time, or breaks
    assert sorted(ids(load(source, 100, threads=3, prefetch=5))) == list(range(TOTAL))


# Loops beside and within each other


def test_two_loaders_go_side_by_side_and_one_twice() -> None:
    one, other = (load(MemorySource(ROWS), 100, shuffle=True, seed=seed) for seed in (1, 2))
    pairs = list(zip(one, other, strict=True))
    assert sorted(ids(a for a, _ in pairs)) == sorted(ids(b for _, b in pairs)) == list(range(TOTAL))
    again = [load(MemorySource(ROWS), 100, shuffle=True, seed=1) for _ in range(2)]
    epochs = [ids(again[0]), ids(again[0])]
    assert [ids(found) for found in (iter(again[1]), iter(again[1]))] == epochs


def test_loops_over_one_loader_may_be_nested() -> None:
    loader = load(MemorySource([50] * 10), 100, shuffle=True)
    outer = []
    for batch in loader:
        outer.append(batch)
        assert sorted(ids(loader)) == list(range(500))
    assert sorted(ids(outer)) == list(range(500))


class Decrypting(MemorySource):
    """Gives rows in memory of their own, as a dataset does."""

    def read(self, row_group: int) -> pa.Table:
        table = super().read(row_group)
        return table.take(list(range(len(table))))


@SHUFFLES
@pytest.mark.parametrize("uneven", ["drop", "pad"])
def test_writing_into_a_batch_changes_no_other(shuffle: bool, uneven: str) -> None:
    """Not in this epoch, not in the next one, and not the row that a rank gives again."""
    options = {"shuffle": shuffle, "uneven": uneven, "rank": 0, "world_size": 4}
    source = Decrypting([30, 7, 0, 41, 1, 12])
    for batch_size in (1, 4, 5, 40):
        clean, written = (load(source, batch_size, **options) for _ in range(2))
        for _epoch in range(2):
            expected = steps(clean)
            for batch, numbers in zip(written, expected, strict=True):
                assert batch["i"].tolist() == numbers
                batch["i"].fill_(-1)
                batch["s"][:] = ["x"] * len(batch["s"])
