"""What a path, folder, tree, glob or URL names: files, order, partitions, fingerprints."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.sources import open_source


def put(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"x": [1]}), path)


def names(src: object, **options: object) -> list[str]:
    return [file.name for file in open_source(src, **options).files]  # type: ignore[arg-type] # by keyword


def test_a_folder_is_read_in_path_order_without_hidden_files(tmp_path: Path) -> None:
    for name in (
        "b.parquet",
        "a.parquet",
        "c/d.parquet",
        "_SUCCESS",
        ".x.crc",
        "_tmp/e.parquet",
        ".g/h.parquet",
    ):
        put(tmp_path / name)
    assert names(tmp_path) == ["a.parquet", "b.parquet", "c/d.parquet"]
    assert names(f"file://{tmp_path}") == names(str(tmp_path) + "/")


def test_one_file_and_globs(tmp_path: Path) -> None:
    for name in ("a=1/x.parquet", "a=2/x.parquet", "a=2/y.parquet"):
        put(tmp_path / name)
    assert names(tmp_path / "a=1" / "x.parquet") == ["x.parquet"]
    assert names(f"{tmp_path}/*/x.parquet") == ["a=1/x.parquet", "a=2/x.parquet"]
    assert names(f"{tmp_path}/**/y.parquet") == ["a=2/y.parquet"]
    assert open_source(f"{tmp_path}/*/x.parquet").partitions == pa.schema([("a", pa.int32())])


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "d" / "x.parquet")
    monkeypatch.chdir(tmp_path)
    assert names("d") == names("d/x.parquet") == ["x.parquet"]
    assert names("*/x.parquet") == ["d/x.parquet"]


def test_links_are_followed_and_a_loop_ends(tmp_path: Path) -> None:
    put(tmp_path / "outside" / "x.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == ["link/x.parquet"]


@pytest.mark.parametrize(
    "folders",
    [
        ["a=1/b=x%20y", "a=-2/b=z"],
        ["a=1", "a=2147483648"],
        ["a=007", "a=__HIVE_DEFAULT_PARTITION__"],
        ["a=+5", "a=1"],
        ["a=1_0", "a=1"],
        ["a=1.5", "a=1"],
        ["a=1/plain/b=2", "a=3/plain/b=x"],
        ["a%20c=1", "a%20c=2"],
    ],
)
def test_partitions_are_those_of_pyarrow(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        put(tmp_path / folder / "f.parquet")
    source = open_source(tmp_path)
    theirs = ds.dataset(tmp_path, partitioning="hive")
    assert source.partitions == pa.schema([f for f in theirs.schema if f.name != "x"])
    for file in source.files:
        rows = ds.dataset(tmp_path, partitioning="hive").to_table().to_pylist()
        typed = {
            c: None if v is None else pa.scalar(v).cast(source.partitions.field(c).type).as_py()
            for c, v in file.partition.items()
        }
        assert {"x": 1, **typed} in rows


def test_partition_values_are_text_and_null(tmp_path: Path) -> None:
    put(tmp_path / "a=__HIVE_DEFAULT_PARTITION__" / "b=%C3%A4" / "f.parquet")
    put(tmp_path / "a=1" / "b=2" / "f.parquet")
    put(tmp_path / "g.parquet")
    source = open_source(tmp_path)
    assert [dict(file.partition) for file in source.files] == [
        {"a": "1", "b": "2"},
        {"a": None, "b": "ä"},
        {"a": None, "b": None},
    ]
    assert source.partitions == pa.schema([("a", pa.int32()), ("b", pa.string())])


def test_a_partition_column_also_in_the_file_is_checked_and_left_out(tmp_path: Path) -> None:
    put(tmp_path / "a=1" / "f.parquet", x=[5, 6], a=pa.array([1, 1], pa.int64()))
    source = open_source(tmp_path)
    assert source.partitions == pa.schema([("a", pa.int64())])
    with source.files[0].open() as reader:
        assert [t.to_pydict() for t in reader.tables()] == [{"x": [5, 6]}]
    put(tmp_path / "a=2" / "f.parquet", x=[5, 6], a=pa.array([2, 3], pa.int64()))
    with pytest.raises(EncpipeError, match="a=2") as caught, open_source(tmp_path).files[1].open() as reader:
        list(reader.tables())
    assert caught.value.code == "source-unreadable"


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as absent:
        open_source(tmp_path / "nothing")
    assert absent.value.code == "not-found"
    (tmp_path / "_hidden.parquet").touch()
    for empty in (tmp_path, f"{tmp_path}/*.parquet"):
        with pytest.raises(EncpipeError) as caught:
            open_source(empty)
        assert caught.value.code == "source-empty"


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")).touch()
    with pytest.raises(EncpipeError, match="not UTF-8") as caught:
        open_source(tmp_path)
    assert str(caught.value).isprintable()


def test_formats_are_not_mixed_unless_one_is_picked(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("x\n1\n")
    with pytest.raises(EncpipeError, match="mixes formats") as caught:
        open_source(tmp_path)
    assert caught.value.code == "unsupported"
    assert names(tmp_path, format="csv") == ["b.csv"]
    (tmp_path / "b.csv").rename(tmp_path / "README")
    with pytest.raises(EncpipeError, match="README") as caught:
        open_source(tmp_path)
    assert caught.value.code == "source-unreadable"


def test_a_format_is_given_for_a_name_that_does_not_tell(tmp_path: Path) -> None:
    put(tmp_path / "part-0")
    assert names(tmp_path / "part-0", format="parquet") == ["part-0"]
    with pytest.raises(ConfigError, match="no source format 'orc'"):
        open_source(tmp_path, format="orc")


def test_a_fingerprint_tells_a_changed_file(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet")
    first = open_source(tmp_path)
    assert first.resumable
    assert [f.fingerprint for f in open_source(tmp_path).files] == [f.fingerprint for f in first.files]
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert open_source(tmp_path).files[0].fingerprint != first.files[0].fingerprint


def test_urls_of_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    for a in (1, 2):
        with memory.open(f"/sources-finding/t/a={a}/f.parquet", "wb") as sink:
            pq.write_table(pa.table({"x": range(100)}), sink, row_group_size=40)
    source = open_source("memory://sources-finding/t")
    assert [file.name for file in source.files] == ["a=1/f.parquet", "a=2/f.parquet"]
    assert names("memory://sources-finding/t/*/f.parquet") == [file.name for file in source.files]
    assert names("memory://sources-finding/t/a=1/f.parquet") == ["f.parquet"]
    with source.files[1].open() as reader:
        assert [t.num_rows for t in reader.tables()] == [40, 40, 20]
    with pytest.raises(StorageError) as caught:
        open_source("memory://sources-finding/none")
    assert caught.value.code == "not-found"


@pytest.mark.parametrize("url", ["https://host/x.parquet", "http://host/x", "nosuch://x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        open_source(url)


def test_a_url_with_credentials_is_not_shown() -> None:
    with pytest.raises(StorageError) as caught:
        open_source("memory://user:hunter2@sources-finding/none")
    assert "hunter2" not in str(caught.value)
