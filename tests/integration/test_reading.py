"""A scan fetches, asks for and decrypts what it needs and no more, and leaves no thread or file behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import steps
from scene import Scene, ended, forked, ids, people, save

from encpipe import (
    ConfigError,
    EncpipeError,
    IntegrityError,
    KeyAccessDeniedError,
    KmsUnavailableError,
    Policy,
    StaleDatasetError,
    UntrustedKeyError,
)
from encpipe.kms.registry import MasterKeys
from encpipe.parquet import Handle, keyclients
from encpipe.projection import MISSING_KEY_MARK
from encpipe.testing import FaultyKms

WIDE = 20
GROUP = 1000
POLICY = Policy(columns={"pii": ("name", "s.secret")}, plaintext_partitions=("part",))


def wide(first: int) -> pa.Table:
    """3,000 rows: ids from `first` on, `name`, a struct of two leaves, 20 columns of noise."""
    rows = range(first, first + 3 * GROUP)
    columns: dict[str, Any] = {"id": pa.array(rows, pa.int64()), "name": [f"n{i}" for i in rows]}
    columns["s"] = pa.array([{"open": i, "secret": f"s{i}"} for i in rows])
    noise = {f"c{n}": pa.array(memoryview(os.urandom(24 * GROUP)).cast("q")) for n in range(WIDE)}
    return pa.table({**columns, **noise})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Four files of three row groups: ids 0 to 11,999; partitions `part` 0 and 1, two files each."""
    folder = tmp_path_factory.mktemp("reading")
    for n in range(4):
        save(folder / "tree" / f"part={n // 2}" / f"f={n}", wide(3 * GROUP * n), row_group=GROUP)
    made = Scene(str(folder / "dataset"))
    made.write(folder / "tree", policy=POLICY)
    return made


