"""`IterableDataset` in PyTorch's own `DataLoader`: workers that are forked, spawned, or live on."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scene import Scene, ended, forked
from test_across_processes import LoggedKms, spellings
from torch.utils.data import DataLoader

import encpipe
from encpipe.parquet import keyclients
from encpipe.rowgroups import RowGroups
from encpipe.torch import IterableDataset, Loader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on few cores

ROWS = 1003
EVERY = list(range(ROWS))


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> LoggedKms:
    folder = tmp_path_factory.mktemp("kms")
    for name in ("main", "pii"):
        (folder / f"{name}.key").write_bytes(os.urandom(32))
    return LoggedKms(folder)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, kms: LoggedKms) -> Scene:
    """Two files in row groups of 60 rows."""
    folder = tmp_path_factory.mktemp("dataset")
    table = pa.table({"id": EVERY, "name": [f"name {n}" for n in EVERY]})
    (folder / "plain").mkdir()
    for number, part in enumerate((table.slice(0, 410), table.slice(410))):
        pq.write_table(part, folder / "plain" / f"{number}.parquet", row_group_size=60)
    made = Scene(str(folder / "sealed"), kms)
    made.write(folder / "plain")
    return made


def shuffled(scene: Scene, **more: Any) -> IterableDataset:
    options = {"batch_size": 50, "columns": ["id"], "shuffle": True, "seed": 1, "window": 2}
    return IterableDataset(scene.url, **{**options, **scene.access, **more})


def loading(data: IterableDataset, workers: int, method: str = "fork", **more: Any) -> DataLoader[Any]:
    if workers:
        more["multiprocessing_context"] = method
    return DataLoader(data, batch_size=None, num_workers=workers, **more)


def ids(batches: Iterable[dict[str, Any]]) -> list[int]:
    return [row for batch in batches for row in batch["id"].tolist()]


def ends(loader: DataLoader[Any], error: type[Exception], match: str) -> None:
    """Reading raises; and workers are gone at once (left to the garbage collector it takes seconds)."""
    batches: Any = iter(loader)
    try:
        with pytest.raises(error, match=match):
            list(batches)
    finally:
        batches._shutdown_workers()


def order(scene: Scene, epoch: int) -> list[int]:
    """What one process gives in this epoch."""
    with Loader(scene.url, 50, ["id"], shuffle=True, seed=1, window=2, **scene.access) as loader:
        loader.set_epoch(epoch)
        return ids(loader)


# Every row once in every epoch


@pytest.mark.parametrize("persistent", [False, True], ids=["anew", "living on"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_forked_workers_together_give_every_row_once_in_every_epoch(
    scene: Scene, workers: int, persistent: bool
) -> None:
    data = shuffled(scene)
    loader = loading(data, workers, persistent_workers=persistent)
    first, second = ids(loader), ids(loader)
    data.set_epoch(5)
    fifth, sixth = ids(loader), ids(loader)
    data.set_epoch(0)
    assert ids(loader) == first
    epochs = [first, second, fifth, sixth]
    assert all(sorted(epoch) == EVERY for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    if workers == 1:
        assert epochs == [order(scene, epoch) for epoch in (0, 1, 5, 6)]


def test_without_workers_it_is_the_order_of_a_loader(scene: Scene) -> None:
    data = shuffled(scene)
    loader = loading(data, 0)
    assert [ids(loader), ids(loader)] == [order(scene, 0), order(scene, 1)]
    data.set_epoch(5)
    assert [ids(loader), ids(loader)] == [order(scene, 5), order(scene, 6)]


@pytest.mark.parametrize(("method", "persistent"), [("spawn", True), ("forkserver", False)])
def test_workers_with_nothing_inherited_do_the_same_with_one_unwrap_for_each_key(
    scene: Scene, kms: LoggedKms, method: str, persistent: bool
) -> None:
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["encpipe.torch"])  # else every worker takes seconds to begin
    data = shuffled(scene, columns=["id", "name"])
    before = kms.calls(os.getpid())
    pids = set()
    loader = loading(data, 2, method, persistent_workers=persistent)
    for epoch in range(2):
        rows = iter(loader)
        pids |= {worker.pid for worker in rows._workers}
        batches = list(rows)
        assert sorted(ids(batches)) == EVERY
        assert [name for batch in batches for name in batch["name"]] == [f"name {n}" for n in ids(batches)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data._epochs, "begin", lambda at=None, epoch=epoch: epoch)
            assert ids(loading(data, 2)) == ids(batches), "the order is that of forked workers"
    assert len(pids) == (2 if persistent else 4)
    assert [kms.calls(pid) for pid in pids] == [{"main": 1, "pii": 1}] * len(pids)
    assert kms.calls(os.getpid()) == before


def test_forked_workers_use_the_keys_of_their_parent(scene: Scene, kms: LoggedKms) -> None:
    data = shuffled(scene)
    before = kms.calls()
    list(loading(data, 2))
    assert kms.calls() == before


def test_what_is_not_shuffled_comes_in_one_part_for_each_worker(scene: Scene) -> None:
    data = IterableDataset(scene.url, 50, ["id"], **scene.access)
    assert ids(loading(data, 0)) == EVERY
    batches = [batch["id"].tolist() for batch in loading(data, 2)]
    assert sorted(row for batch in batches for row in batch) == EVERY
    assert [batches[0][0], batches[1][0]] == [0, ROWS // 2]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_worker_that_has_no_lane_or_row_gives_nothing(scene: Scene, shuffle: bool) -> None:
    few = pc.field("id") < 2
    data = shuffled(scene, shuffle=shuffle, lanes=2, filter=few)
    assert sorted(ids(loading(data, 3))) == [0, 1]


def test_drop_last_leaves_out_what_fills_no_batch_of_a_worker(scene: Scene) -> None:
    lanes = 4  # of 251, 251, 251 and 250 rows: 502 and 501 for two workers
    whole = [len(batch["id"]) for batch in loading(shuffled(scene, lanes=lanes), 2)]
    dropped = [len(batch["id"]) for batch in loading(shuffled(scene, lanes=lanes, drop_last=True), 2)]
    assert sorted(whole) == [1, 2, *dropped]
    assert dropped == [50] * 20


# Ranks


@pytest.mark.parametrize("uneven", ["drop", "pad"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_two_ranks_with_workers_have_equally_many_batches(scene: Scene, uneven: str, workers: int) -> None:
    """Of equally many rows each, so that no rank waits for another."""
    ranks = []
    for rank in range(2):
        data = shuffled(scene, lanes=6, uneven=uneven, rank=rank, world_size=2)
        ranks.append([batch["id"].tolist() for batch in loading(data, workers)])
    first, second = ([row for batch in rank for row in batch] for rank in ranks)
    assert [len(batch) for batch in ranks[0]] == [len(batch) for batch in ranks[1]]
    assert not set(first) & set(second)
    if uneven == "pad":
        assert set(first) | set(second) == set(EVERY)
        assert ROWS <= len(first + second) <= ROWS + 2 * workers
    else:
        assert ROWS - 2 * workers <= len(set(first + second)) == len(first + second)


# Which epoch comes


def test_an_epoch_that_is_broken_off_is_not_begun_again(scene: Scene) -> None:
    data = shuffled(scene)
    for persistent in (False, True):
        data.set_epoch(0)
        loader = loading(data, 2, persistent_workers=persistent)
        next(iter(loader))
        expected = shuffled(scene)
        expected.set_epoch(1)
        assert ids(loader) == ids(loading(expected, 2))


def test_the_count_goes_on_whatever_the_number_of_workers(scene: Scene) -> None:
    data = shuffled(scene)
    for epoch, workers in enumerate((0, 3, 1, 2, 0, 1)):
        found = ids(loading(data, workers))
        assert sorted(found) == EVERY
        if workers <= 1:
            assert found == order(scene, epoch)


def test_a_copy_counts_on_its_own(scene: Scene) -> None:
    data = shuffled(scene)
    ids(loading(data, 1))
    with scene.open() as opened:
        for copied in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
            assert [ids(loading(copied, 1)) for _ in range(2)] == [order(scene, 1), order(scene, 2)]
        assert ids(loading(data, 1)) == order(scene, 1)
        assert ids(IterableDataset(opened, 50, ["id"])) == EVERY


def test_a_worker_that_never_began_does_not_fall_behind(scene: Scene) -> None:
    """One that is stopped while it still starts has not begun the epoch that the others have."""
    data = shuffled(scene)

    def stopped(worker: int) -> None:
        if worker == 1:
            os._exit(0)

    ends(loading(data, 2, worker_init_fn=stopped), RuntimeError, "exited unexpectedly")
    expected = shuffled(scene)
    expected.set_epoch(1)
    assert ids(loading(data, 2)) == ids(loading(expected, 2))


def test_a_worker_that_starts_while_an_epoch_is_set_does_not_count(scene: Scene) -> None:
    """It belongs to an iteration that nobody waits for any more."""
    data = shuffled(scene)
    data.set_epoch(3)
    wait, go_on = os.pipe()

    def begin() -> None:
        os.read(wait, 1)
        assert data._epochs.begin() == 3

    pid = forked(begin)
    data.set_epoch(7)
    os.write(go_on, b"!")
    assert ended(pid) == 0
    os.close(wait)
    os.close(go_on)
    assert ids(data) == order(scene, 7)


def test_only_workers_know_where_their_rows_stand(scene: Scene) -> None:
    data = shuffled(scene)
    assert data.state_dict()["epoch"] == 0
    list(loading(data, 1))
    with pytest.raises(encpipe.ConfigError, match="worker processes") as caught:
        data.state_dict()
    assert caught.value.code == "resume-state"
    assert "StatefulDataLoader" in caught.value.hint
    data.set_epoch(1)
    assert data.state_dict()["epoch"] == 1


# What goes to a worker


def test_a_pickle_holds_no_key(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = []
    opened = keyclients.UnwrappingClient._open

    def noted(*args: Any) -> bytes:
        secrets.append(dek := opened(*args))
        return dek

    monkeypatch.setattr(keyclients.UnwrappingClient, "_open", noted)
    data = shuffled(scene, columns=None)
    list(data)
    state = data._opened.dataset._state
    secrets += [state.keys.kek(kek.id).reveal() for kek in state.view.core.keks]
    assert len(set(secrets)) >= 2 + 2 * 2, "two KEKs, and for each file the DEKs of footer and columns"
    for carried in (pickle.dumps(data), multiprocessing.reduction.ForkingPickler.dumps(data)):
        assert not [part for secret in secrets for part in spellings(secret) if part in bytes(carried)]
        assert data._opened.dataset.dataset_id.encode() in bytes(carried)


def test_rows_are_counted_once_and_not_by_every_worker(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    count = RowGroups.count

    def logged(self: RowGroups, index: int) -> int:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return count(self, index)

    monkeypatch.setattr(RowGroups, "count", logged)
    data = shuffled(scene, filter=pc.field("id") >= 500)
    assert sorted(ids(loading(data, 2))) == EVERY[500:]
    assert set(log.read_text().split()) == {str(os.getpid())}


def test_what_goes_wrong_in_a_worker_is_the_same_error(scene: Scene, tmp_path: Path) -> None:
    made = scene.at(str(tmp_path / "sealed"))
    made.write(pa.table({"id": EVERY, "name": ["x"] * ROWS}))
    data = IterableDataset(made.url, 50, ["id"], **made.access)
    (file,) = (tmp_path / "sealed" / "data").iterdir()
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    ends(loading(data, 2), encpipe.IntegrityError, file.name[:8])


def test_a_transform_runs_in_the_workers(scene: Scene) -> None:
    data = shuffled(scene, transform=where)
    assert len(set(loading(data, 2)) - {os.getpid()}) == 2


def where(batch: dict[str, Any]) -> int:
    return os.getpid()
