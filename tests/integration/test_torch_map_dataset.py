"""Rows by number: against the table they were written from, with PyTorch's samplers and worker processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scene import Scene
from test_across_processes import LoggedKms, spellings
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, random_split

import encpipe
from encpipe.errors import ConfigError
from encpipe.parquet import keyclients
from encpipe.rowgroups import RowGroups
from encpipe.torch.conversion import Conversion
from encpipe.torch.mapped import MapDataset, Rows

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on few cores

ROWS = 503
GROUP = 60


@pytest.fixture(scope="module")
def table() -> pa.Table:
    numbers = range(ROWS)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "half": pa.array([None if n % 5 == 0 else n / 2 for n in numbers]),
            "name": [f"name {n}" for n in numbers],
            "pair": pa.array([[n, -n] for n in numbers], pa.list_(pa.float32(), 2)),
            "list": [[n] * (n % 3) for n in numbers],
        }
    )


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> LoggedKms:
    folder = tmp_path_factory.mktemp("kms")
    for name in ("main", "pii"):
        (folder / f"{name}.key").write_bytes(os.urandom(32))
    return LoggedKms(folder)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, kms: LoggedKms, table: pa.Table) -> Scene:
    """Two files in row groups of 60 rows; the first file ends in one of 50."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "plain").mkdir()
    for number, part in enumerate((table.slice(0, 230), table.slice(230))):
        pq.write_table(part, folder / "plain" / f"{number}.parquet", row_group_size=GROUP)
    made = Scene(str(folder / "sealed"), kms)
    made.write(folder / "plain")
    return made


EVERY = pa.table(
    {
        "id": pa.array(range(2 * GROUP), pa.int32()),
        "flag": [n % 3 == 0 for n in range(2 * GROUP)],
        "name": pa.array([f"name {n % 7}" for n in range(2 * GROUP)]).dictionary_encode(),
        "pair": pa.array([[n, -n] for n in range(2 * GROUP)], pa.list_(pa.int64(), 2)),
        "wide": pa.array([[n] * 20 for n in range(2 * GROUP)], pa.list_(pa.int64(), 20)),
        "list": [[n] * (n % 3) for n in range(2 * GROUP)],
        "seen": pa.array([[n] * (n % 4) for n in range(2 * GROUP)], pa.list_view(pa.int16())),
        "blob": [b"%d" % n for n in range(2 * GROUP)],
        "view": pa.array([str(n) for n in range(2 * GROUP)], pa.string_view()),
    }
)
NO_VIEW = [name for name in EVERY.column_names if name != "view"]


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory, kms: LoggedKms) -> Scene:
    """Two row groups with columns of every kind."""
    folder = tmp_path_factory.mktemp("every")
    (folder / "plain").mkdir()
    pq.write_table(EVERY, folder / "plain" / "0.parquet", row_group_size=GROUP)
    made = Scene(str(folder / "sealed"), kms)
    made.write(folder / "plain")
    return made


