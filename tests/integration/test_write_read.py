"""What goes in comes out: types, order, metadata, partitions; and what cannot go in changes nothing."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from scene import KEYS, PII, Scene, ids, on_s3, people, save
from servers.seaweed import Seaweed

from encpipe import Config, ConfigError, EncpipeError, Policy, PolicyError
from encpipe.config import TrustConfig
from encpipe.storage.local import LocalStorage

UTC = datetime.UTC
WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

ALL_TYPES: dict[str, pa.Array] = {
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "float16": pa.array([1.5, None, -0.0], pa.float16()),
    "float64": pa.array([float("inf"), 1e-300, None], pa.float64()),
    "bool": pa.array([True, None, False]),
    "date32": pa.array([datetime.date(1969, 12, 31), None, datetime.date(9999, 1, 1)]),
    "time64": pa.array([datetime.time(23, 59, 59, 999999), None, datetime.time(0)], pa.time64("us")),
    "timestamp_tz": pa.array([WHEN, None, WHEN], pa.timestamp("us", "Europe/Berlin")),
    "timestamp_ns": pa.array([1, None, -1], pa.timestamp("ns")),
    "timestamp_s": pa.array([1, None, -1], pa.timestamp("s")),
    "duration": pa.array([1, None, -1], pa.duration("ms")),
    "decimal": pa.array([decimal.Decimal("-12.345"), None, decimal.Decimal(7)], pa.decimal128(12, 3)),
    "decimal256": pa.array([decimal.Decimal(10) ** 40, None, None], pa.decimal256(50, 2)),
    "string": pa.array(["ä", "", None]),
    "large_string": pa.array(["x", None, ""], pa.large_string()),
    "binary": pa.array([b"\0\xff", b"", None]),
    "large_binary": pa.array([b"\0", None, b""], pa.large_binary()),
    "fixed_binary": pa.array([b"abcd", None, b"\0\0\0\0"], pa.binary(4)),
    "null": pa.nulls(3),
    "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    "list": pa.array([[1, None], [], None], pa.list_(pa.int32())),
    "large_list": pa.array([[1], [], None], pa.large_list(pa.int32())),
    "fixed_list": pa.array([[1, 2], [3, None], None], pa.list_(pa.int64(), 2)),
    "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
    "struct": pa.array([{"x": 1, "y": {"z": "a"}}, {"x": None, "y": None}, None]),
    "list_of_struct": pa.array([[{"a": 1, "b": [2]}], [], None]),
    "list_of_list": pa.array([[[1], []], None, [[2, 3]]]),
}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


def written(scene: Scene, source: object, **more: Any) -> pa.Table:
    scene.write(source, **{"policy": Policy(), **more})
    scene.check_whole()
    return scene.table()


@pytest.mark.parametrize("as_stream", [False, True])
def test_every_type_comes_back(scene: Scene, tmp_path: Path, as_stream: bool) -> None:
    table = pa.table(ALL_TYPES)
    policy = Policy(columns={"pii": ("struct.y.z", "map", "dictionary", "list_of_struct.list.element.b")})
    source = table if as_stream else save(tmp_path / "source", table, table.slice(0, 2))
    back = written(scene, source, policy=policy)
    pq.write_table(table, tmp_path / "stream.parquet")  # what becomes of a stream's types in Parquet itself
    names = [tmp_path / "stream.parquet"] if as_stream else [source / "0.parquet", source / "1.parquet"]
    expected = pa.concat_tables(map(pq.read_table, names))
    assert back.schema.equals(expected.schema, check_metadata=True)
    assert back.equals(expected)
    for name in table.column_names:
        assert scene.table([name]).column(0).equals(expected.column(name)), name


def test_metadata_of_schema_and_fields_is_kept(scene: Scene, tmp_path: Path) -> None:
    field = pa.field("id", pa.int64(), nullable=False, metadata={"unit": "m"})
    table = pa.table({"id": [1, 2]}, schema=pa.schema([field], metadata={"origin": "here"}))
    back = written(scene, save(tmp_path / "source", table))
    assert back.schema.equals(table.schema, check_metadata=True)


def test_a_pandas_index_comes_back(scene: Scene) -> None:
    frame = pd.DataFrame({"x": [1.5, None]}, index=pd.Index(["a", "b"], name="who"))
    back = written(scene, pa.Table.from_pandas(frame))
    pd.testing.assert_frame_equal(back.to_pandas(), frame)


def test_row_order_and_row_groups_are_kept(scene: Scene, tmp_path: Path) -> None:
    source = save(tmp_path / "source", people(50, 10), people(0, 7), row_group=4)
    assert ids(written(scene, source)) == [*range(50, 60), *range(7)]
    assert [entry.row_groups for entry in scene.open().files] == [(4, 4, 2), (4, 3)]


def test_hive_partitions_shown_only_where_the_policy_says(scene: Scene, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for year, who in ((2025, "secret-anna"), (2026, "secret-bob"), (2026, "__HIVE_DEFAULT_PARTITION__")):
        save(tree / f"year={year}" / f"who={who}", people(year, 3))
    policy = Policy(columns={"pii": ("name",)}, plaintext_partitions=("year",))
    back = written(scene, tree, policy=policy)
    assert back.schema.names == ["id", "name", "year", "who"]
    rows = list(zip(ids(back), back["year"].to_pylist(), back["who"].to_pylist(), strict=True))
    by_who = {who: [row[:2] for row in rows if row[2] == who] for who in ("secret-anna", "secret-bob", None)}
    assert by_who["secret-anna"] == [(2025, 2025), (2026, 2025), (2027, 2025)]
    assert by_who["secret-bob"] == by_who[None] == [(2026, 2026), (2027, 2026), (2028, 2026)]
    paths = scene.objects()
    assert {path.split("/")[0] for path in paths if path.endswith(".parquet")} == {"year=2025", "year=2026"}
    assert not any("secret" in path or "who" in path for path in paths)
    for path in paths:
        assert b"secret" not in (scene.folder / path).read_bytes()


def test_partition_values_of_odd_characters(scene: Scene, tmp_path: Path) -> None:
    values = ["a b", "x/y", "ü", "1=2", "%41", "..", "a" * 60]
    table = pa.table({"id": range(len(values)), "part": values})
    pq.write_to_dataset(table, str(tmp_path / "tree"), partition_cols=["part"])
    back = written(scene, tmp_path / "tree", policy=Policy(plaintext_partitions=("part",)))
    assert dict(zip(ids(back), back["part"].to_pylist(), strict=True)) == dict(enumerate(values))


def test_five_thousand_columns(scene: Scene) -> None:
    table = pa.table({f"c{n}": [n, n + 1] for n in range(5000)})
    started = time.monotonic()
    scene.write(table, policy=Policy(columns={"pii": ("c1*",)}))
    with scene.open() as dataset:
        assert dataset.to_table().equals(table)
        assert dataset.to_table(["c4999", "c1"], [("c17", "=", 18)]).to_pydict() == {
            "c4999": [5000],
            "c1": [2],
        }
    assert time.monotonic() - started < 60


def test_an_empty_dataset(scene: Scene) -> None:
    table = people(0, 0)
    assert written(scene, table).equals(table)
    with scene.open() as dataset:
        assert (dataset.num_rows, dataset.count_rows(), dataset.head(3).num_rows) == (0, 0, 0)
        assert dataset.to_table(["id"], [("id", ">", 3)]).num_rows == 0
        assert list(dataset.scan()) == []
        assert dataset.to_pyarrow(trust_storage_after_the_check=True).to_table().num_rows == 0
    assert ids((scene.append(people()), scene.table())[1]) == list(range(6))


def test_empty_files_and_files_without_row_groups(scene: Scene, tmp_path: Path) -> None:
    source = save(tmp_path / "source", people(0, 0), people(5, 2), people(0, 0))
    pq.ParquetWriter(source / "3.parquet", people().schema).close()
    assert pq.ParquetFile(source / "3.parquet").num_row_groups == 0
    assert ids(written(scene, source, policy=PII)) == [5, 6]
    assert [entry.rows for entry in scene.open().files] == [0, 2, 0, 0]
    scene.decrypt(tmp_path / "plain")
    assert len(list((tmp_path / "plain").iterdir())) == 4
    assert ids(pq.read_table(tmp_path / "plain")) == [5, 6]


def as_csv(path: Path) -> None:
    pyarrow.csv.write_csv(people(), path / "t.csv")


def as_json(path: Path) -> None:
    (path / "t.jsonl").write_text(people().to_pandas().to_json(orient="records", lines=True))


def as_feather(path: Path) -> None:
    pyarrow.feather.write_feather(people(), str(path / "t.feather"))


@pytest.mark.parametrize("make", [as_csv, as_json, as_feather])
def test_other_formats(scene: Scene, tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "source").mkdir()
    make(tmp_path / "source")
    assert written(scene, tmp_path / "source", policy=PII).equals(people())


STREAMS: dict[str, Callable[[pa.Table], object]] = {
    "table": lambda table: table,
    "reader": lambda table: table.to_reader(),
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.from_arrow,
    "duckdb": lambda table: duckdb.connect().from_arrow(table),
    "dataset": lambda table: ds.dataset(table).scanner().to_reader(),
}


@pytest.mark.parametrize("name", STREAMS)
def test_anything_that_streams_arrow(scene: Scene, name: str) -> None:
    back = written(scene, STREAMS[name](people(0, 100)), policy=PII)
    assert back.select(["id", "name"]).to_pylist() == people(0, 100).to_pylist()


def test_a_dataset_is_a_source(scene: Scene, tmp_path: Path) -> None:
    scene.write(people())
    copy = scene.at(str(tmp_path / "copy"))
    with scene.open() as dataset:
        copy.write(dataset)
    assert copy.table().equals(people())


def failing_stream() -> pa.RecordBatchReader:
    def batches() -> Any:
        yield people().to_batches()[0]
        raise ValueError("the source broke")

    return pa.RecordBatchReader.from_batches(people().schema, batches())


def cut_file(folder: Path) -> Path:
    save(folder, people(), people())
    data = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").write_bytes(data[:4] + bytes(len(data) - 300) + data[-296:])
    return folder


REFUSED: dict[str, tuple[Callable[[Path], object], Any, str]] = {
    "a union": (
        lambda _: pa.table({"u": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}),
        {},
        "unsupported",
    ),
    "an interval": (
        lambda _: pa.table({"u": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}),
        {},
        "unsupported",
    ),
    "no column": (lambda _: pa.table({}), {}, "source-empty"),
    "two of a name": (lambda _: pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]), {}, ""),
    "no such source": (lambda folder: folder / "none", {}, "not-found"),
    "no file": (lambda folder: folder, {}, "source-empty"),
    "no Parquet": (lambda folder: _text(folder / "x.parquet"), {}, "source-unreadable"),
    "no source at all": (lambda _: 7, {}, "config"),
    "column that is not there": (lambda _: people(), Policy(columns={"pii": ("nmae",)}), "policy-no-match"),
    "column under two keys": (
        lambda _: people(),
        Policy(columns={"pii": ("name",), "more": ("n*",)}),
        "policy-two-keys",
    ),
    "no partition": (lambda _: people(), Policy(plaintext_partitions=("id",)), "policy-partition"),
    "not every column named": (
        lambda _: people(),
        Policy(columns={"pii": ("id",)}, strict=True),
        "policy-strict",
    ),
    "a name PyArrow cannot encrypt": (
        lambda _: pa.table({"a;b": [1]}),
        Policy(columns={"pii": ("a*",)}),
        "policy-column-name",
    ),
    "key name without a master key": (
        lambda _: people(),
        Policy(columns={"none": ("name",)}),
        "config-missing",
    ),
}


def _text(path: Path) -> Path:
    path.write_text("hello, this is not Parquet")
    return path


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_refused_before_anything_is_written(
    scene: Scene, tmp_path: Path, what: str
) -> None:
    make, policy, code = REFUSED[what]
    folder = tmp_path / "source"
    folder.mkdir()
    with pytest.raises(EncpipeError) as refused:
        scene.write(make(folder), policy=policy or Policy())
    assert refused.value.code == (code or refused.value.code)
    assert refused.value.code not in ("internal", "storage")
    assert not scene.folder.exists()
    if code.startswith("policy"):
        assert isinstance(refused.value, PolicyError)


def test_key_errors_come_before_anything_is_written(scene: Scene) -> None:
    scene.kms.forget("pii")
    with pytest.raises(EncpipeError) as refused:
        scene.write(people())
    assert refused.value.code == "key-not-found"
    assert not scene.folder.exists()


@pytest.mark.parametrize("make", [lambda _: failing_stream(), cut_file], ids=["stream", "file"])
def test_a_source_that_breaks_midway(scene: Scene, tmp_path: Path, make: Callable[[Path], object]) -> None:
    source = make(tmp_path / "source")
    with pytest.raises(EncpipeError) as broken:
        scene.write(source, workers=1)
    assert broken.value.code == "source-unreadable"
    if isinstance(source, Path):
        assert scene.write(save(source, people(), people(6)), restart=True).files == 2
        scene.check_whole()
        assert scene.verify().unlisted == ()
    else:
        assert scene.objects() == []


def test_an_exception_of_progress_stops_the_write(scene: Scene, tmp_path: Path) -> None:
    source = save(tmp_path / "source", people(), people(6), people(12))

    def stop(progress: Any) -> None:
        if progress.files_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.write(source, workers=1, progress=stop)
    seen: list[Any] = []
    assert scene.write(source, workers=1, progress=seen.append).resumed_files >= 1
    assert [p.files_done for p in seen] == sorted(p.files_done for p in seen)
    last = seen[-1]
    assert (last.files_done, last.files_total, last.rows_done) == (3, 3, 18)
    assert last.bytes_done == last.bytes_total == sum(f.stat().st_size for f in source.iterdir())


def test_an_existing_dataset_is_not_replaced_unasked(scene: Scene) -> None:
    scene.write(people())
    before = scene.objects()
    with pytest.raises(ConfigError) as refused:
        scene.write(people(9))
    assert refused.value.code == "exists"
    assert "--overwrite" in refused.value.hint
    assert scene.objects() == before


def test_overwrite_keeps_the_old_generation_readable(scene: Scene) -> None:
    first = scene.write(people())
    second = scene.write(pa.table({"other": [1.5]}), overwrite=True, policy=Policy())
    assert (second.generation, second.dataset_id) == (2, first.dataset_id)
    assert scene.table().to_pydict() == {"other": [1.5]}
    assert scene.table(generation=1).equals(people())
    with pytest.raises(EncpipeError) as gone:
        scene.table(generation=3)
    assert gone.value.code != "internal"
    scene.check_whole()
    assert scene.verify().unlisted == ()


def test_overwrite_goes_under_the_master_keys_that_are_configured_now(scene: Scene) -> None:
    scene.kms.create("new")
    scene.write(people())
    trust = TrustConfig(("memory:pii", "memory:new"))

    def overwrite(*pii: str) -> tuple[tuple[str, ...], list[str]]:
        config = Config(keys={**KEYS, "pii": pii}, trust=trust)
        here = dataclasses.replace(scene, config=config)
        report = here.write(people(6), overwrite=True)
        assert report.master_keys["footer"] == ("memory:main",)
        here.check_whole()
        return report.master_keys["pii"], [k.state for k in here.inspect().keks if k.key_name == "pii"]

    old, new = "memory:pii", "memory:new"
    assert overwrite(old) == ((old,), ["active"])
    assert overwrite(new) == ((new,), ["retired", "active"])
    assert overwrite(new) == ((new,), ["retired", "active"])
    assert overwrite(new, old) == ((new, old), ["retired", "retired", "active"])
    assert overwrite(old, new) == ((new, old), ["retired", "retired", "active"])
    scene.kms.forget("pii")
    assert overwrite(new) == ((new,), ["retired", "retired", "retired", "active"])


POLICIES = [
    Policy(),
    PII,
    Policy(footer_key="pii"),
    Policy(footer_key="pii", columns={"footer": ("id",)}),
    Policy(columns={"pii": ("id", "name")}),
]


def test_overwrite_changes_the_policy_any_way(scene: Scene) -> None:
    for n, policy in enumerate([*POLICIES, POLICIES[0], POLICIES[3], POLICIES[1]]):
        scene.write(people(10 * n), policy=policy, overwrite=True, drop_column_keys=True)
        assert scene.append(people(10 * n + 6, 1)).rows == 1
        assert scene.open().policy == policy
        for generation in range(n + 1):
            rows = ids(scene.table(generation=2 * generation + 1))
            assert rows == list(range(10 * generation, 10 * generation + 6))
    scene.check_whole()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (PII, Policy()),
        (PII, Policy(columns={"pii": ("id",)})),
        (Policy(footer_key="pii", columns={"footer": ("id",)}), Policy(footer_key="pii")),
    ],
)
def test_overwrite_does_not_put_a_column_under_the_footer_key_unasked(
    scene: Scene, before: Policy, after: Policy
) -> None:
    scene.write(people(), policy=before)
    left = scene.objects()
    with pytest.raises(PolicyError) as refused:
        scene.write(people(6), policy=after, overwrite=True)
    assert refused.value.code == "policy-weaker"
    ((name, (column,)),) = before.columns.items()
    assert f"--columns {name}={column}" in refused.value.hint
    assert scene.objects() == left
    scene.write(people(6), policy=after, overwrite=True, drop_column_keys=True)
    assert scene.open().policy == after


@pytest.mark.parametrize("shown", [(), ("who",)])
def test_overwrite_does_not_make_a_partition_column_of_one_under_a_column_key_unasked(
    scene: Scene, tmp_path: Path, shown: tuple[str, ...]
) -> None:
    scene.write(pa.table({"id": [1], "who": ["anna"]}), policy=Policy(columns={"pii": ("who",)}))
    save(tmp_path / "source" / "who=anna", people())
    with pytest.raises(PolicyError, match=r"'who' .* partition column") as refused:
        scene.write(tmp_path / "source", policy=Policy(plaintext_partitions=shown), overwrite=True)
    assert refused.value.code == "policy-weaker"


@pytest.mark.parametrize(
    "after",
    [
        Policy(footer_key="pii"),
        Policy(columns={"pii": ("id", "name")}),
        Policy(footer_key="pii", columns={"footer": ("id",)}),
    ],
)
def test_overwrite_under_the_same_or_another_column_key_needs_no_leave(scene: Scene, after: Policy) -> None:
    scene.write(people())
    scene.write(people(6), policy=after, overwrite=True)
    assert ids(scene.table()) == list(range(6, 12))


def test_append_takes_columns_in_any_order(scene: Scene) -> None:
    scene.write(people())
    report = scene.append(people(6).select(["name", "id"]))
    assert (report.generation, report.rows) == (2, 6)
    assert scene.table().equals(people(0, 12))
    assert scene.table(generation=1).equals(people())
    scene.check_whole()


def test_append_of_other_partitions(scene: Scene, tmp_path: Path) -> None:
    save(tmp_path / "one" / "p=1", people(0, 2))
    save(tmp_path / "two" / "p=2", people(2, 2))
    scene.write(tmp_path / "one", policy=Policy(plaintext_partitions=("p",)))
    scene.append(tmp_path / "two")
    assert list(zip(ids(scene.table()), scene.table()["p"].to_pylist(), strict=True)) == [
        (0, 1),
        (1, 1),
        (2, 2),
        (3, 2),
    ]
    with pytest.raises(ConfigError) as refused:
        scene.append(people(4, 2).append_column("p", pa.array([3, 3], scene.table()["p"].type)))
    assert refused.value.code == "policy-partition"


@pytest.mark.parametrize(
    "other",
    [
        people().set_column(0, "id", pa.array(["x"] * 6)),
        people().set_column(0, "id", pa.array(range(6), pa.int32())),
        people().select(["id"]),
        people().append_column("more", pa.array(range(6))),
    ],
    ids=["type", "width", "fewer", "more"],
)
def test_append_of_another_schema_is_refused(scene: Scene, other: pa.Table) -> None:
    scene.write(people())
    before = scene.objects()
    with pytest.raises(EncpipeError) as refused:
        scene.append(other)
    assert refused.value.code == "unsupported"
    assert "column" in refused.value.message
    assert scene.objects() == before


def numbers(values: list[int | None], *, nullable: bool) -> pa.Table:
    return pa.table({"id": values}, schema=pa.schema([pa.field("id", pa.int64(), nullable)]))


def test_append_puts_columns_without_nulls_where_there_may_be_some(scene: Scene, tmp_path: Path) -> None:
    scene.write(numbers([1, None], nullable=True), policy=Policy())
    scene.append(numbers([2], nullable=False))
    scene.append(save(tmp_path / "source", numbers([3, 4], nullable=False)))
    assert ids(scene.table()) == [1, None, 2, 3, 4]
    assert scene.table().schema.field("id").nullable
    scene.check_whole()


@pytest.mark.parametrize("values", [[3, None], [3, 4]])
def test_append_of_what_may_hold_nulls_where_there_must_be_none_is_refused(
    scene: Scene, values: list[int | None]
) -> None:
    scene.write(numbers([1, 2], nullable=False), policy=Policy())
    before = scene.objects()
    with pytest.raises(EncpipeError, match="'id' may hold nulls") as refused:
        scene.append(numbers(values, nullable=True))
    assert refused.value.code == "unsupported"
    assert scene.objects() == before
    assert ids(scene.table()) == [1, 2]


def test_append_needs_a_dataset(scene: Scene) -> None:
    with pytest.raises(EncpipeError) as refused:
        scene.append(people())
    assert refused.value.code == "not-found"
    assert not scene.folder.exists()


def test_append_needs_every_key(scene: Scene) -> None:
    scene.write(people())
    before = scene.objects()
    with pytest.raises(EncpipeError) as refused:
        scene.knowing("footer").append(people())
    assert refused.value.code == "untrusted-key"
    assert scene.objects() == before


def test_connections_are_released_in_the_end(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(LocalStorage, "close", lambda storage: closed.append(storage.url))
    scene.write(people())
    scene.append(people(6))
    with pytest.raises(ConfigError):
        scene.write(people())
    with pytest.raises(EncpipeError):
        scene.append(pa.table({"other": [1]}))
    assert closed == [scene.url] * 4


def test_a_folder_with_something_else_in_it_is_refused(scene: Scene) -> None:
    scene.folder.mkdir()
    (scene.folder / "thesis.tex").write_text("\\documentclass")
    for overwrite in (False, True):
        with pytest.raises(ConfigError) as refused:
            scene.write(people(), overwrite=overwrite)
        assert refused.value.code == "exists"
        assert "thesis.tex" in refused.value.message
    assert [path.name for path in scene.folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", [f"{'a' * 32}.parquet", f"year=2024/{'a' * 32}.parquet", "data/.tmp-mine"])
def test_a_first_write_does_not_take_files_of_others_for_its_own(scene: Scene, name: str) -> None:
    """They would be the dataset's then, and garbage to gc."""
    (scene.folder / name).parent.mkdir(parents=True)
    (scene.folder / name).write_bytes(b"PAR1 mine")
    for more in ({}, {"overwrite": True}, {"restart": True}):
        with pytest.raises(ConfigError) as refused:
            scene.write(people(), **more)
        assert refused.value.code == "exists"
        assert name in refused.value.message
    assert scene.objects() == [name]


