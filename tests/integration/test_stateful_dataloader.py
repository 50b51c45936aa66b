"""torchdata's `StatefulDataLoader` over an `IterableDataset`: stopped anywhere, it goes on exactly."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from scene import Scene, save
from torchdata.stateful_dataloader import StatefulDataLoader

import encpipe
from encpipe.torch import IterableDataset, Loader, resume_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on few cores
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata 0.11 calls it
]

ROWS = 91
EVERY = list(range(ROWS))
Batches = list[list[int]]
State = dict[str, Any]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("stateful")
    table = pa.table({"id": EVERY, "name": ["x"] * ROWS})
    made = Scene(str(folder / "sealed"))
    made.write(save(folder / "plain", table.slice(0, 40), table.slice(40), row_group=7))
    return made


OPTIONS: dict[str, Any] = {"batch_size": 8, "columns": ["id"], "seed": 1, "window": 1, "lanes": 6}


def dataset(scene: Scene, **more: Any) -> IterableDataset:
    return IterableDataset(scene.url, **{**OPTIONS, "shuffle": True, **scene.access, **more})


def loading(data: IterableDataset, workers: int, **more: Any) -> StatefulDataLoader:
    return StatefulDataLoader(data, batch_size=None, num_workers=workers, **more)


def lists(batches: Iterable[dict[str, Any]]) -> Batches:
    return [batch["id"].tolist() for batch in batches]


def rows(batches: Iterable[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def kept(state: State) -> State:
    """The state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, dict)
    return loaded


