"""A resume state is plain, says where an epoch stands, and is bound to what its order depends on."""

from __future__ import annotations

import copy
import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc
import pytest
import torch
from rowsource import MemorySource, ids, load, numbered

from encpipe import ConfigError
from encpipe.torch import Loader
from encpipe.torch.order import ORDER_VERSION
from encpipe.torch.state import FORMAT, STATE_VERSION

ROWS = [40, 0, 1, 100, 37, 64, 7, 40, 90, 8]
TOTAL = sum(ROWS)
SOURCE = MemorySource(ROWS)
FIELDS = {
    *(
        "format",
        "version",
        "dataset_id",
        "core_digest",
        "columns",
        "filter",
        "missing_keys",
        "shuffle",
        "seed",
    ),
    *("lanes", "window", "uneven", "order_version", "generation", "epoch", "left", "exact", "finished"),
}

State = dict[str, Any]


def loader(shuffle: bool = True, source: MemorySource = SOURCE, **options: Any) -> Loader:
    return load(source, 16, **{"shuffle": shuffle, "seed": 4, **options})


def stopped(batches: int = 5, **options: Any) -> tuple[list[int], State]:
    """What a loader gave in so many batches, and its state."""
    running = loader(**options)
    return ids(itertools.islice(running, batches)), running.state_dict()


def resumed(state: State, **options: Any) -> list[int]:
    found = loader(**options)
    found.load_state_dict(state)
    return ids(found)


# What it is


def test_a_state_is_plain_and_has_these_fields() -> None:
    _, state = stopped()
    assert set(state) == FIELDS
    assert (state["format"], state["version"]) == (FORMAT, STATE_VERSION) == ("encpipe loader state", 1)
    assert state["order_version"] == ORDER_VERSION
    assert (state["epoch"], state["finished"], state["columns"]) == (0, False, ["i", "s"])
    assert sum(stop - start for part in state["left"] for start, stop in part) == TOTAL - 80


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_state_goes_through_json_and_a_checkpoint(shuffle: bool) -> None:
    seen, state = stopped(shuffle=shuffle)
    rest = resumed(state, shuffle=shuffle)
    assert sorted(seen + rest) == list(range(TOTAL))
    saved = io.BytesIO()
    torch.save({"loader": state}, saved)
    saved.seek(0)
    assert torch.load(saved, weights_only=True)["loader"] == state
    assert json.loads(json.dumps(state)) == state
    assert resumed(json.loads(json.dumps(state)), shuffle=shuffle) == rest


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_state_that_was_loaded_is_given_again_before_the_next_batch(shuffle: bool) -> None:
    _, state = stopped(shuffle=shuffle)
    found = loader(shuffle=shuffle)
    found.load_state_dict(state)
    assert found.state_dict() == state
    iter(found)
    assert found.state_dict() == state


def test_a_state_counts_batches_when_they_are_given_and_not_when_they_are_read() -> None:
    running = loader(prefetch=50, threads=4)
    for n, batch in enumerate(running):
        left = sum(stop - start for part in running.state_dict()["left"] for start, stop in part)
        assert left == max(0, TOTAL - 16 * (n + 1))
        assert len(batch["i"]) == min(16, TOTAL - 16 * n)


def test_a_finished_epoch_is_followed_by_the_next() -> None:
    whole = loader()
    epochs = [ids(whole) for _ in range(3)]
    ended = loader()
    ids(ended)
    state = ended.state_dict()
    assert state["finished"]
    found = loader()
    found.load_state_dict(state)
    assert found.epoch == 1
    assert [ids(found), ids(found)] == epochs[1:]


def test_the_epochs_after_a_resumed_one_are_whole() -> None:
    whole = loader()
    epochs = [ids(whole) for _ in range(2)]
    seen, state = stopped()
    found = loader()
    found.load_state_dict(state)
    assert (seen + ids(found), ids(found)) == (epochs[0], epochs[1])


def test_a_last_batch_that_is_dropped_does_not_hold_the_epoch_open() -> None:
    ended = loader(drop_last=True)
    assert len(ids(ended)) == TOTAL // 16 * 16
    assert ended.state_dict()["finished"]


def test_set_epoch_puts_a_resume_off_and_shows_in_the_state() -> None:
    _, state = stopped()
    found = loader()
    found.load_state_dict(state)
    found.set_epoch(3)
    assert found.state_dict()["epoch"] == 3
    assert sorted(ids(found)) == list(range(TOTAL))
    resumed_there = loader()
    resumed_there.load_state_dict(found.state_dict())
    assert resumed_there.epoch == 4


def test_the_batch_size_may_change() -> None:
    seen, state = stopped()
    other = load(SOURCE, 7, shuffle=True, seed=4)
    other.load_state_dict(state)
    assert seen + ids(other) == ids(loader())


# What it goes with


@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("another dataset", lambda: loader(source=MemorySource(ROWS, dataset_id="e" * 32))),
        ("other data", lambda: loader(source=MemorySource(ROWS, core_digest="e" * 64))),
        ("other missing keys", lambda: loader(source=MemorySource(ROWS, missing_keys=("pii",)))),
        (
            "other columns",
            lambda: loader(source=MemorySource(ROWS, make=lambda *of: numbered(*of).select(["i"]))),
        ),
        ("another filter", lambda: loader(filter=pc.field("i") > 3)),
        ("another shuffle", lambda: loader(shuffle=False)),
        ("another seed: the state has 4, here it is 5", lambda: loader(seed=5)),
        ("another number of lanes", lambda: loader(lanes=4)),
        ("another window", lambda: loader(window=1)),
        ("another rule for uneven ranks", lambda: loader(uneven="pad")),
    ],
)
def test_a_state_of_something_else_is_refused_and_the_difference_named(
    named: str, make: Callable[[], Loader]
) -> None:
    _, state = stopped()
    other = make()
    with pytest.raises(ConfigError, match=named) as caught:
        other.load_state_dict(state)
    assert caught.value.code == "resume-state"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("version", 2, "its version is 2, and this encpipe reads 1"),
        ("order_version", ORDER_VERSION + 1, "another version of the order"),
        ("format", "another", "not a state of an encpipe loader"),
        ("exact", [0, 1], "that of one worker process, and this loader needs those of all"),
    ],
)
def test_a_state_of_another_version_or_of_a_worker_is_refused(field: str, value: object, named: str) -> None:
    _, state = stopped()
    with pytest.raises(ConfigError, match=named) as caught:
        loader().load_state_dict({**state, field: value})
    assert caught.value.code == "resume-state"


@pytest.mark.parametrize("state", [None, {}, [], "state", {"format": FORMAT}, {"format": []}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        loader().load_state_dict(state)
    assert caught.value.code == "resume-state"


def test_a_refused_state_changes_nothing() -> None:
    _, state = stopped()
    running = loader()
    batches = iter(running)
    first = ids(itertools.islice(batches, 2))
    before = running.state_dict()
    edited = copy.deepcopy(state)
    edited["left"][0][0][1] += 1
    for refused in (
        edited,
        {**state, "seed": 5},
        {**state, "epoch": 9, "left": [[]] * 9},
        {**state, "exact": []},
    ):
        with pytest.raises(ConfigError):
            running.load_state_dict(refused)
        assert running.state_dict() == before
        assert running.epoch == 1
    assert first + ids(batches) == ids(loader())