@pytest.mark.parametrize("target", ["source", "source/dataset", "", "link", "source/p=1"])
def test_source_and_dataset_lie_apart(tmp_path: Path, target: str) -> None:
    source = save(tmp_path / "source" / "p=1", people()).parent
    (tmp_path / "link").symlink_to(source)
    before = sorted(tmp_path.rglob("*"))
    for named in (source, str(source) + "/", source / "**/*.parquet", f"file://{source}"):
        with pytest.raises(ConfigError):
            Scene(str(tmp_path / target)).write(named)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_beside_its_source_files_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path, people())
    for n, named in enumerate((source / "0.parquet", source / "*.parquet")):
        scene = Scene(str(tmp_path / f"sealed-{n}"))
        assert ids(written(scene, named)) == list(range(6))
    monkeypatch.chdir(tmp_path)
    assert ids(written(Scene("sealed-2"), "0.parquet")) == list(range(6))


def test_a_memory_dataset_from_first_to_last(tmp_path: Path) -> None:
    from_first_to_last(Scene(f"memory://{tmp_path.name}/dataset"), tmp_path)


@pytest.mark.server
def test_an_s3_dataset_from_first_to_last(seaweed: Seaweed, bucket: str, tmp_path: Path) -> None:
    scene = on_s3(seaweed, f"s3://{bucket}/deep/folder")
    from_first_to_last(scene, tmp_path)
    with scene.open() as dataset:
        assert ids(
            dataset.to_pyarrow(trust_storage_after_the_check=True).to_table(filter=ds.field("id") > 9)
        ) == [10, 11]
    target = f"s3://{bucket}/plain"
    scene.decrypt(target, target_options=scene.options)
    assert len(scene.at(target).objects()) == 3


