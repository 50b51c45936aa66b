"""Row groups read by number: in any order, from any thread, through few open files, and counted for less."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scene import Scene, ids, save

from encpipe import IntegrityError, KeyAccessDeniedError, Policy, fragments
from encpipe.kms.registry import MasterKeys
from encpipe.parquet import Handle, SealedFile
from encpipe.rowgroups import MAX_OPEN_FILES, RowGroups
from encpipe.testing import FaultyKms

GROUP = 100
FILES = 4
TOTAL = FILES * 3 * GROUP
POLICY = Policy(columns={"pii": ("name", "s.secret")})


def rows_from(first: int) -> pa.Table:
    """Three row groups: ids from `first`, names, a nullable value, a struct."""
    numbers = range(first, first + 3 * GROUP)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "name": [f"n{i}" for i in numbers],
            "value": pa.array([None if i % 7 == 0 else i / 2 for i in numbers], pa.float64()),
            "s": [{"open": i, "secret": f"s{i}"} for i in numbers],
        }
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Four files of three row groups: ids 0 to 1,199; partition `part` is 0, 1, 2 and null."""
    folder = tmp_path_factory.mktemp("row-groups")
    for n, part in enumerate(["0", "1", "2", "__HIVE_DEFAULT_PARTITION__"]):
        save(folder / "tree" / f"part={part}", rows_from(3 * GROUP * n), row_group=GROUP)
    made = Scene(str(folder / "dataset"))
    made.write(folder / "tree", policy=POLICY)
    return made


