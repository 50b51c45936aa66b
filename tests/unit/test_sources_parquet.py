"""Parquet sources: what becomes a row group, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encpipe.errors import EncpipeError
from encpipe.filelist import MAX_ROW_GROUPS
from encpipe.sources import Source, open_source
from encpipe.sources.parquet import plan


def tables(source: Source, index: int = 0, *, threads: bool = True) -> list[pa.Table]:
    with source.files[index].open(threads=threads) as reader:
        assert reader.schema.equals(source.schema, check_metadata=True)
        found = list(reader.tables())
    assert all(t.num_rows and t.schema.equals(source.schema, check_metadata=True) for t in found)
    return found


def written(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, **options)
    return path


@pytest.mark.parametrize("threads", [True, False])
def test_row_groups_that_fit_are_kept(tmp_path: Path, threads: bool) -> None:
    table = pa.table({"x": range(1000)})
    source = open_source(written(tmp_path / "f.parquet", table, row_group_size=300))
    found = tables(source, threads=threads)
    assert [t.num_rows for t in found] == [300, 300, 300, 100]
    assert pa.concat_tables(found).equals(table)


def test_a_large_row_group_is_split_evenly_in_order(tmp_path: Path) -> None:
    table = pa.table({"x": range(10_000), "y": [f"row {i}" for i in range(10_000)]})
    source = open_source(written(tmp_path / "f.parquet", table), row_group_bytes=60_000)
    found = tables(source)
    rows = [t.num_rows for t in found]
    assert len(rows) >= 3
    assert max(rows) - min(rows) <= 64
    assert pa.concat_tables(found).equals(table)


def test_a_row_group_that_a_dictionary_makes_small_is_split_by_its_decoded_size(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([7] * 100_000), "s": ["a long repeated text " * 20] * 100_000})
    path = written(tmp_path / "f.parquet", table)
    assert path.stat().st_size < 10_000
    found = tables(open_source(path, row_group_bytes=8 << 20))
    assert max(t.nbytes for t in found) <= 9 << 20
    assert pa.concat_tables(found).equals(table)


def test_wide_rows_that_no_statistics_foretell_end_a_row_group_early(tmp_path: Path) -> None:
    table = pa.table({"s": ["a long repeated text " * 20] * 50_000})
    path = written(tmp_path / "f.parquet", table, write_statistics=False)
    found = tables(open_source(path, row_group_bytes=300_000))
    assert max(t.nbytes for t in found) <= 2_000_000
    assert pa.concat_tables(found).equals(table)


def test_types_and_metadata_are_kept(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "17", "note": "n"}),
            pa.field("d", pa.dictionary(pa.int32(), pa.string())),
            pa.field("n", pa.struct([("l", pa.list_(pa.struct([("x", pa.int8())])))])),
            pa.field("m", pa.map_(pa.string(), pa.float32())),
            pa.field("t", pa.timestamp("us", tz="Europe/Berlin")),
            pa.field("f", pa.list_(pa.float32(), 2)),
        ],
        metadata={"pandas": '{"columns": []}', "owner": "x"},
    )
    rows = [
        {"id": 1, "d": "a", "n": {"l": [{"x": 1}, None]}, "m": [("k", 1.5)], "t": 0, "f": [1.0, 2.0]},
        {"id": 2, "d": None, "n": None, "m": None, "t": None, "f": None},
    ]
    table = pa.Table.from_pylist(rows, schema)
    source = open_source(written(tmp_path / "f.parquet", table))
    assert source.schema.metadata[b"owner"] == b"x"
    assert source.schema.field("id").metadata[b"PARQUET:field_id"] == b"17"
    assert source.schema.equals(schema, check_metadata=False)
    assert pa.concat_tables(tables(source)).to_pylist() == table.to_pylist()


def test_an_empty_file_gives_no_table(tmp_path: Path) -> None:
    source = open_source(written(tmp_path / "f.parquet", pa.table({"x": pa.array([], pa.int8())})))
    assert source.schema.names == ["x"]
    assert tables(source) == []


def test_five_thousand_columns(tmp_path: Path) -> None:
    table = pa.table({f"c{i}": pa.array([i], pa.int32()) for i in range(5000)})
    [found] = tables(open_source(written(tmp_path / "f.parquet", table)))
    assert found.equals(table)


class _Group:
    num_columns = 0

    def __init__(self, rows: int, size: int) -> None:
        self.num_rows, self.total_byte_size = rows, size


class _Metadata:
    def __init__(self, groups: list[_Group]) -> None:
        self.num_row_groups, self._groups = len(groups), groups

    def row_group(self, index: int) -> _Group:
        return self._groups[index]


def test_tiny_row_groups_are_merged_only_beyond_the_limit() -> None:
    few = _Metadata([_Group(1, 10)] * MAX_ROW_GROUPS)
    assert len(list(plan(few, 1000, name="f"))) == MAX_ROW_GROUPS
    many = _Metadata([_Group(1, 10)] * (MAX_ROW_GROUPS + 1) + [_Group(100, 5000)])
    steps = list(plan(many, 1000, name="f"))
    assert [(s.first, s.last, s.slices) for s in steps[:2]] == [(0, 99, 1), (100, 199, 1)]
    assert (steps[-1].first, steps[-1].slices) == (MAX_ROW_GROUPS + 1, 5)
    assert sum(s.last - s.first + 1 for s in steps) == many.num_row_groups


def test_more_row_groups_than_a_file_can_hold_are_refused() -> None:
    with pytest.raises(EncpipeError) as caught:
        plan(_Metadata([_Group(100_000, 100_000)]), 1, name="f.parquet")
    assert caught.value.code == "unsupported"


def test_row_groups_merged_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encpipe.sources.parquet.MAX_ROW_GROUPS", 5)
    table = pa.table({"x": range(100)})
    source = open_source(written(tmp_path / "f.parquet", table, row_group_size=10), row_group_bytes=400)
    found = tables(source)
    assert len(found) <= 5
    assert pa.concat_tables(found).equals(table)


def _encrypted(path: Path) -> None:
    path.write_bytes(b"PARE" + bytes(100) + b"PARE")


def _cut(path: Path) -> None:
    pq.write_table(pa.table({"x": range(100)}), path)
    path.write_bytes(path.read_bytes()[:-3])


def _bad_footer(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1")


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_encrypted, "encrypted"),
        (_cut, "not a Parquet file"),
        (_bad_footer, "cannot be read"),
        (_nothing, "not a Parquet file"),
    ],
)
def test_a_file_that_is_no_plain_parquet_is_named(tmp_path: Path, damage: object, says: str) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    damage(tmp_path / "b.parquet")  # type: ignore[operator] # a function of the table above
    with pytest.raises(EncpipeError, match=r"b\.parquet") as caught:
        open_source(tmp_path)
    assert caught.value.code == "source-unreadable"
    assert says in str(caught.value)
    assert caught.value.hint


def test_a_damaged_page_is_found_while_reading(tmp_path: Path) -> None:
    table = pa.table({"x": [f"{i}" * 10 for i in range(5000)]})
    path = written(tmp_path / "f.parquet", table, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(bytes(data))
    with pytest.raises(EncpipeError, match=r"f\.parquet") as caught, open_source(path).files[0].open() as r:
        list(r.tables())
    assert caught.value.code == "source-unreadable"


def test_a_file_changed_since_the_source_was_opened_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "f.parquet", pa.table({"x": [1]}))
    source = open_source(path)
    pq.write_table(pa.table({"x": [1.5]}), path)
    with pytest.raises(EncpipeError, match=r"column 'x'|changed"), source.files[0].open() as reader:
        list(reader.tables())
    pq.write_table(pa.table({"x": ["text"] * 10}), path)
    with pytest.raises(EncpipeError, match="changed"), source.files[0].open():
        pass
