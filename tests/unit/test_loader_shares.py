"""Ranks share an epoch out: equally many batches, no row twice, and what is left is shared out anew."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rowsource import MemorySource, ids, load, ranks, steps

from encpipe import ConfigError
from encpipe.torch import Loader

LANES = 8
row_groups = st.lists(st.sampled_from([0, 1, 5, 37, 100, 333]), min_size=1, max_size=25)
worlds = st.sampled_from([1, 2, 4, 8])
batch_sizes = st.sampled_from([1, 7, 16, 50])


def lost_at_most(world_size: int, *, resumed: bool = False) -> int:
    """How many rows `uneven="drop"` may leave out: ranks differ by a row, resumed and shuffled by two."""
    return (world_size - 1) * (2 if resumed else 1)


@settings(deadline=None, max_examples=40)
@given(row_groups, worlds, batch_sizes, st.booleans(), st.booleans())
def test_drop_leaves_out_a_few_rows_and_gives_none_twice(
    rows: list[int], world_size: int, batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    loaders = ranks(
        MemorySource(rows), world_size, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last
    )
    found = [steps(loader) for loader in loaders]
    assert {len(steps) for steps in found} == {len(loaders[0])}
    assert len({tuple(map(len, steps)) for steps in found}) == 1
    given_out = list(itertools.chain(*itertools.chain(*found)))
    assert len(set(given_out)) == len(given_out)
    if drop_last:
        assert all(len(batch) == batch_size for batch in itertools.chain(*found))
        assert sum(rows) - len(given_out) < world_size * (batch_size + 1)
    else:
        assert 0 <= sum(rows) - len(given_out) <= lost_at_most(world_size)


@settings(deadline=None, max_examples=40)
@given(row_groups, worlds, batch_sizes, st.booleans())
def test_pad_gives_every_row_and_only_last_rows_again(
    rows: list[int], world_size: int, batch_size: int, shuffle: bool
) -> None:
    assume(sum(rows) >= LANES)  # else a rank may have none
    options = {"batch_size": batch_size, "shuffle": shuffle, "uneven": "pad"}
    found = [steps(loader) for loader in ranks(MemorySource(rows), world_size, **options)]
    assert len({tuple(map(len, steps)) for steps in found}) == 1
    given_out = [list(itertools.chain(*steps)) for steps in found]
    assert set(itertools.chain(*given_out)) == set(range(sum(rows)))
    for numbers in given_out:
        again = {n for n, count in Counter(numbers).items() if count > 1}
        assert again <= {numbers[-1]}
        assert numbers[len(set(numbers)) - 1 :] == [numbers[-1]] * (1 + len(numbers) - len(set(numbers)))
    assert sum(map(len, given_out)) - sum(rows) < world_size
    assert len({n for numbers in given_out for n in numbers}) == sum(
        len(set(numbers)) for numbers in given_out
    )


@settings(deadline=None, max_examples=40)
@given(row_groups, st.sampled_from([(2, 32), (4, 16), (4, 48), (8, 8), (8, 24)]), st.integers(0, 3))
def test_ranks_together_take_in_a_step_what_one_rank_would(
    rows: list[int], shape: tuple[int, int], seed: int
) -> None:
    world_size, batch_size = shape
    source = MemorySource(rows)
    together = steps(load(source, world_size * batch_size, shuffle=True, seed=seed))
    found = [steps(x) for x in ranks(source, world_size, batch_size=batch_size, shuffle=True, seed=seed)]
    for step in range(sum(rows) // (world_size * batch_size)):
        taken = list(itertools.chain.from_iterable(rank[step] for rank in found))
        assert sorted(taken) == sorted(together[step])


def test_ranks_read_each_row_group_once_but_for_the_cut_ones() -> None:
    rows = [40, 1, 0, 333, 100, 100, 37, 250, 5, 100] * 6
    for shuffle in (False, True):
        for world_size in (2, 4, 8):
            source = MemorySource(rows)
            for loader in ranks(source, world_size, batch_size=64, shuffle=shuffle, seed=3):
                ids(loader)
            reads = Counter(source.reads)
            assert set(reads) == {n for n, count in enumerate(rows) if count}
            assert sum(reads.values()) - len(reads) <= world_size - 1


def test_without_a_shuffle_ranks_own_equal_parts_of_the_dataset() -> None:
    found = [ids(loader) for loader in ranks(MemorySource([30, 50, 20]), 4, batch_size=8)]
    assert found == [list(range(start, start + 25)) for start in (0, 25, 50, 75)]


# What is left is shared out anew


def taken(loaders: list[Loader], batches: int) -> tuple[list[int], dict[str, Any]]:
    """What all ranks give in their next `batches` batches, and the state in which they then stand."""
    running = [iter(loader) for loader in loaders]
    numbers = [n for batch in running for n in ids(itertools.islice(batch, batches))]
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    for batch in running:
        batch.close()
    return numbers, states[0]


@settings(deadline=None, max_examples=50)
@given(
    row_groups,
    st.lists(st.tuples(worlds, batch_sizes, st.integers(0, 12)), min_size=1, max_size=4),
    st.data(),
)
def test_an_epoch_goes_on_with_exactly_the_rows_that_are_left(
    rows: list[int], legs: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Through any number of resumes, each with other ranks, threads, prefetch and batch size."""
    source, shuffle = MemorySource(rows), data.draw(st.booleans())
    state, seen = None, []
    for world_size, batch_size, batches in [*legs, (data.draw(worlds), 16, 10**6)]:
        options = {
            "threads": data.draw(st.sampled_from([1, 4])),
            "prefetch": data.draw(st.sampled_from([0, 4])),
        }
        loaders = ranks(source, world_size, batch_size=batch_size, shuffle=shuffle, seed=9, **options)
        if state is not None and not state["finished"]:
            for loader in loaders:
                loader.load_state_dict(state)
                assert loader.epoch == 0
        if state is None or not state["finished"]:
            numbers, state = taken(loaders, batches)
            seen += numbers
            last = world_size
    assert len(set(seen)) == len(seen)
    assert state is not None
    assert state["finished"]
    assert sum(rows) - len(seen) <= lost_at_most(last, resumed=shuffle)


