"""Random tables keep their values, types and order through every source format."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, ipc

from encpipe.sources import Source, hive, open_source

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)
INT = st.integers(-(2**63), 2**63 - 1)
TYPES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "i": (pa.int64(), INT),
    "f": (pa.float64(), st.floats(allow_nan=False)),
    "s": (pa.string(), TEXT),
    "b": (pa.binary(), st.binary(max_size=8)),
    "t": (pa.timestamp("us", tz="UTC"), st.integers(-(2**50), 2**50)),
    "l": (pa.list_(pa.int32()), st.lists(st.integers(-5, 5), max_size=3)),
    "n": (
        pa.struct([("x", pa.int8()), ("y", pa.string())]),
        st.fixed_dictionaries({"x": st.none(), "y": TEXT}),
    ),
    "d": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["u", "v", "w"])),
}


@st.composite
def any_table(draw: st.DrawFn, kinds: str = "ifsbtlnd") -> pa.Table:
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(0, 12))
    columns = {}
    for kind in chosen:
        arrow_type, values = TYPES[kind]
        items = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        columns[kind] = pa.array(items, arrow_type)
    return pa.table(columns)


def read(source: Source) -> pa.Table:
    [file] = source.files
    with file.open() as reader:
        return pa.concat_tables([*reader.tables(), source.schema.empty_table()])


@given(any_table(), st.integers(1, 6), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_parquet(table: pa.Table, row_group: int, limit: int) -> None:
    with TemporaryDirectory() as folder:
        pq.write_table(table, f"{folder}/t.parquet", row_group_size=row_group)
        found = read(open_source(folder, row_group_bytes=limit))
    assert found.schema == table.schema
    assert found.to_pylist() == table.to_pylist()


@given(any_table(), st.booleans(), st.integers(1, 6), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_arrow_ipc(table: pa.Table, stream: bool, chunk: int, limit: int) -> None:
    with TemporaryDirectory() as folder:
        with (ipc.new_stream if stream else ipc.new_file)(f"{folder}/t.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk)
        found = read(open_source(folder, row_group_bytes=limit))
    assert found.schema == table.schema
    assert found.to_pylist() == table.to_pylist()


@given(any_table(), st.integers(1, 6), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_arrow_streams(table: pa.Table, chunk: int, limit: int) -> None:
    found = read(open_source(table.to_reader(max_chunksize=chunk), row_group_bytes=limit))
    assert found.schema == table.schema
    assert found.to_pylist() == table.to_pylist()


@given(any_table("ifs").filter(lambda table: table.num_columns > 1), st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_csv_with_types(table: pa.Table, limit: int) -> None:
    with TemporaryDirectory() as folder:
        csv.write_csv(table, f"{folder}/t.csv")
        found = read(open_source(folder, row_group_bytes=limit, schema=table.schema))
    expected = [{**row, "s": row["s"] or ""} if "s" in row else row for row in table.to_pylist()]
    assert found.to_pylist() == expected, "CSV has no null text, as PyArrow reads it"


@given(any_table("isln"), st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_json_lines_with_types(table: pa.Table, limit: int) -> None:
    if not table.num_rows:
        return
    with TemporaryDirectory() as folder:
        lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        Path(f"{folder}/t.jsonl").write_text(lines)
        found = read(open_source(folder, row_group_bytes=limit, schema=table.schema))
    assert found.to_pylist() == table.to_pylist()


@given(st.dictionaries(TEXT.filter(bool), st.none() | TEXT.filter(bool), min_size=1, max_size=3))
def test_partition_values_come_back_from_folder_names(values: dict[str, str | None]) -> None:
    from urllib.parse import quote

    folders = [
        f"{quote(c, safe='')}={hive.NULL if v is None else quote(v, safe='')}" for c, v in values.items()
    ]
    assert hive.values_of("/".join([*folders, "f.parquet"])) == values
