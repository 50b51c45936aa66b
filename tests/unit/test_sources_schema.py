"""Files of one source with different schemas: filled, reordered or refused, never guessed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encpipe.errors import EncpipeError
from encpipe.sources import open_source


def rows_of(folder: Path) -> list[list[dict[str, object]]]:
    found = []
    source = open_source(folder)
    for file in source.files:
        with file.open() as reader:
            tables = list(reader.tables())
        assert all(t.schema.equals(source.schema, check_metadata=True) for t in tables)
        found.append(pa.concat_tables(tables).to_pylist())
    return found


def test_missing_columns_are_null_and_others_reordered(tmp_path: Path) -> None:
    first = pa.schema([pa.field("x", pa.int64(), nullable=False), ("y", pa.string())], metadata={"k": "1"})
    pq.write_table(pa.table({"x": [1], "y": ["a"]}, schema=first), tmp_path / "a.parquet")
    pq.write_table(pa.table({"z": [True], "y": ["b"]}), tmp_path / "b.parquet")
    assert rows_of(tmp_path) == [[{"x": 1, "y": "a", "z": None}], [{"x": None, "y": "b", "z": True}]]
    schema = open_source(tmp_path).schema
    assert schema.field("x").nullable
    assert schema.metadata == {b"k": b"1"}


def test_a_column_without_values_takes_the_type_of_the_others(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.nulls(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [1.5]}), tmp_path / "b.parquet")
    assert rows_of(tmp_path) == [[{"x": None}, {"x": None}], [{"x": 1.5}]]


def test_another_type_is_refused_with_file_and_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"w": [1], "x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"w": [1], "x": ["1"]}), tmp_path / "b.parquet")
    with pytest.raises(
        EncpipeError, match=r"'b\.parquet' has column 'x' as string, others as int64"
    ) as caught:
        open_source(tmp_path)
    assert caught.value.code == "unsupported"


def test_a_name_that_stands_twice_is_refused() -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(EncpipeError, match="two columns named 'x'") as caught:
        open_source(twice)
    assert caught.value.code == "unsupported"


def test_a_type_that_parquet_lacks_is_refused_with_its_column() -> None:
    table = pa.table({"a": [1], "b": pa.nulls(1, pa.month_day_nano_interval())})
    with pytest.raises(EncpipeError, match="column 'b'") as caught:
        open_source(table)
    assert caught.value.code == "unsupported"


def test_no_columns_are_refused() -> None:
    with pytest.raises(EncpipeError, match="no columns") as caught:
        open_source(pa.table({}))
    assert caught.value.code == "source-empty"