@pytest.fixture
def mapped(scene: Scene) -> Iterator[MapDataset]:
    with MapDataset(scene.url, nulls="mask", **scene.access) as data:
        yield data


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read in this process, in order."""
    found: list[int] = []
    read = RowGroups.read

    def noting(self: RowGroups, index: int) -> pa.Table:
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(RowGroups, "read", noting)
    return found


def test_every_row_is_at_its_number(mapped: MapDataset, table: pa.Table) -> None:
    assert len(mapped) == ROWS
    for number in (0, 59, 60, 229, 230, 231, 289, 290, ROWS - 1, -1, -ROWS):
        sample, row = mapped[number], table.slice(number % ROWS, 1).to_pylist()[0]
        assert sample["id"].item() == row["id"]
        assert sample["half"].item() == (row["half"] or 0)
        assert sample["half_mask"].item() == (row["half"] is not None)
        assert sample["name"] == row["name"]
        assert sample["pair"].tolist() == row["pair"]
        assert sample["list"].tolist() == row["list"]


@pytest.mark.parametrize("number", [ROWS, -ROWS - 1, 10**9])
def test_a_number_beyond_the_rows_is_an_index_error(mapped: MapDataset, number: int) -> None:
    for ask in (lambda: mapped[number], lambda: mapped.batch([0, number])):
        with pytest.raises(IndexError, match=str(number)):
            ask()


def test_numbers_of_other_kinds_will_do_and_what_is_none_will_not(mapped: MapDataset) -> None:
    assert mapped[np.int32(7)]["id"] == mapped[torch.tensor(7)]["id"] == 7
    assert mapped.batch(torch.tensor([5, 3]))["id"].tolist() == [5, 3]
    with pytest.raises(TypeError):
        mapped[1.5]  # type: ignore[index] # the point


def test_a_batch_is_in_the_order_of_the_numbers(mapped: MapDataset, table: pa.Table) -> None:
    numbers = np.random.default_rng(0).integers(-ROWS, ROWS, 200).tolist()
    expected = table.take(pa.array([n % ROWS for n in numbers]))
    batch = mapped.batch(numbers)
    assert batch["id"].tolist() == expected["id"].to_pylist()
    assert batch["name"] == expected["name"].to_pylist()
    assert batch["list"].tolist() == expected["list"].combine_chunks().flatten().to_pylist()
    assert batch["half_mask"].tolist() == expected["half"].is_valid().to_pylist()
    rows = mapped.__getitems__(numbers)
    assert len(rows) == 200
    assert [row["id"].item() for row in rows] == expected["id"].to_pylist()
    assert [row["id"].item() for row in rows[3:5]] == expected["id"].to_pylist()[3:5]


ASKED = {
    "one": [3],
    "some twice": [GROUP + 7, 2, 2, GROUP + 7],
    "whole": range(GROUP),
    "shuffled": np.random.default_rng(0).permutation(2 * GROUP).tolist(),
}


@pytest.mark.parametrize("columns", [NO_VIEW, None], ids=["what Arrow takes", "with a view"])
@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("numbers", ASKED.values(), ids=ASKED)
def test_few_and_many_rows_of_every_kind_are_those_of_the_table(
    every: Scene, numbers: list[int], chunks: int, columns: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = RowGroups.read

    def chunked(self: RowGroups, index: int) -> pa.Table:
        parts = [
            read(self, index).slice(start, GROUP // chunks) for start in range(0, GROUP, GROUP // chunks)
        ]
        return pa.concat_tables(parts)

    monkeypatch.setattr(RowGroups, "read", chunked)
    expected = EVERY.select(columns or EVERY.column_names).to_pylist()
    with MapDataset(every.url, columns, **every.access) as data:
        found = [
            {
                name: value.tolist() if isinstance(value, torch.Tensor) else value
                for name, value in row.items()
            }
            for row in data.__getitems__(numbers)
        ]
    assert found == [expected[number] for number in numbers]


@pytest.mark.parametrize("columns", [NO_VIEW, None], ids=["what Arrow takes", "with a view"])
@pytest.mark.parametrize("rows", [1, GROUP])
def test_writing_into_tensors_does_no_harm_to_what_is_kept(
    every: Scene, rows: int, columns: list[str] | None
) -> None:
    with MapDataset(every.url, columns, stack={"x": ["pair", "id"]}, **every.access) as data:
        for _ in range(2):
            batch = data.batch(range(rows))
            assert batch["x"][:, 0].tolist() == list(range(rows))
            assert batch["wide"][:, -1].tolist() == list(range(rows))
            assert batch["flag"].tolist() == [n % 3 == 0 for n in range(rows)]
            assert batch["list"].tolist() == [n for n in range(rows) for _ in range(n % 3)]
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.fill_(1)


def test_no_numbers_make_an_empty_batch(mapped: MapDataset) -> None:
    batch = mapped.batch([])
    assert (len(batch["id"]), batch["name"], batch["list_offsets"].tolist()) == (0, [], [0])
    assert list(mapped.__getitems__([])) == []


def test_each_row_group_is_read_once_for_a_batch_and_the_last_is_kept(
    mapped: MapDataset, reads: list[int]
) -> None:
    mapped.batch([0, 500, 1, 499, 100, 2])
    assert sorted(reads) == [0, 1, 8]
    last = reads[-1]
    reads.clear()
    for number in range(last * GROUP - 10, last * GROUP - 5):  # the first file's last row group is shorter
        mapped[number]
    assert reads == []
    mapped.batch([0, 499, 500])
    assert reads == [0]


def test_each_thread_keeps_one_row_group_and_frees_it_for_the_next(
    mapped: MapDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    tables: list[weakref.ref[pa.Table]] = []
    read = RowGroups.read

    def alive() -> int:
        return sum(table() is not None for table in tables)

    def noting(self: RowGroups, index: int) -> pa.Table:
        assert alive() == (1 if threading.current_thread() is other else 0), "what the first thread keeps"
        reads.append(index)
        tables.append(weakref.ref(table := read(self, index)))
        return table

    other = threading.Thread(target=lambda: [mapped[70], mapped[71]])
    monkeypatch.setattr(RowGroups, "read", noting)
    mapped[0]
    other.start()
    other.join()
    mapped[1]
    assert reads == [0, 1]
    for number in (70, 140, 200, 240, 300):
        mapped[number]
    assert alive() == 1
    mapped.close()
    assert alive() == 0


def test_a_forked_child_does_not_wait_for_what_the_parent_was_doing(mapped: MapDataset) -> None:
    mapped[0]
    with mapped._reading.get().source._lock:
        child = multiprocessing.get_context("fork").Process(target=mapped.batch, args=([0, 300],))
        child.start()
        child.join(20)
    assert child.exitcode == 0


def test_columns_stacks_and_choices_are_those_of_the_loader(scene: Scene) -> None:
    columns = ["id", "pair", "list"]
    with MapDataset(
        scene.url, columns, stack={"x": ["pair", "id"]}, conversion=Conversion(lists="pad"), **scene.access
    ) as data:
        assert list(data[5]) == ["list", "x"]
        assert data[5]["x"].tolist() == [5, -5, 5]
        batch = data.batch([4, 5])
        assert batch["list"].tolist() == [[4, 0], [5, 5]]
        assert batch["list_lengths"].tolist() == [1, 2]


def test_rules_for_nulls_are_by_name(scene: Scene) -> None:
    with MapDataset(scene.url, ["id", "half"], nulls={"half": -1}, **scene.access) as data:
        assert data.batch([4, 5])["half"].tolist() == [2, -1]
    with pytest.raises(ConfigError, match="'name'"):
        MapDataset(scene.url, ["id", "half"], nulls={"name": "mask"}, **scene.access)


def loading(data: MapDataset, **options: Any) -> DataLoader[Any]:
    sampler = BatchSampler(
        RandomSampler(data, generator=torch.Generator().manual_seed(3)), 100, drop_last=False
    )
    return DataLoader(data, batch_sampler=sampler, **options)


def test_the_stock_collate_function_works_for_numbers(scene: Scene) -> None:
    with MapDataset(scene.url, ["id", "pair"], **scene.access) as data:
        batches = list(loading(data))
    assert [len(batch["id"]) for batch in batches] == [100] * 5 + [3]
    found = torch.cat([batch["id"] for batch in batches])
    assert sorted(found.tolist()) == list(range(ROWS))
    assert torch.equal(torch.cat([batch["pair"] for batch in batches])[:, 0], found.float())


def test_collate_gives_the_batch_without_making_samples(
    mapped: MapDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Rows) -> None:
        raise AssertionError

    monkeypatch.setattr(Rows, "_made", never)
    batches = list(loading(mapped, collate_fn=mapped.collate))
    assert sum(len(batch["name"]) for batch in batches) == ROWS
    assert all(batch["list_offsets"][-1] == len(batch["list"]) for batch in batches)


def test_a_subset_can_be_collated_and_anything_else_is_refused(mapped: MapDataset) -> None:
    part, _ = random_split(mapped, [100, ROWS - 100], torch.Generator().manual_seed(0))
    (batch,) = DataLoader(part, batch_size=100, collate_fn=mapped.collate)
    assert sorted(batch["id"].tolist()) == sorted(part.indices)
    with pytest.raises(ConfigError, match="list"):
        mapped.collate([mapped[0]])  # type: ignore[arg-type] # the point


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_every_row_once(scene: Scene, kms: LoggedKms, method: str) -> None:
    with MapDataset(scene.url, ["id", "name"], **scene.access) as data:
        data[0]  # a row group is kept, and files are open, when workers are forked
        before = kms.calls()
        loader = loading(data, num_workers=2, multiprocessing_context=method, collate_fn=data.collate)
        batches = list(loader)
        assert data[1]["id"] == 1
    assert sorted(row for batch in batches for row in batch["id"].tolist()) == list(range(ROWS))
    assert all(
        name == f"name {row}"
        for batch in batches
        for row, name in zip(batch["id"].tolist(), batch["name"], strict=True)
    )
    called = kms.calls() - before
    assert max(called.values(), default=0) <= (0 if method == "fork" else 2), "once for each worker"


def test_a_pickle_has_no_key_and_no_row(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = []
    opened = keyclients.UnwrappingClient._open

    def noted(*args: Any) -> bytes:
        secrets.append(dek := opened(*args))
        return dek

    monkeypatch.setattr(keyclients.UnwrappingClient, "_open", noted)
    with (
        encpipe.open_dataset(scene.url, **scene.access) as dataset,
        MapDataset(dataset, nulls="mask") as data,
    ):
        data.batch([0, 100, 500])
        keys = dataset._state.keys
        secrets += [keys.kek(kek.id).reveal() for kek in dataset._state.view.core.keks]
        pickled = pickle.dumps(data)
    assert len(set(secrets)) >= 2 + 2 * 2, "two KEKs, and for each file the DEKs of footer and columns"
    assert not [part for secret in secrets for part in spellings(secret) if part in pickled]
    assert b"name 100" not in pickled
    with pickle.loads(pickled) as copy:
        assert copy[100]["name"] == "name 100"
        assert len(copy) == ROWS


def test_a_given_dataset_stays_open(scene: Scene) -> None:
    with encpipe.open_dataset(scene.url, **scene.access) as dataset:
        with MapDataset(dataset, ["id"]) as data:
            assert data[4]["id"] == 4
        data.close()
        assert dataset.head(1)["id"].to_pylist() == [0]


def test_settings_that_make_no_sense_are_refused(scene: Scene) -> None:
    with pytest.raises(TypeError, match="batch_size"):
        MapDataset(scene.url, batch_size=3, **scene.access)
    with pytest.raises(ConfigError, match="'idd'"):
        MapDataset(scene.url, stack={"x": ["idd"]}, **scene.access)