class Reads:
    """What readers do: row groups read, leaves whose DEK was unwrapped, bytes fetched."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.row_groups: list[tuple[str, int]] = []
        self.deks: set[str] = set()
        self.files: set[str] = set()
        read, opened, unwrap = Handle.read, Handle.__init__, keyclients.UnwrappingClient._unwrap

        def reading(handle: Handle, row_group: int, *args: Any, **more: Any) -> pa.Table:
            self.row_groups.append((handle._file.entry.path, row_group))
            return read(handle, row_group, *args, **more)

        def opening(handle: Handle, file: Any, *args: Any) -> None:
            self.files.add(file.entry.path)
            opened(handle, file, *args)

        def unwrapping(client: Any, wrapped: str, key_id: str) -> bytes:
            dek = unwrap(client, wrapped, key_id)
            self.deks.add(client._leaf_of.get(wrapped, "(footer)"))
            return dek

        patch.setattr(Handle, "read", reading)
        patch.setattr(Handle, "__init__", opening)
        patch.setattr(keyclients.UnwrappingClient, "_unwrap", unwrapping)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


# Only what is asked for


def test_only_the_columns_asked_for_are_decrypted(scene: Scene, reads: Reads) -> None:
    with scene.open() as dataset:
        assert dataset.kms_calls == 1
        dataset.to_table(["c7", "s.open", "part"])
        assert reads.deks == {"(footer)", "c7", "s.open"}
        assert dataset.kms_calls == 1, "no key of a column that was not asked for"
        table = dataset.to_table(["name"])
        assert reads.deks == {"(footer)", "c7", "s.open", "name"}
        assert dataset.kms_calls == 2
        assert table.num_rows == 12 * GROUP
        dataset.to_table()
        assert dataset.kms_calls == 2
    assert scene.open().to_table(["s.open"]).schema.field("s").type == pa.struct({"open": pa.int64()})


def test_only_the_bytes_of_a_column_are_fetched(scene: Scene, tmp_path: Path) -> None:
    """Counted by the kernel, in a process of its own: bytes that read calls returned."""
    footers = 0
    for entry in scene.open().files:
        with (scene.folder / entry.path).open("rb") as file:
            file.seek(-8, os.SEEK_END)
            footers += int.from_bytes(file.read(4), "little") + (64 << 10)  # Arrow fetches 64 KiB first

    def fetched(columns: list[str]) -> int:
        def action() -> None:
            with scene.open() as dataset:
                scan = dataset.scan(columns, threads=1)  # each thread reads the footer
                before = rchar()
                assert scan.to_table().num_rows == 12 * GROUP
                (tmp_path / "bytes").write_text(str(rchar() - before))

        assert ended(forked(action)) == 0
        return int((tmp_path / "bytes").read_text())

    one, two = fetched(["c0"]), fetched(["c0", "c1"])
    column = 12 * GROUP * 8
    assert column <= two - one <= 1.1 * column
    assert one < 1.1 * column + footers
    assert fetched(["part"]) < 200, "partition values stand in the file list"


def rchar() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def test_counts_and_heads_read_little(scene: Scene, reads: Reads) -> None:
    with scene.open() as dataset:
        assert dataset.num_rows == dataset.count_rows() == 12 * GROUP
        assert reads.files == set()
        assert dataset.count_rows([("part", "=", 1)]) == 6 * GROUP
        assert reads.row_groups == []
        assert ids(dataset.head(3, ["id"])) == [0, 1, 2]
        assert len(reads.row_groups) <= 4
        assert dataset.head(0).num_rows == 0
        assert dataset.head(10**9, ["id"]).num_rows == 12 * GROUP
        assert dataset.count_rows([("id", "<", 1500)]) == 1500


# Filters


@pytest.mark.parametrize(
    ("filter", "expected", "groups"),
    [
        (pc.field("id") == 4321, [4321], 1),
        (pc.field("id") >= 11_500, [*range(11_500, 12_000)], 1),
        (pc.field("id") < 0, [], 0),
        ((pc.field("part") == 1) & (pc.field("id") < 6001), [6000], 1),
        ((pc.field("part") == 0) & (pc.field("id") > 6001), [], 0),
        ((pc.field("f") == 3) & (pc.field("id") == 9_999), [9_999], 1),
        ((pc.field("id") == 5) | (pc.field("id") == 7005), [5, 7005], 2),
        ([("id", "in", [5, 6])], [5, 6], 1),
        ([[("id", "=", 5)], [("part", "=", 1), ("id", "=", 6005)]], [5, 6005], 2),
        (pc.field("s", "open") == 2999, [2999], 12),
        (pc.field("name") == "n77", [77], None),
    ],
)
def test_row_groups_that_cannot_match_are_not_read(
    scene: Scene, reads: Reads, filter: Any, expected: list[int], groups: int | None
) -> None:
    table = scene.open().to_table(["id", "c3"], filter)
    assert ids(table) == expected
    assert table.schema.names == ["id", "c3"], "columns of the filter alone are not in the result"
    if groups is not None:
        assert len(reads.row_groups) <= groups
    assert len(reads.row_groups) == len(set(reads.row_groups))


def test_files_of_other_partitions_are_not_opened(scene: Scene, reads: Reads) -> None:
    with scene.open() as dataset:
        assert dataset.to_table(["id"], [("part", "=", 1)]).num_rows == 6 * GROUP
        assert reads.files == {entry.path for entry in dataset.files if entry.partition["part"] == "1"}
        assert len(reads.files) == 2


def test_a_filter_on_nulls_and_on_a_null_partition(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    for name in ("x", "__HIVE_DEFAULT_PARTITION__"):
        save(tmp_path / "tree" / f"p={name}", pa.table({"id": [1, None, 3]}))
    scene.write(tmp_path / "tree", policy=Policy())
    with scene.open() as dataset:
        assert dataset.to_table(filter=pc.field("p").is_null())["p"].to_pylist() == [None] * 3
        assert dataset.to_table(filter=pc.field("id").is_null() & pc.field("p").is_valid()).to_pylist() == [
            {"id": None, "p": "x"}
        ]
        assert dataset.count_rows(pc.field("p") == "x") == 3
        assert dataset.count_rows(pc.field("id") > 0) == 4


@pytest.mark.parametrize(
    "ask",
    [
        {"columns": ["nope"]},
        {"columns": ["id", "id"]},
        {"columns": ["s.nope"]},
        {"filter": [("nope", "=", 1)]},
        {"filter": [("id", "=", "text")]},
        {"filter": [("id", "~", 1)]},
        {"filter": pc.field("id") + 1},
        {"filter": "id = 1"},
    ],
)
def test_what_the_dataset_does_not_have_is_refused(scene: Scene, reads: Reads, ask: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        scene.open().scan(**ask)
    assert refused.value.code == "filter"
    assert reads.files == set()


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("id", "columns is a list of names, and this is a string"),
        (b"id", "columns is a list of names"),
        (["name", "id", "c1", "id"], "column 'id' is selected twice"),
    ],
    ids=str,
)
def test_a_selection_of_columns_that_is_none_says_why(scene: Scene, columns: Any, told: str) -> None:
    with scene.open() as dataset:
        for read in (
            dataset.scan,
            dataset.to_table,
            partial(dataset.to_pyarrow, trust_storage_after_the_check=True),
        ):
            with pytest.raises(ConfigError, match=told) as refused:
                read(columns)
            assert refused.value.code == "filter"
            assert refused.value.hint


def test_no_columns_still_have_rows(scene: Scene, reads: Reads) -> None:
    with scene.open() as dataset:
        assert dataset.to_table([]).num_rows == dataset.num_rows == 12 * GROUP
        assert dataset.to_table([], pc.field("id") < 1500).num_rows == 1500
        assert dataset.to_table([], pc.field("id") < 0).shape == (0, 0)
        assert dataset.to_table([]).schema.equals(dataset.scan([]).schema, check_metadata=True)
        assert dataset.head(7, columns=[]).shape == (7, 0)
        assert dataset.head(7, columns=["id"]).shape == (7, 1)
        assert sum(batch.num_rows for batch in dataset.scan([])) == 12 * GROUP


# Keys one does not have


def test_a_missing_key_is_an_error_when_it_is_needed(scene: Scene, reads: Reads) -> None:
    with scene.knowing("footer").open() as dataset:
        assert dataset.to_table(["id", "s.open"]).num_rows == 12 * GROUP
        for ask in ({}, {"columns": ["name"]}, {"columns": ["s"]}, {"filter": [("name", "=", "n1")]}):
            with pytest.raises(UntrustedKeyError):
                dataset.scan(**ask)
        assert dataset.missing_keys == ()
    assert "name" not in reads.deks


def test_columns_of_a_missing_key_are_skipped(scene: Scene, reads: Reads) -> None:
    with scene.knowing("footer").open(on_missing_key="skip") as dataset:
        assert dataset.missing_keys == ("pii",)
        assert "name" not in dataset.schema.names
        assert dataset.schema.field("s").type == pa.struct({"open": pa.int64()})
        table = dataset.to_table()
        assert table.schema.equals(dataset.schema)
        assert dataset.to_pyarrow(trust_storage_after_the_check=True).to_table().schema.names == [
            name for name in dataset.schema.names if name != "s"
        ]
        assert table.num_rows == 12 * GROUP
    assert reads.deks.isdisjoint({"name", "s.secret"})


def test_columns_of_a_missing_key_are_null_and_marked(scene: Scene) -> None:
    with scene.knowing("footer").open(on_missing_key="null") as dataset:
        table = dataset.to_table(["id", "name"])
        assert table["name"].null_count == 12 * GROUP
        assert table.schema.field("name").metadata[MISSING_KEY_MARK] == b"pii"
        assert ids(table) == list(range(12 * GROUP))
        for refused in ({"filter": [("name", "=", "n1")]}, {"filter": pc.field("name").is_null()}):
            with pytest.raises(ConfigError) as caught:
                dataset.scan(["id"], **refused)
            assert caught.value.code == "filter"
            assert "pii" in caught.value.message


@pytest.mark.parametrize(
    ("fault", "error"), [("unavailable", KmsUnavailableError), ("damaged", IntegrityError), ("denied", None)]
)
def test_only_a_refusal_counts_as_a_missing_key(scene: Scene, fault: Any, error: Any) -> None:
    kms = FaultyKms(scene.kms)
    kms.fail(fault, "memory:pii")
    keys = MasterKeys(scene.config, extra={"memory": kms})
    if error is None:
        with scene.open(master_keys=keys, on_missing_key="skip") as dataset:
            assert dataset.missing_keys == ("pii",)
        with pytest.raises(KeyAccessDeniedError):
            scene.open(master_keys=keys).to_table()
        return
    with pytest.raises(error):
        scene.open(master_keys=keys, on_missing_key="skip")


def test_the_footer_key_is_never_optional(scene: Scene) -> None:
    for outcome in ("error", "skip", "null"):
        with pytest.raises(UntrustedKeyError):
            scene.knowing("pii").open(on_missing_key=outcome)


# Threads and files


_BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_earlier_tests() -> None:
    """Another test may still hold a scan that it never finished."""
    _BEFORE.clear()
    _BEFORE.update(threading.enumerate())


def scan_threads() -> list[str]:
    return [t.name for t in set(threading.enumerate()) - _BEFORE if t.name.startswith("encpipe")]


def open_files(scene: Scene) -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(fd.readlink()))
    return [link for link in links if link.startswith(scene.url)]


def broken_off(scene: Scene) -> Iterator[Any]:
    dataset = scene.open()
    yield lambda: dataset.to_table()
    yield lambda: dataset.head(2)
    yield lambda: dataset.count_rows([("id", ">", 5)])
    yield lambda: next(iter(dataset.scan()))
    yield lambda: next(dataset.scan(["id"], [("c1", ">", 0)], threads=5).tables()).num_rows
    yield lambda: dataset.scan().to_reader().read_next_batch()
    yield lambda: pl.from_arrow(dataset.scan(["id"]).to_reader())
    yield lambda: dataset.to_pyarrow(trust_storage_after_the_check=True).head(5)
    yield lambda: _break_off(dataset)
    yield lambda: dataset.scan()


def _break_off(dataset: Any) -> None:
    with contextlib.suppress(ZeroDivisionError):
        for _ in dataset.scan():
            raise ZeroDivisionError


@pytest.mark.parametrize("n", range(10))
def test_no_thread_or_file_outlives_a_scan(scene: Scene, n: int) -> None:
    before = len(open_files(scene))
    list(broken_off(scene))[n]()
    gc.collect()
    assert scan_threads() == []
    deadline = time.monotonic() + 30
    while len(open_files(scene)) > before and time.monotonic() < deadline:
        time.sleep(0.01)  # behind a PyArrow dataset Arrow's own threads read on for a moment
    assert len(open_files(scene)) == before


def damaged(scene: Scene, tmp_path: Path) -> Scene:
    """The same dataset with a page of the third file changed."""
    copy = scene.at(str(tmp_path / "copy"))
    shutil.copytree(scene.url, copy.url)
    entry = copy.open().files[2]
    path = copy.folder / entry.path
    data = bytearray(path.read_bytes())
    data[entry.size // 2] ^= 1
    path.write_bytes(data)
    return copy


def test_an_error_midway_ends_the_scan_cleanly(scene: Scene, tmp_path: Path) -> None:
    here = damaged(scene, tmp_path)
    rows: list[int] = []
    tables = here.open().scan().tables()
    with pytest.raises(IntegrityError) as caught:
        rows.extend(i for table in tables for i in ids(table))
    assert caught.value.code == "file-damaged"
    assert here.open().files[2].path in caught.value.message
    assert rows == list(range(len(rows)))
    assert len(rows) <= 9 * GROUP
    assert scan_threads() == []
    assert open_files(here) == []
    with pytest.raises((EncpipeError, pa.ArrowException), match="changed after it was written"):
        here.open().scan().to_reader().read_all()
    assert scan_threads() == []
    problems = here.verify().problems
    assert [problem.code for problem in problems] == ["file-hash"]
    assert here.verify(deep=False).problems == ()


def test_a_key_refused_midway_ends_the_scan_cleanly(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `max_key_age` a key is asked for again; a denial then stops the reader."""
    kms = FaultyKms(scene.kms)
    dataset = scene.open(master_keys=MasterKeys(scene.config, extra={"memory": kms}), max_key_age=0.0)
    tables = dataset.scan(["name"], threads=1).tables()
    next(tables)
    kms.fail("denied", "memory:pii")
    with pytest.raises(KeyAccessDeniedError):
        list(tables)
    assert scan_threads() == []