@settings(deadline=None, max_examples=40)
@given(row_groups, worlds, batch_sizes, st.integers(0, 12), st.booleans(), st.sampled_from(["drop", "pad"]))
def test_as_many_ranks_go_on_with_the_very_batches_that_were_to_come(
    rows: list[int], world_size: int, batch_size: int, batches: int, shuffle: bool, uneven: str
) -> None:
    options = {"batch_size": batch_size, "shuffle": shuffle, "uneven": uneven}
    source = MemorySource(rows)
    whole = [steps(loader) for loader in ranks(source, world_size, **options)]
    _, state = taken(ranks(source, world_size, **options), batches)
    if not state["finished"]:
        for loader, expected in zip(ranks(source, world_size, **options), whole, strict=True):
            loader.load_state_dict(state)
            found = steps(loader)
            assert [len(batch) for batch in found] == [len(batch) for batch in expected[batches:]]
            before, after = (
                list(itertools.chain(*some)) for some in (expected[:batches], expected[batches:])
            )
            given_again = len(before + after) - len(set(before + after))
            own = len(after) - given_again  # which row a rank pads with may be another
            assert list(itertools.chain(*found))[:own] == after[:own]


@settings(deadline=None, max_examples=40)
@given(row_groups, worlds, worlds, batch_sizes, st.integers(0, 12), st.booleans())
def test_pad_goes_on_with_other_ranks_and_gives_every_row(
    rows: list[int], before: int, after: int, batch_size: int, batches: int, shuffle: bool
) -> None:
    options = {"batch_size": batch_size, "shuffle": shuffle, "uneven": "pad"}
    source = MemorySource(rows)
    seen, state = taken(ranks(source, before, **options), batches)
    loaders = ranks(source, after, **options)
    for loader in loaders:
        loader.load_state_dict(state)
    rest = [steps(loader) for loader in loaders]
    assert len({tuple(map(len, steps)) for steps in rest}) == 1
    if not state["finished"]:
        given_out = set(itertools.chain(*itertools.chain(*rest)))
        assert set(seen) | given_out == set(range(sum(rows)))
        assert given_out & set(seen) <= {sum(rows) - 1}


def test_a_rank_that_has_no_row_left_pads_with_the_last_of_the_dataset() -> None:
    """Else it would end before the others, or refuse what they go on with."""
    source, options = MemorySource([8] * 8), {"batch_size": 1, "shuffle": True, "uneven": "pad"}
    _, state = taken(ranks(source, 1, **options), 63)
    loaders = ranks(source, 2, **options)
    for loader in loaders:
        loader.load_state_dict(state)
    without, with_rows = (ids(loader) for loader in loaders)
    assert without == [63]
    assert len(with_rows) == 1
    for shuffle in (False, True):
        few = ranks(MemorySource([2, 0, 1, 0]), 4, batch_size=2, shuffle=shuffle, uneven="pad")
        found = [ids(loader) for loader in few]
        assert {len(numbers) for numbers in found} == {1}
        assert {n for numbers in found for n in numbers} == {0, 1, 2}


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_resume_reads_what_is_left_and_at_most_a_block_of_each_lane_again(shuffle: bool) -> None:
    rows = [50] * 400
    source = MemorySource(rows)
    loader = load(source, 100, shuffle=shuffle, window=4)
    next(itertools.islice(loader, 179, None))  # 90 %
    state = loader.state_dict()
    source.reads.clear()
    loader = load(source, 100, shuffle=shuffle, window=4)
    loader.load_state_dict(state)
    assert len(ids(loader)) == 2000
    assert len(source.reads) == len(set(source.reads)) <= 40 + (4 * LANES if shuffle else 1)


def test_lanes_are_shared_out_evenly_or_not_at_all() -> None:
    with pytest.raises(ConfigError, match="8 lanes cannot be shared out among 3 ranks") as caught:
        load(MemorySource([9]), shuffle=True, rank=0, world_size=3)
    assert "lanes=9" in str(caught.value.hint)
    loaders = ranks(MemorySource([90] * 9), 3, batch_size=30, shuffle=True, lanes=9)
    assert sorted(n for loader in loaders for n in ids(loader)) == list(range(810))