def stops(loader: StatefulDataLoader) -> tuple[Batches, list[State]]:
    """An epoch's batches, and the state before the first, after each, and when the epoch is over."""
    states = [kept(loader.state_dict())]
    batches = []
    for batch in loader:
        batches.append(batch["id"].tolist())
        states.append(kept(loader.state_dict()))
    return batches, [*states, kept(loader.state_dict())]


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_with_exactly_the_batches_that_were_left_and_then_the_next_epoch(
    scene: Scene, workers: int, shuffle: bool
) -> None:
    loader = loading(dataset(scene, shuffle=shuffle), workers)
    batches, states = stops(loader)
    following = lists(loader)
    assert sorted(rows(batches)) == sorted(rows(following)) == EVERY
    assert (batches != following) == shuffle
    for given, state in enumerate(states[:-1]):
        resumed = loading(dataset(scene, shuffle=shuffle), workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict()["_iterator_finished"] is False
        assert lists(resumed) == batches[given:]
        assert lists(resumed) == following
    over = loading(dataset(scene, shuffle=shuffle), workers)
    over.load_state_dict(states[-1])
    assert lists(over) == following


def test_workers_of_which_one_is_finished(scene: Scene) -> None:
    """Of three workers one has a lane less than the others."""
    loader = loading(dataset(scene, lanes=5), 3)
    batches, states = stops(loader)
    following = lists(loader)
    for given in range(len(batches) - 3, len(batches) + 1):
        resumed = loading(dataset(scene, lanes=5), 3)
        resumed.load_state_dict(states[given])
        assert lists(resumed) == batches[given:]
        assert lists(resumed) == following


def test_workers_that_live_on(scene: Scene) -> None:
    loader = loading(dataset(scene), 2, persistent_workers=True)
    first, second, third = lists(loader), lists(loader), lists(loader)
    assert all(sorted(rows(epoch)) == EVERY for epoch in (first, second, third))
    loader = loading(dataset(scene), 2, persistent_workers=True)
    lists(loader)
    batches = iter(loader)
    assert [next(batches)["id"].tolist() for _ in range(3)] == second[:3]
    resumed = loading(dataset(scene), 2, persistent_workers=True)
    resumed.load_state_dict(kept(loader.state_dict()))
    assert lists(resumed) == second[3:]
    assert lists(resumed) == third


def test_going_back_in_the_same_process(scene: Scene) -> None:
    data = dataset(scene)
    loader = loading(data, 2)
    first, states = stops(loader)
    second = lists(loader)
    third = lists(loader)
    loader.load_state_dict(states[4])
    assert [lists(loader) for _ in range(3)] == [first[4:], second, third]


def test_going_back_counts_for_more_workers_too(scene: Scene) -> None:
    data = dataset(scene)
    loader = loading(data, 2)
    first, states = stops(loader)
    for _ in range(2):
        lists(loading(data, 3))
    loader.load_state_dict(states[4])
    assert lists(loader) == first[4:]
    expected = dataset(scene)
    expected.set_epoch(1)
    assert lists(loading(data, 3)) == lists(loading(expected, 3))


def test_set_epoch_reaches_the_workers(scene: Scene) -> None:
    data = dataset(scene)
    loader = loading(data, 2)
    first, second = lists(loader), lists(loader)
    data.set_epoch(0)
    assert [lists(loader), lists(loader)] == [first, second]


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_exactly_the_rows_that_were_left(scene: Scene, workers: int, shuffle: bool) -> None:
    loader = loading(dataset(scene, shuffle=shuffle), workers)
    batches, states = stops(loader)
    with Loader(scene.url, shuffle=shuffle, **OPTIONS, **scene.access) as other:
        for given, state in enumerate(states[: len(batches)]):
            other.load_state_dict(resume_state(state))
            assert other.epoch == 0
            assert sorted(rows(lists(other))) == sorted(rows(batches[given:]))
            assert sorted(rows(lists(other))) == EVERY
        for state in states[len(batches) :]:
            other.load_state_dict(resume_state(state))
            assert other.epoch == 1
            assert sorted(rows(lists(other))) == EVERY


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
def test_the_number_of_workers_may_change_again_and_again_within_an_epoch(
    scene: Scene, shuffle: bool
) -> None:
    found: Batches = []
    state: State | None = None
    for workers, steps in ((0, 2), (2, 3), (3, 2), (1, 1), (2, 99)):
        data = dataset(scene, shuffle=shuffle)
        if state is not None:
            data.load_state_dict(resume_state(state))
        loader = loading(data, workers)
        found += lists(itertools.islice(loader, steps))
        state = kept(loader.state_dict())
    assert sorted(rows(found)) == EVERY
    assert sorted(rows(lists(loader))) == EVERY


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_epoch_is_followed_by_the_next(scene: Scene, workers: int) -> None:
    data = dataset(scene)
    batches, states = stops(loading(data, 0))
    resumed = dataset(scene)
    resumed.load_state_dict(resume_state(states[5]))
    resumed.set_epoch(0)  # as programs do that set every epoch
    loader = loading(resumed, workers)
    assert sorted(rows(lists(loader))) == sorted(rows(batches[5:]))
    found = lists(loader)
    expected = dataset(scene)
    expected.set_epoch(1)
    assert found == lists(loading(expected, workers))


def test_ranks_with_workers_go_on_as_one(scene: Scene) -> None:
    given = []
    for rank in range(2):
        loader = loading(dataset(scene, rank=rank, world_size=2), 2)
        batches = iter(loader)
        given += [next(batches)["id"].tolist() for _ in range(3)]
        state = kept(loader.state_dict())
    with Loader(scene.url, shuffle=True, **OPTIONS, **scene.access) as one:
        one.load_state_dict(resume_state(state))
        assert sorted(rows(given) + rows(lists(one))) == EVERY


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
def test_ranks_with_workers_share_what_others_left(scene: Scene, shuffle: bool) -> None:
    """Equally, though three workers of one rank were not in step."""
    loader = loading(dataset(scene, shuffle=shuffle), 3)
    given = lists(itertools.islice(loader, 4))
    state = resume_state(kept(loader.state_dict()))
    ranks = []
    for rank in range(2):
        data = dataset(scene, shuffle=shuffle, rank=rank, world_size=2)
        data.load_state_dict(state)
        ranks.append(lists(loading(data, 2)))
    assert list(map(len, ranks[0])) == list(map(len, ranks[1]))
    found = rows(given + ranks[0] + ranks[1])
    assert len(set(found)) == len(found) > ROWS - 2 * 2 * 2


def test_a_state_that_lags_behind_is_refused(scene: Scene) -> None:
    loader = loading(dataset(scene), 2, snapshot_every_n_steps=4)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    resume_state(loader.state_dict())
    next(batches)
    state = loader.state_dict()
    lists(batches)  # workers that are left to the garbage collector take seconds to end
    with pytest.raises(encpipe.ConfigError, match="1 batches") as caught:
        resume_state(state)
    assert caught.value.code == "resume-state"


@pytest.mark.parametrize("state", [{}, {"format": "other"}, None, "text", [{"a": [1]}]])
def test_where_there_is_no_state_the_error_says_so(state: object) -> None:
    with pytest.raises(encpipe.ConfigError, match="there is none"):
        resume_state(state)


def test_the_state_of_one_worker_of_two_is_refused(scene: Scene) -> None:
    loader = loading(dataset(scene), 2)
    lists(loader)
    (state, _) = loader.state_dict()["_snapshot"]["_worker_snapshots"].values()
    data = dataset(scene)
    with pytest.raises(encpipe.ConfigError, match="one worker process"):
        data.load_state_dict(state["dataset_state"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_another_seed_is_refused(scene: Scene, workers: int) -> None:
    loader = loading(dataset(scene), workers)
    next(iter(loader))
    other = loading(dataset(scene, seed=2), workers)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(encpipe.ConfigError, match="another seed"):
        iter(other)


def test_an_earlier_generation_is_opened_again_but_not_in_workers(tmp_path: Path) -> None:
    made = Scene(str(tmp_path / "sealed"))
    made.write(pa.table({"id": EVERY, "name": ["x"] * ROWS}))
    states = {}
    for workers in (0, 2):
        loader = loading(dataset(made), workers)
        next(iter(loader))
        states[workers] = loader.state_dict()
    made.append(pa.table({"id": [ROWS], "name": ["x"]}))
    resumed = loading(dataset(made), 0)
    resumed.load_state_dict(states[0])
    assert len(rows(lists(resumed))) == ROWS - 8
    resumed = loading(dataset(made), 2)
    resumed.load_state_dict(states[2])
    with pytest.raises(encpipe.ConfigError, match="another generation"):
        iter(resumed)
    resumed = loading(dataset(made, generation=resume_state(states[2])["generation"]), 2)
    resumed.load_state_dict(states[2])
    assert len(rows(lists(resumed))) == ROWS - 8