def test_many_threads_scan_one_dataset(scene: Scene) -> None:
    with scene.open() as dataset, ThreadPoolExecutor(8) as pool:
        expected = dataset.to_table(["id", "name", "c5"])

        def work(n: int) -> None:
            if n % 2:
                assert dataset.to_table(["id", "name", "c5"]).equals(expected)
            else:
                assert ids(dataset.to_table(["id"], [("id", ">", 11_990 - n)])) == list(
                    range(11_991 - n, 12_000)
                )

        list(pool.map(work, range(24)))
        assert dataset.kms_calls == 2
    assert scan_threads() == []


# Other generations


def test_a_reader_stays_with_its_generation(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.write(save(tmp_path / "source", people(), people(6)))
    with scene.open() as dataset:
        scan = dataset.scan(threads=1)
        tables = scan.tables()
        first = ids(next(tables))
        scene.append(people(50))
        scene.write(people(90), overwrite=True)
        assert [*first, *(i for table in tables for i in ids(table))] == list(range(12))
        assert ids(dataset.to_table()) == list(range(12))
        assert dataset.generation == 1
    assert ids(scene.table()) == list(range(90, 96))
    assert ids(scene.table(generation=2)) == [*range(12), *range(50, 56)]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.write(save(tmp_path / "source", people(), people(6)))
    dataset = scene.open()
    gone = dataset.files[1]
    (scene.folder / gone.path).unlink()
    with pytest.raises(IntegrityError) as caught:
        dataset.to_table()
    assert caught.value.code == "file-missing"
    assert gone.path in caught.value.message
    assert [problem.code for problem in scene.verify().problems] == ["file-missing"]


def test_a_list_replaced_between_two_reads_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.write(people())
    log = steps.install(monkeypatch)

    def gc_between(n: int, step: str) -> None:
        if step.startswith("read _encpipe/files-1-"):
            log.before = lambda n, step: None
            scene.write(people(30), overwrite=True)
            [old] = scene.folder.glob("_encpipe/files-1-*")
            old.unlink()

    log.before = gc_between
    assert ids(scene.table()) == list(range(30, 36))


def test_pins(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    first = scene.write(people())
    store = tmp_path / "pins.json"
    with scene.open(pin_store=store) as dataset:
        core = dataset.core_digest
    old = scene.at(str(tmp_path / "old"))
    shutil.copytree(scene.url, old.url)
    scene.append(people(6))
    scene.open(pin_store=store, min_generation=2, expect_dataset=first.dataset_id)
    for pin in (
        {"min_generation": 3},
        {"expect_dataset": "0" * 32},
        {"expect_core": core},
        {"min_revision": 3},
    ):
        with pytest.raises(StaleDatasetError):
            scene.open(**pin)
    shutil.rmtree(scene.url)
    shutil.move(old.url, scene.url)
    assert scene.open().generation == 1, "without a pin a full rollback goes unnoticed"
    with pytest.raises(StaleDatasetError):
        scene.open(pin_store=store)
    with pytest.raises(StaleDatasetError):
        scene.verify(min_generation=2)


# Other tools


def test_duckdb_pushes_down_into_the_pyarrow_dataset(scene: Scene) -> None:
    sealed = scene.open().to_pyarrow(trust_storage_after_the_check=True)
    connection = duckdb.connect().register("sealed", sealed)
    query = "select sum(id), count(*), min(name) from sealed where id between 4990 and 5009 and part = 0"
    assert connection.sql(query).fetchall() == [(99_990, 20, "n4990")]
    assert connection.sql("select part, count(*) from sealed group by part order by part").fetchall() == [
        (0, 6 * GROUP),
        (1, 6 * GROUP),
    ]
    assert sealed.count_rows(filter=pc.field("id") < 1500) == 1500
    assert sealed.to_table(columns=["name"], filter=pc.field("id") == 7).to_pydict() == {"name": ["n7"]}
    with pytest.raises(EncpipeError):
        scene.knowing("footer").open().to_pyarrow(trust_storage_after_the_check=True)


def test_streams_into_duckdb_polars_and_pandas(scene: Scene) -> None:
    with scene.open() as dataset:
        scan = dataset.scan(["id", "name"], [("id", "<", 3)])
        expected = [{"id": n, "name": f"n{n}"} for n in range(3)]
        assert pl.from_arrow(scan.to_reader()).to_dicts() == expected
        assert pl.DataFrame(scan).to_dicts() == expected, "a scan can be read again"
        assert pa.table(scan).to_pylist() == expected
        assert pd.DataFrame.from_arrow(scan).to_dict("records") == expected
        reader = dataset.scan(["id"]).to_reader()
        assert duckdb.connect().from_arrow(reader).sum("id").fetchall() == [(12_000 * 11_999 // 2,)]
        assert pa.RecordBatchReader.from_stream(dataset).schema.equals(dataset.schema)
        assert sum(batch.num_rows for batch in dataset.scan(["id"])) == 12 * GROUP


def test_reading_the_rows_a_plain_reader_reads(scene: Scene, tmp_path: Path) -> None:
    scene.decrypt(tmp_path / "plain")
    plain = pq.read_table(tmp_path / "plain").sort_by("id")
    sealed = scene.table()
    assert plain.drop(["part", "f"]).equals(sealed.drop(["part", "f"]))


# The end of a process

ENDINGS = {
    "after": "list(dataset.scan())",
    "midway": "rows = iter(dataset.scan()); next(rows)",
    "with a reader": "reader = dataset.scan().to_reader(); reader.read_next_batch()",
    "with a dataset": "sealed = dataset.to_pyarrow(trust_storage_after_the_check=True); sealed.head(1)",
    "with open row groups": "groups = dataset.scan().row_groups(); list(map(groups.read, range(9)))",
    "amid a filter": "tables = dataset.scan(['id'], [('id', '>', 5)]).tables(); next(tables)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_ends_with_a_scan_ends_well(scene: Scene, tmp_path: Path, ending: str) -> None:
    """PyArrow has been seen to abort at exit with a key client alive. Forked after import."""
    tests = Path(__file__).parent.parent
    program = f"""
import os, sys
sys.path.insert(0, {str(tests)!r})
from scene import Scene, ended, PII, people
import pyarrow.dataset
scene = Scene({str(tmp_path / "dataset")!r})
scene.write(people(0, 5000))
for _ in range(9):
    scene.append(people(0, 500), workers=1)
pids = []
for n in range(10):
    pid = os.fork()
    if pid == 0:
        dataset = scene.open()
        {ENDINGS[ending]}
        sys.exit(0)  # the whole way out: threads joined, atexit, modules torn down
    pids.append(pid)
    if len(pids) % 5 == 0:
        codes = [ended(pid) for pid in pids[-5:]]
        if any(codes):
            sys.exit(f"children ended with {{codes}}")
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            errors = process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the children, too
            raise
    assert (process.returncode, errors) == (0, "")
