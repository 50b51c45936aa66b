"""The loader on encrypted datasets: what a scan gives, as batches, and nothing where a file is damaged."""

from __future__ import annotations

import gc
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from scene import PII, Scene, save
from torch.testing._internal.distributed.fake_pg import FakeStore

from encpipe import ConfigError, Dataset, IntegrityError, StaleDatasetError, UntrustedKeyError
from encpipe.torch import Loader
from encpipe.torch.source import ScanSource

ROWS = 900
STACK = {"both": ["id", "label"]}
SHUFFLES = pytest.mark.parametrize("shuffle", [False, True])


def table(first: int, rows: int) -> pa.Table:
    ids = range(first, first + rows)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "name": pa.array([f"name {n}" for n in ids]),
            "x": pa.array([None if n % 9 == 0 else n / 2 for n in ids]),
            "label": pa.array([n * 10 // ROWS for n in ids], pa.int8()),
        }
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Four files of unequal length, row groups of 64 rows and what is left; rows sorted by `label`."""
    folder = tmp_path_factory.mktemp("loader")
    scene = Scene(str(folder / "sealed"))
    parts = [table(start, stop - start) for start, stop in itertools.pairwise((0, 64, 300, 301, ROWS))]
    scene.write(save(folder / "plain", *parts, row_group=64), policy=PII)
    return scene


def loader(scene: Scene, batch_size: int = 50, columns: list[str] | None = None, **options: Any) -> Loader:
    return Loader(scene.url, batch_size, columns or ["id", "name"], **{"seed": 1, **scene.access, **options})


def column(batches: Any, name: str = "id") -> list[Any]:
    return [value for batch in batches for value in torch.as_tensor(batch[name]).tolist()]


def names(batches: Any) -> list[str]:
    return [name for batch in batches for name in batch["name"]]


def whole(batch: dict[str, Any]) -> list[int]:
    """The ids of a batch, whose names are checked to go with them."""
    numbers: list[int] = batch["id"].tolist()
    assert batch["name"] == [f"name {n}" for n in numbers]
    return numbers


_BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_other_tests() -> None:
    _BEFORE.clear()
    _BEFORE.update(threading.enumerate())


def no_thread_is_left() -> None:
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("encpipe-") for thread in set(threading.enumerate()) - _BEFORE):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_rows_are_those_of_a_scan_in_exact_batches(scene: Scene) -> None:
    with loader(scene, 128, ["name", "id", "x"], nulls=-1) as running:
        batches = list(running)
    expected = scene.table()
    assert [len(batch["id"]) for batch in batches] == [128] * 7 + [4]
    assert column(batches) == expected["id"].to_pylist()
    assert names(batches) == expected["name"].to_pylist()
    assert column(batches, "x") == [-1 if x is None else x for x in expected["x"].to_pylist()]
    assert list(batches[0]) == ["name", "id", "x"]


def test_shuffled_rows_stay_whole_and_come_in_one_order_for_any_number_of_threads(scene: Scene) -> None:
    found = []
    for threads, prefetch in ((1, 0), (8, 4), (2, 40)):
        with loader(scene, shuffle=True, threads=threads, prefetch=prefetch) as running:
            epochs = [list(running), list(running)]
        for batches in epochs:
            assert names(batches) == [f"name {n}" for n in column(batches)]
        found.append([column(batches) for batches in epochs])
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][1]
    assert sorted(found[0][0]) == sorted(found[0][1]) == list(range(ROWS))


@SHUFFLES
def test_a_filter_drops_rows_before_they_are_shared_out(scene: Scene, shuffle: bool) -> None:
    expected = [n for n in range(ROWS) if n % 9 == 0 and n >= 100]
    keep = pc.field("x").is_null() & (pc.field("id") >= 100)
    options = {"filter": keep, "shuffle": shuffle, "world_size": 4}
    found = []
    for rank in range(4):
        with loader(scene, 7, rank=rank, **options) as running:
            found.append(column(running))
            assert len(running) == 4
    assert {len(numbers) for numbers in found} == {len(expected) // 4}
    given_out = [n for numbers in found for n in numbers]
    assert set(given_out) <= set(expected)
    assert len(set(given_out)) == len(given_out)
    with loader(scene, filter=[("id", "<", 0)], shuffle=shuffle) as running:
        assert (len(running), list(running)) == (0, [])


@SHUFFLES
def test_ranks_fetch_no_row_group_twice_but_for_cut_ones(
    scene: Scene, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[int] = Counter()
    read = ScanSource.read
    monkeypatch.setattr(ScanSource, "read", lambda source, n: (reads.update([n]), read(source, n))[1])
    for rank in range(4):
        with loader(scene, shuffle=shuffle, rank=rank, world_size=4) as running:
            list(running)
    groups = 1 + 4 + 1 + 10
    assert set(reads) == set(range(groups))
    assert reads.total() <= groups + 3


def test_a_last_batch_may_be_left_out(scene: Scene) -> None:
    with loader(scene, 128, drop_last=True) as running:
        assert [len(batch["id"]) for batch in running] == [128] * 7 == [128] * len(running)


def test_columns_are_stacked_and_only_what_is_asked_for_is_decrypted(scene: Scene) -> None:
    with (
        scene.knowing("footer").open() as dataset,
        Loader(dataset, 64, ["id", "label"], stack=STACK) as running,
    ):
        batches = list(running)
        assert dataset.kms_calls == 1
    assert batches[0]["both"].shape == (64, 2)
    assert [row[0] for batch in batches for row in batch["both"].tolist()] == list(range(ROWS))


@SHUFFLES
def test_nulls_are_an_error_unless_a_rule_says_what_they_are(scene: Scene, shuffle: bool) -> None:
    with (
        loader(scene, columns=["id", "x"], shuffle=shuffle) as running,
        pytest.raises(ConfigError, match="'x'"),
    ):
        list(running)
    gc.collect()
    no_thread_is_left()
    with loader(scene, columns=["id", "x"], shuffle=shuffle, nulls="mask") as running:
        for batch in running:
            assert batch["x_mask"].tolist() == [n % 9 != 0 for n in batch["id"].tolist()]


@SHUFFLES
def test_columns_of_a_missing_key_are_skipped_or_null(scene: Scene, shuffle: bool) -> None:
    blind, options = scene.knowing("footer"), {"shuffle": shuffle, "nulls": "mask"}
    with pytest.raises(UntrustedKeyError):
        loader(blind)
    columns = ["id", "x", "label"]
    with Loader(blind.url, 50, **blind.access, on_missing_key="skip", seed=1, **options) as running:
        batches = list(running)
        assert {"name", *columns} & set(batches[0]) == set(columns)
        assert sorted(column(batches)) == list(range(ROWS))
    with loader(blind, on_missing_key="null", **options) as running:
        batches = list(running)
    assert sorted(column(batches)) == list(range(ROWS))
    assert not any(batch["name_mask"].any() for batch in batches)
    assert set(names(batches)) == {""}


# What ends a loop


@SHUFFLES
def test_damage_ends_the_loop_and_gives_no_more_rows(scene: Scene, tmp_path: Path, shuffle: bool) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(scene.folder, folder)
    damaged = scene.at(str(folder))
    with damaged.open() as dataset:
        victim = folder / dataset.files[-1].path
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 1
    victim.write_bytes(data)
    found: list[int] = []
    with loader(damaged, 10, shuffle=shuffle, threads=2) as running:
        batches = iter(running)
        with pytest.raises(IntegrityError):
            found.extend(n for batch in batches for n in whole(batch))
        assert list(batches) == []
    no_thread_is_left()
    assert len(set(found)) == len(found) < ROWS


def test_loops_over_one_loader_may_be_nested(scene: Scene) -> None:
    with loader(scene, 300, shuffle=True, threads=2) as running:
        outer = []
        for batch in running:
            outer += batch["id"].tolist()
            assert sorted(column(running)) == list(range(ROWS))
        assert sorted(outer) == list(range(ROWS))


def test_a_read_does_not_fail_because_another_loop_ended_meanwhile(scene: Scene) -> None:
    with scene.open() as dataset:
        source = ScanSource(dataset, ["id"], None, 1)
        groups = source._groups

        def closed_by_another() -> Any:
            found = groups()
            source.close()
            source._groups = groups  # type: ignore[method-assign] # this once
            return found

        source._groups = closed_by_another  # type: ignore[method-assign] # as a loop that ends right here
        assert source.read(0)["id"].to_pylist() == list(range(64))
        source.close()


def test_a_loader_closes_what_it_opened_and_not_what_it_was_given(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Dataset] = []
    close = Dataset.close
    monkeypatch.setattr(Dataset, "close", lambda dataset: (closed.append(dataset), close(dataset))[0])
    with scene.open() as dataset:
        with Loader(dataset, 50, ["id"]) as running:
            assert column(running) == list(range(ROWS))
        assert closed == []
        assert dataset.to_table(["id"]).num_rows == ROWS
    running = loader(scene)
    running.close()
    running.close()
    assert len(closed) == 2
    with pytest.raises(ConfigError):
        loader(scene, batch_size=0)
    assert len(closed) == 3, "also when it cannot be made"
    running = loader(scene)
    del running
    gc.collect()
    assert len(closed) == 4, "also when it is dropped"


# What it is given


def test_options_are_those_of_open_dataset(scene: Scene) -> None:
    with pytest.raises(StaleDatasetError):
        loader(scene, min_generation=9)
    with pytest.raises(TypeError, match=r"Loader\(\) got an unexpected keyword argument 'min_generatoin'"):
        loader(scene, min_generatoin=9)
    with scene.open() as dataset, pytest.raises(ConfigError, match="'min_generation' goes with a URL"):
        Loader(dataset, min_generation=1)


@pytest.fixture
def dataset(scene: Scene) -> Iterator[Dataset]:
    with scene.open() as dataset:
        yield dataset


def test_rank_and_world_size_come_from_the_launcher(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    launched, given = Loader(dataset, 50, ["id"]), Loader(dataset, 50, ["id"], rank=2, world_size=4)
    assert column(launched) == column(given) == list(range(450, 675))
    assert column(Loader(dataset, 50, ["id"], rank=0, world_size=1)) == list(range(ROWS))
    monkeypatch.setenv("WORLD_SIZE", "")
    assert column(Loader(dataset, 50, ["id"])) == list(range(ROWS))


def test_rank_and_world_size_come_from_torch_distributed_first(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    try:
        assert column(Loader(dataset, 50, ["id"])) == list(range(675, 900))
    finally:
        torch.distributed.destroy_process_group()
