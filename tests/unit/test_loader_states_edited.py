"""A resume state that was edited is refused, or does no harm: nothing authenticates it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rowsource import MemorySource, ids, load

from encpipe import ConfigError
from encpipe.torch import Loader, merge_states

ROWS = [40, 0, 1, 100, 37, 64, 7, 40, 90, 8]
TOTAL = sum(ROWS)
SOURCE = MemorySource(ROWS)


def loader(shuffle: bool = True, **options: Any) -> Loader:
    return load(SOURCE, 16, **{"shuffle": shuffle, "seed": 4, **options})


def stopped(shuffle: bool = True) -> dict[str, Any]:
    """The state of a loader after five batches."""
    running = loader(shuffle)
    ids(itertools.islice(running, 5))
    return running.state_dict()


FIELDS = set(stopped())


def refuses(running: Loader, state: Any) -> bool:
    """Whether `running` refuses the state; with an error of any other kind it fails the test."""
    try:
        running.load_state_dict(state)
    except ConfigError as error:
        return bool(error.code == "resume-state" or pytest.fail(f"{error!r}"))
    return False


numbers = st.integers(-3, TOTAL + 3) | st.sampled_from([2**63, 2**64, -(2**70), 10**400])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
ranges = st.lists(st.lists(st.tuples(numbers, numbers).map(sorted), max_size=3), min_size=0, max_size=9)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.booleans())
def test_an_edited_state_is_refused_or_gives_no_row_twice(data: st.DataObject, shuffle: bool) -> None:
    state = stopped(shuffle=shuffle)
    for _ in range(data.draw(st.integers(1, 3))):
        field = data.draw(st.sampled_from(sorted(FIELDS | {"extra"})))
        if data.draw(st.booleans()):
            state.pop(field, None)
        elif field == "left" and data.draw(st.booleans()):
            state["left"] = data.draw(ranges)
        else:
            state[field] = data.draw(anything)
    world_size = data.draw(st.sampled_from([1, 2]))
    found: list[int] = []
    for rank in range(world_size):
        running = loader(shuffle=shuffle, rank=rank, world_size=world_size)
        if refuses(running, state):
            return
        found += ids(running)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_field_that_is_missing_or_of_another_type_is_refused(field: str) -> None:
    state = stopped()
    rest = {name: value for name, value in state.items() if name != field}
    others = ([], {}, "x", 1.5, 7, None, True, [None], [[]], [[[0.0, 1.0]]], object())
    edited = [{**rest, field: value} for value in others if type(value) is not type(state[field])]
    for refused in (rest, *edited):
        with pytest.raises(ConfigError) as caught:
            loader().load_state_dict(refused)
        assert caught.value.code == "resume-state"


@pytest.mark.parametrize(
    "left",
    [
        [[[0, TOTAL + 1]]],
        [[[TOTAL, TOTAL + 1]]],
        [[[0, 9], [8, 12]]],
        [[[0, 9]], [[3, 4]]],
        [[[5, 5], [0, 10]]],
        [[[9, 3]]],
        [[[-1, 3]]],
        [[[0, True]]],
        [[[0, 1, 2]]],
        [[0, 1]],
        "left",
    ],
)
def test_ranges_beyond_the_rows_or_upon_each_other_are_refused(left: Any) -> None:
    state = stopped(shuffle=False)
    parts = list(range(len(left)))
    for world_size in (1, 2):
        running = loader(shuffle=False, rank=0, world_size=world_size)
        with pytest.raises(ConfigError) as caught:
            running.load_state_dict({**state, "left": left, "exact": parts})
        assert caught.value.code == "resume-state"


@settings(deadline=None)
@given(st.lists(anything, max_size=2), st.data())
def test_merging_refuses_what_does_not_belong_together(other: list[Any], data: st.DataObject) -> None:
    state = stopped()
    field = data.draw(st.sampled_from(sorted(FIELDS - {"exact"})))
    for states in (
        [state, state],
        [state, *other] if other else [],
        [{**state, field: data.draw(anything)}, state],
    ):
        with pytest.raises(ConfigError) as caught:
            merge_states(states)
        assert caught.value.code == "resume-state"
    assert merge_states([state]) == state