@pytest.fixture
def copy(scene: Scene, tmp_path: Path) -> Scene:
    shutil.copytree(scene.url, tmp_path / "copy")
    return scene.at(str(tmp_path / "copy"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """100 files of two row groups of two rows."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "source").mkdir()
    for n in range(100):
        table = pa.table({"id": pa.array(range(4 * n, 4 * n + 4), pa.int64())})
        pq.write_table(table, folder / "source" / f"{n:03}.parquet", row_group_size=2)
    made = Scene(str(folder / "dataset"))
    made.write(folder / "source", policy=Policy())
    return made


def open_files(scene: Scene) -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return [link for link in links if link.startswith(scene.url)]


class Calls:
    """Files opened, leaves read, files whose statistics were looked at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.leaves: list[tuple[str, ...]] = []
        self.judged: list[str] = []
        opened, read, surviving = SealedFile.open, Handle.read, fragments.surviving

        def opening(file: SealedFile, **more: Any) -> Handle:
            self.opened.append(file.entry.path)
            return opened(file, **more)

        def reading(handle: Handle, row_group: int, leaves: Any) -> pa.Table:
            self.leaves.append(tuple(leaves))
            return read(handle, row_group, leaves)

        def judging(file: SealedFile, *args: Any, **more: Any) -> Any:
            self.judged.append(file.entry.path)
            return surviving(file, *args, **more)

        patch.setattr(SealedFile, "open", opening)
        patch.setattr(Handle, "read", reading)
        patch.setattr(fragments, "surviving", judging)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


# What they hold


def test_together_they_are_the_dataset(scene: Scene) -> None:
    with scene.open() as dataset, dataset.scan().row_groups() as groups:
        assert len(groups) == FILES * 3
        assert list(groups.rows) == [GROUP] * (FILES * 3)
        assert not groups.filtered
        assert [sum(groups.sizes[3 * n : 3 * n + 3]) for n in range(FILES)] == pytest.approx(
            [entry.size for entry in dataset.files], abs=3
        )
        tables = [groups.read(index) for index in range(len(groups))]
        assert all(table.schema.equals(groups.schema, check_metadata=True) for table in tables)
        assert pa.concat_tables(tables).equals(dataset.to_table())


def test_columns_come_in_the_order_they_were_asked_for(scene: Scene) -> None:
    with scene.open() as dataset, dataset.scan(["part", "value", "s.open"]).row_groups() as groups:
        table = groups.read(5)
        assert table.schema.names == groups.schema.names == ["part", "value", "s"]
        assert table.equals(dataset.to_table(["part", "value", "s.open"]).slice(5 * GROUP, GROUP))


def test_partition_values_alone_need_no_file(scene: Scene, calls: Calls) -> None:
    with scene.open() as dataset, dataset.scan(["part"]).row_groups() as groups:
        assert groups.read(4)["part"].to_pylist() == [1] * GROUP
        assert groups.read(11)["part"].to_pylist() == [None] * GROUP
        assert groups.read(0).num_rows == GROUP
    assert calls.opened == []


@pytest.mark.parametrize("index", [-1, FILES * 3, 10**9])
def test_a_number_that_is_none_is_refused(scene: Scene, index: int) -> None:
    with scene.open() as dataset, dataset.scan(["id"], [("id", ">", 5)]).row_groups() as groups:
        for ask in (groups.read, groups.count):
            with pytest.raises(IndexError):
                ask(index)


def test_a_dataset_without_rows_has_no_row_groups_to_read(tmp_path: Path) -> None:
    here = Scene(str(tmp_path / "dataset"))
    here.write(rows_from(0).slice(0, 0), policy=Policy())
    with here.open() as dataset, dataset.scan().row_groups() as groups:
        assert sum(groups.rows) == 0
        assert [groups.read(n).num_rows for n in range(len(groups))] == [0] * len(groups)


# Threads


def test_any_thread_reads_any_row_group_in_any_order(scene: Scene) -> None:
    with scene.open() as dataset, dataset.scan().row_groups() as groups, ThreadPoolExecutor(8) as pool:
        whole = dataset.to_table()
        order = list(range(len(groups))) * 8
        random.Random(0).shuffle(order)
        for index, table in zip(order, pool.map(groups.read, order), strict=True):
            assert table.equals(whole.slice(index * GROUP, GROUP))
        assert dataset.kms_calls == 2
        assert 1 <= len(open_files(scene)) <= 8 * FILES
    assert open_files(scene) == []


def test_two_threads_in_one_file_have_a_handle_each(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)
    read, used = Handle.read, []

    def meeting(handle: Handle, *args: Any) -> pa.Table:
        used.append(handle)
        both.wait()
        return read(handle, *args)

    with scene.open() as dataset, dataset.scan(["id"]).row_groups() as groups, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(Handle, "read", meeting)
        assert [ids(table)[0] for table in pool.map(groups.read, [3, 4])] == [300, 400]
        assert len(set(used)) == 2
        assert [ids(table)[0] for table in pool.map(groups.read, [5, 3])] == [500, 300]
        assert len(set(used)) == 2, "given back and lent again"
        assert len(open_files(scene)) == 2


def test_reading_in_turn_opens_a_file_once(scene: Scene, calls: Calls) -> None:
    with scene.open() as dataset, dataset.scan(["id"]).row_groups() as groups:
        for index in (0, 11, 1, 10, 2, 9, 0):
            assert ids(groups.read(index))[0] == index * GROUP
        assert Counter(calls.opened) == {dataset.files[0].path: 1, dataset.files[3].path: 1}


# Open files


def test_few_files_stay_open(many: Scene) -> None:
    with many.open() as dataset, dataset.scan().row_groups() as groups, ThreadPoolExecutor(4) as pool:
        assert len(dataset.files) > MAX_OPEN_FILES
        order = list(range(len(groups)))
        random.Random(0).shuffle(order)
        open_now = pool.map(lambda n: (groups.read(n), len(open_files(many)))[1], order)
        assert max(open_now) <= MAX_OPEN_FILES + 4, "4: the listing is not of one moment"
        assert len(open_files(many)) == MAX_OPEN_FILES
        for n in range(len(groups)):
            groups.read(n)
            assert len(open_files(many)) == MAX_OPEN_FILES
    assert open_files(many) == []


def test_the_file_that_was_read_longest_ago_is_closed(many: Scene, calls: Calls) -> None:
    with many.open() as dataset:
        plan = dataset.scan()._plan
        with RowGroups(plan, open_files=3) as groups:
            for file in (0, 1, 2, 0, 3):
                groups.read(2 * file)
            assert set(open_files(many)) == {str(many.folder / plan.files[n].path) for n in (0, 2, 3)}
            assert len(calls.opened) == 4
            groups.read(1)
            assert len(calls.opened) == 4
            groups.read(2)
            assert len(calls.opened) == 5


def test_more_threads_than_open_files_still_read(many: Scene) -> None:
    with many.open() as dataset:
        groups = RowGroups(dataset.scan()._plan, open_files=1)
        with groups, ThreadPoolExecutor(4) as pool:
            found = [n for table in pool.map(groups.read, range(len(groups))) for n in ids(table)]
            assert found == list(range(400))
            assert len(open_files(many)) <= 1
    assert open_files(many) == []


def test_row_groups_forgotten_unclosed_close_themselves(scene: Scene) -> None:
    groups = scene.open().scan(["id"]).row_groups()
    groups.read(0)
    assert len(open_files(scene)) == 1
    del groups
    gc.collect()
    assert open_files(scene) == []


def test_closing_amid_reads_lets_them_finish(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    read = Handle.read

    def slow(handle: Handle, *args: Any) -> pa.Table:
        reading.set()
        assert go_on.wait(30)
        return read(handle, *args)

    groups = scene.open().scan(["id"]).row_groups()
    groups.read(3)
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(Handle, "read", slow)
        under_way = pool.submit(groups.read, 0)
        assert reading.wait(30)
        groups.close()
        assert len(open_files(scene)) == 1, "the idle one is closed at once"
        groups.close()
        go_on.set()
        assert ids(under_way.result(30)) == list(range(GROUP))
    assert open_files(scene) == []
    with pytest.raises(ValueError, match="closed"):
        groups.read(0)
    assert open_files(scene) == []


def test_an_idle_handle_keeps_no_bytes_it_fetched(scene: Scene) -> None:
    """From remote storage PyArrow fetches whole column chunks ahead, and holds them until the next read."""
    with scene.open() as dataset:
        plan = dataset.scan()._plan
        remote = dataclasses.replace(
            plan, open_file=lambda entry: dataclasses.replace(plan.open_file(entry), pre_buffer=True)
        )
        with RowGroups(remote) as groups:
            assert ids(groups.read(0))[0] == 0
            before = pa.total_allocated_bytes()
            for index in range(0, len(groups), 3):
                groups.read(index)
            assert pa.total_allocated_bytes() - before < groups.sizes[0] // 2
            assert len(open_files(scene)) == FILES


# What goes wrong


def damage(copy: Scene) -> tuple[Path, bytes]:
    """A page of the third file changed; its path and the bytes it had."""
    entry = copy.open().files[2]
    path = copy.folder / entry.path
    good = path.read_bytes()
    bad = bytearray(good)
    bad[entry.size // 3] ^= 1
    path.write_bytes(bad)
    return path, good


def read_or_error(groups: RowGroups, index: int) -> pa.Table | IntegrityError:
    try:
        return groups.read(index)
    except IntegrityError as error:
        return error


def test_damage_is_told_to_whichever_thread_reads_it(copy: Scene) -> None:
    path, good = damage(copy)
    with copy.open() as dataset, dataset.scan().row_groups() as groups, ThreadPoolExecutor(4) as pool:
        order = list(range(len(groups))) * 4
        random.Random(1).shuffle(order)
        bad = set()
        for index, got in zip(order, pool.map(lambda n: read_or_error(groups, n), order), strict=True):
            if isinstance(got, IntegrityError):
                assert got.code == "file-damaged"
                assert path.name in got.message
                bad.add(index)
            else:
                assert ids(got)[0] == index * GROUP
        assert len(bad) == 1
        assert bad < set(groups.in_file(2))
        path.write_bytes(good)
        assert ids(groups.read(bad.pop()))


def test_a_handle_whose_read_failed_is_closed(copy: Scene) -> None:
    path, _ = damage(copy)
    with copy.open() as dataset, dataset.scan().row_groups() as groups:
        for index in groups.in_file(2):
            if isinstance(read_or_error(groups, index), IntegrityError):
                break
        else:
            pytest.fail("no row group was damaged")
        assert str(path) not in open_files(copy)
        groups.read(0)
        assert len(open_files(copy)) == 1


def test_a_file_that_is_gone_or_foreign_leaves_nothing_open(copy: Scene) -> None:
    with copy.open() as dataset, dataset.scan().row_groups() as groups:
        gone, swapped, other = (copy.folder / entry.path for entry in dataset.files[:3])
        gone.unlink()
        shutil.copy(other, swapped)
        for index in (0, 3, 0, 3):
            with pytest.raises(IntegrityError):
                groups.read(index)
        assert open_files(copy) == []
        assert ids(groups.read(6))[0] == 600


def test_a_key_that_is_refused_later_stops_open_files_too(scene: Scene) -> None:
    """With `max_key_age`: the handle holds the DEKs, and is not to outlive the right to them."""
    kms = FaultyKms(scene.kms)
    dataset = scene.open(master_keys=MasterKeys(scene.config, extra={"memory": kms}), max_key_age=0.0)
    with dataset, dataset.scan(["name"]).row_groups() as named, dataset.scan(["id"]).row_groups() as plain:
        named.read(0)
        plain.read(0)
        kms.fail("denied", "memory:pii")
        with pytest.raises(KeyAccessDeniedError):
            named.read(0)
        assert ids(plain.read(0))[0] == 0
        kms.fail("denied", "memory:main")
        with pytest.raises(KeyAccessDeniedError):
            plain.read(0)


# Filters and counts


FILTERS: list[Any] = [
    pc.field("id") == 321,
    pc.field("id") < 0,
    (pc.field("id") >= 250) & (pc.field("id") < 950) & (pc.field("value") > 200),
    pc.field("value").is_null(),
    pc.field("part") == 1,
    pc.field("part") > 0,
    pc.field("part").is_null(),
    (pc.field("part") == 1) | (pc.field("id") < 20),
    (pc.field("part") == 2) & (pc.field("id") > 880),
    pc.field("part").is_null() & ~(pc.field("value") > 500),
    pc.field("s", "open") == 777,
    [("id", "in", [5, 1105])],
    pc.scalar(True),
]


@pytest.mark.parametrize("filter", FILTERS, ids=str)
@pytest.mark.parametrize("columns", [None, ["value"], ["part", "id"]], ids=str)
def test_filter_and_count_agree_with_the_whole_table(
    scene: Scene, filter: Any, columns: list[str] | None
) -> None:
    with scene.open() as dataset, dataset.scan(columns, filter).row_groups() as groups:
        assert groups.filtered
        expected = dataset.to_table(columns, filter)
        tables = [groups.read(index) for index in range(len(groups))]
        counts = [groups.count(index) for index in range(len(groups))]
        assert counts == [table.num_rows for table in tables]
        assert sum(counts) == expected.num_rows == dataset.count_rows(filter)
        assert pa.concat_tables([groups.schema.empty_table(), *tables]).equals(expected)


def test_no_columns_still_have_rows(scene: Scene) -> None:
    with scene.open() as dataset, dataset.scan([], pc.field("id") >= 1150).row_groups() as groups:
        assert groups.read(11).num_rows == groups.count(11) == 50
        assert groups.read(11).num_columns == 0


@pytest.mark.parametrize("outcome", ["null", "skip"])
def test_filter_and_count_where_a_key_is_missing(scene: Scene, outcome: Any) -> None:
    with scene.knowing("footer").open(on_missing_key=outcome) as dataset:
        for filter in (pc.field("id") >= 1000, (pc.field("part") == 1) & (pc.field("value") < 200)):
            expected = dataset.to_table(filter=filter)
            assert expected.num_rows
            assert ("name" in expected.schema.names) == (outcome == "null")
            with dataset.scan(filter=filter).row_groups() as groups:
                tables = [groups.read(index) for index in range(len(groups))]
                assert pa.concat_tables(tables).equals(expected)
                assert groups.schema.equals(dataset.schema, check_metadata=True)
                assert [groups.count(n) for n in range(len(groups))] == [t.num_rows for t in tables]


def test_counting_reads_the_filters_columns_only(scene: Scene, calls: Calls) -> None:
    with scene.open() as dataset:
        with dataset.scan().row_groups() as groups:
            assert [groups.count(n) for n in range(len(groups))] == list(groups.rows)
        with dataset.scan(filter=pc.field("part") == 1).row_groups() as groups:
            assert sum(groups.count(n) for n in range(len(groups))) == 3 * GROUP
        assert calls.opened == []
        with dataset.scan(filter=pc.field("id") >= 1150).row_groups() as groups:
            assert [groups.count(n) for n in range(len(groups))] == [0] * 11 + [50]
        assert calls.leaves == [("id",)], "what the statistics rule out is not read"
        assert dataset.scan(filter=pc.field("id") >= 1150).count_rows() == 50
        assert calls.leaves == [("id",)] * 2


def test_many_threads_count_and_look_at_a_files_statistics_once(scene: Scene, calls: Calls) -> None:
    with scene.open() as dataset, dataset.scan(["name"], pc.field("id") > 555).row_groups() as groups:
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(groups.count, range(len(groups))))
        assert sum(counts) == TOTAL - 556
        assert sorted(calls.judged) == sorted(entry.path for entry in dataset.files)


def test_counting_tells_of_damage(copy: Scene) -> None:
    with copy.open() as dataset:
        (copy.folder / dataset.files[1].path).unlink()
        with dataset.scan(filter=pc.field("id") > 5).row_groups() as groups, ThreadPoolExecutor(4) as pool:
            under_way = [pool.submit(groups.count, n) for n in range(len(groups))]
            for index in groups.in_file(1):
                with pytest.raises(IntegrityError, match="missing"):
                    under_way[index].result()
            assert under_way[11].result() == GROUP


def test_a_scan_closes_files_as_it_goes(many: Scene) -> None:
    def counted(dataset: Any) -> Iterator[int]:
        for _ in dataset.scan(threads=2):
            yield len(open_files(many))

    with many.open() as dataset:
        assert max(counted(dataset)) <= 2
    assert open_files(many) == []