def from_first_to_last(scene: Scene, tmp_path: Path) -> None:
    source = save(tmp_path / "source", people(0), people(6, 2))
    assert scene.write(source).files == 2
    with scene.open() as old:
        assert scene.append(people(8, 4)).generation == 2
        assert ids(old.to_table()) == list(range(8))
    with scene.open() as dataset:
        assert dataset.to_table().equals(people(0, 12))
        assert ids(dataset.to_table(["id"], [("id", ">", 8)])) == [9, 10, 11]
        assert ids(dataset.head(3)) == [0, 1, 2]
        assert dataset.count_rows([("id", ">=", 6)]) == 6
    with pytest.raises(ConfigError, match="there is a dataset"):
        scene.write(source)
    found = scene.inspect()
    assert found.contents is not None
    assert (found.generation, found.contents.rows, found.pending_writes) == (2, 12, 0)
    assert scene.knowing("pii").inspect().contents is None
    scene.check_whole()
    assert scene.verify().unlisted == ()
    report = scene.decrypt(tmp_path / "plain")
    assert (report.files, report.rows) == (3, 12)
    assert pq.read_table(tmp_path / "plain").equals(people(0, 12))


def test_files_are_sealed_by_several_workers(scene: Scene, tmp_path: Path) -> None:
    source = save(tmp_path / "source", *(people(6 * n) for n in range(10)))
    report = scene.write(source, workers=4)
    assert (report.files, report.rows, report.kms_calls) == (10, 60, 2)
    assert ids(scene.table()) == list(range(60))
    assert report.bytes_out == sum(f.stat().st_size for f in (scene.folder / "data").iterdir())
