"""Objects that stream Arrow, Arrow IPC files, and row groups made from batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import ipc

from encpipe.errors import ConfigError, EncpipeError
from encpipe.sources import Source, open_source
from encpipe.sources.stream import MAX_ROWS, regroup

TABLE = pa.table({"x": range(1000), "s": [str(i) for i in range(1000)]})


def read(source: Source) -> list[pa.Table]:
    [file] = source.files
    with file.open() as reader:
        assert reader.schema.equals(source.schema, check_metadata=True)
        return list(reader.tables())


@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: TABLE.to_reader(max_chunksize=7),
        lambda: TABLE.to_batches()[0],
        lambda: pd.DataFrame(TABLE.to_pydict()),
        lambda: pl.DataFrame(TABLE.to_pydict()),
        lambda: duckdb.sql("select range as x, range::varchar as s from range(1000)"),
    ],
    ids=["table", "reader", "batch", "pandas", "polars", "duckdb"],
)
def test_any_arrow_stream_is_one_file(make: object) -> None:
    source = open_source(make())  # type: ignore[operator] # one of the functions above
    assert pa.concat_tables(read(source)).to_pydict() == TABLE.to_pydict()
    assert (source.resumable, source.files[0].fingerprint, len(source.partitions)) == (False, "", 0)


def test_pandas_metadata_is_kept() -> None:
    frame = pd.DataFrame({"x": [1]}, index=pd.Index(["i"], name="key"))
    schema = open_source(frame).schema
    assert schema.names == ["x", "key"]
    assert b"pandas" in schema.metadata


def test_a_stream_is_read_once() -> None:
    source = open_source(TABLE)
    read(source)
    with pytest.raises(EncpipeError, match="read already") as caught:
        read(source)
    assert caught.value.code == "source-unreadable"


@pytest.mark.parametrize("source", [5, None, ["a"], b"path"])
def test_other_objects_are_refused(source: object) -> None:
    with pytest.raises(ConfigError, match="__arrow_c_stream__"):
        open_source(source)


def test_an_error_of_the_stream_is_mapped() -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from TABLE.to_batches(max_chunksize=500)
        raise OSError("connection lost")

    source = open_source(pa.RecordBatchReader.from_batches(TABLE.schema, batches()))
    with pytest.raises(EncpipeError, match=r"connection lost.*after row 1000") as caught:
        read(source)
    assert caught.value.code == "source-unreadable"


def test_small_batches_are_joined_and_large_ones_split() -> None:
    found = list(regroup(TABLE.to_batches(max_chunksize=7), 4000, name="t"))
    assert 3 <= len(found) <= 8
    assert all(t.nbytes <= 4100 for t in found)
    assert pa.concat_tables(found).equals(TABLE)
    found = list(regroup(TABLE.to_batches(), 4000, name="t"))
    assert 3 <= len(found) <= 8
    assert pa.concat_tables(found).equals(TABLE)


def test_a_row_group_has_at_most_a_million_rows() -> None:
    batch = pa.record_batch({"x": pa.nulls(3 * MAX_ROWS + 1, pa.bool_())})
    found = list(regroup([batch], 1 << 30, name="t"))
    assert sum(t.num_rows for t in found) == batch.num_rows
    assert max(t.num_rows for t in found) <= MAX_ROWS


def test_more_row_groups_than_a_file_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encpipe.sources.stream.MAX_ROW_GROUPS", 3)
    assert len(list(regroup(TABLE.slice(0, 3).to_batches(), 1, name="t"))) == 3
    with pytest.raises(EncpipeError) as caught:
        list(regroup(TABLE.slice(0, 4).to_batches(), 1, name="t"))
    assert caught.value.code == "unsupported"


def test_a_large_dictionary_does_not_make_tiny_row_groups() -> None:
    words = pa.array([f"word {i}" for i in range(10_000)])
    column = pa.DictionaryArray.from_arrays(pa.array([i % 10_000 for i in range(50_000)], pa.int32()), words)
    found = list(regroup(pa.table({"d": column}).to_batches(max_chunksize=1000), 100_000, name="t"))
    assert len(found) == 2
    assert pa.concat_tables(found).column("d").to_pylist() == column.to_pylist()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_ipc_files_and_streams_are_told_apart(tmp_path: Path, stream: bool, compression: str | None) -> None:
    schema = TABLE.schema.with_metadata({"k": "v"})
    make = ipc.new_stream if stream else ipc.new_file
    options = ipc.IpcWriteOptions(compression=compression)
    with make(str(tmp_path / "t.arrow"), schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=300)
    source = open_source(tmp_path)
    assert source.schema.equals(schema, check_metadata=True)
    assert source.resumable
    assert pa.concat_tables(read(source)).equals(TABLE)


@pytest.mark.parametrize("data", [b"", b"FEA1" + bytes(100), b"ARROW1\0\0" + bytes(100), b"text " * 100])
def test_what_is_not_ipc_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.feather").write_bytes(data)
    with pytest.raises(EncpipeError, match=r"t\.feather") as caught:
        open_source(tmp_path)
    assert caught.value.code == "source-unreadable"


@pytest.mark.parametrize("stream", [False, True])
def test_an_ipc_file_that_was_cut_is_named(tmp_path: Path, stream: bool) -> None:
    make = ipc.new_stream if stream else ipc.new_file
    with make(str(tmp_path / "t.arrow"), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=300)
    data = (tmp_path / "t.arrow").read_bytes()
    (tmp_path / "t.arrow").write_bytes(data[: len(data) // 2])
    with pytest.raises(EncpipeError, match=r"t\.arrow") as caught:
        read(open_source(tmp_path))
    assert caught.value.code == "source-unreadable"
