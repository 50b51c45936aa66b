"""CSV and JSON lines: inference, packing, and errors that name file and row."""

from __future__ import annotations

import bz2
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from encpipe.errors import ConfigError, EncpipeError
from encpipe.sources import Source, open_source

CSV = b"a,b,when\n1,x,2024-01-01\n2,NA,\n"
JSON = b'{"a":1,"b":"x","n":{"l":[1,2]}}\n{"a":2}\n'


def read(source: Source, *, threads: bool = True) -> pa.Table:
    made = []
    for file in source.files:
        with file.open(threads=threads) as reader:
            made += list(reader.tables())
    return pa.concat_tables(made)


def _zip(data: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.csv", data)


PACK: dict[str, Callable[[bytes, Path], object]] = {
    "": lambda data, path: path.write_bytes(data),
    ".gz": lambda data, path: path.write_bytes(gzip.compress(data)),
    ".bz2": lambda data, path: path.write_bytes(bz2.compress(data)),
    ".zst": lambda data, path: path.write_bytes(pa.compress(data, "zstd", asbytes=True)),
    ".zip": _zip,
}


@pytest.mark.parametrize("packing", PACK)
def test_csv_is_inferred(tmp_path: Path, packing: str) -> None:
    PACK[packing](CSV, tmp_path / f"t.csv{packing}")
    source = open_source(tmp_path)
    assert source.schema == pa.schema([("a", pa.int64()), ("b", pa.string()), ("when", pa.date32())])
    assert read(source).column("b").to_pylist() == ["x", "NA"]
    assert read(source).column("when").null_count == 1
    assert source.resumable


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json"])
def test_json_lines_are_inferred(tmp_path: Path, packing: str, kind: str) -> None:
    PACK[packing](JSON, tmp_path / f"t{kind}{packing}")
    assert read(open_source(tmp_path)).to_pylist() == [
        {"a": 1, "b": "x", "n": {"l": [1, 2]}},
        {"a": 2, "b": None, "n": None},
    ]


def test_text_behind_a_url_is_read() -> None:
    fsspec.filesystem("memory").pipe("/sources-text/t.csv.gz", gzip.compress(CSV))
    assert read(open_source("memory://sources-text/t.csv.gz")).num_rows == 2


@pytest.mark.parametrize("threads", [True, False])
@pytest.mark.parametrize("bad", [b"oops,x\n", b"1\n"])
def test_a_later_row_that_does_not_parse_is_named(tmp_path: Path, threads: bool, bad: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"1,x\n" * 1_500_000 + bad + b"1,x\n" * 10)
    with pytest.raises(EncpipeError, match=r"'t\.csv'.*Row #1500002") as caught:
        read(open_source(tmp_path / "t.csv"), threads=threads)
    assert caught.value.code == "source-unreadable"
    assert "schema=" in caught.value.hint


@pytest.mark.parametrize("threads", [True, False])
def test_a_later_value_of_another_type_in_json_is_named(tmp_path: Path, threads: bool) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"a":1}\n' * 800_000 + b'{"a":"x"}\n')
    with pytest.raises(EncpipeError, match=r"'t\.jsonl'.*in line 800001") as caught:
        read(open_source(tmp_path / "t.jsonl"), threads=threads)
    assert caught.value.code == "source-unreadable"


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'{"a":1}\n{"a":"x"}\n', 2),
        (b"foo\n", 1),
        (b'\n{"a":1}\n\r\n  \n{"a":1}\nfoo\n{"a":1}\n', 6),
        (b'{"a":1}\n' + b"\n" * 9 + b'{"a":1}\n' * 800_000 + b'{"a":"x"}\n', 800_011),
    ],
)
def test_json_that_does_not_parse_is_told_by_its_line(
    tmp_path: Path, packing: str, data: bytes, line: int
) -> None:
    PACK[packing](data, tmp_path / f"t.jsonl{packing}")
    with pytest.raises(EncpipeError, match=rf" in line {line}\b") as caught:
        read(open_source(tmp_path))
    assert caught.value.code == "source-unreadable"


def test_a_later_field_in_json_is_refused_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"a":1}\n' * 800_000 + b'{"a":1,"b":2}\n')
    with pytest.raises(EncpipeError, match=r"unexpected field \(after row \d{6}\)"):
        read(open_source(tmp_path / "t.jsonl"))
    given = pa.schema([("b", pa.int8())])
    table = read(open_source(tmp_path / "t.jsonl", schema=given))
    assert table.column("b").null_count == 800_000
    assert table.schema.field("b").type == pa.int8()


def test_types_may_be_given_for_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(CSV)
    source = open_source(tmp_path, schema=pa.schema([("a", pa.float32())]))
    assert source.schema.field("a").type == pa.float32()
    assert read(source).column("a").to_pylist() == [1.0, 2.0]


def test_a_column_empty_in_one_file_has_the_type_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,\n")
    (tmp_path / "b.csv").write_text("y,x\n5,2\n")
    table = read(open_source(tmp_path))
    assert table.schema == pa.schema([("x", pa.int64()), ("y", pa.int64())])
    assert table.to_pylist() == [{"x": 1, "y": None}, {"x": 2, "y": 5}]


def test_types_are_not_given_for_files_that_say_theirs(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").touch()
    with pytest.raises(ConfigError, match="schema="):
        open_source(tmp_path, schema=pa.schema([("a", pa.int8())]))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b""),
        ("t.csv", b"a,b\n1\n"),
        ("t.csv.gz", b"not gzip"),
        ("t.csv.gz", gzip.compress(CSV, mtime=0)[:-12]),
        ("t.csv.zip", b"not zip"),
        ("t.jsonl", b""),
        ("t.json", b'[{"a":1}]'),
        ("t.json", b'{"a":'),
    ],
)
def test_what_is_not_the_format_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EncpipeError, match=name.replace(".", r"\.")) as caught:
        read(open_source(tmp_path))
    assert caught.value.code == "source-unreadable"


LATIN1 = {
    "a CSV header": ("t.csv", "id,stra\u00dfe\n1,x\n", "name of its column 2 is not UTF-8"),
    "a CSV header and its values": (
        "t.csv",
        "id,stra\u00dfe\n1,\u00df\n",
        "name of its column 2 is not UTF-8",
    ),
    "a CSV value": ("t.csv", "id,name\n1,stra\u00dfe\n", "values of its column 'name' are not UTF-8"),
    "a later CSV value": (
        "t.csv",
        "id,name\n" + "1,x\n" * 1_500_000 + "1,\u00df\n",
        "column 'name'.*invalid UTF8",
    ),
    "a JSON value": ("t.jsonl", '{"id":1,"s":[{"t":"\u00df"}]}\n', "values of its column 's' are not UTF-8"),
    "a JSON field inside": ("t.jsonl", '{"id":1,"s":{"\u00df":1}}\n', "name of its column 2 is not UTF-8"),
    "a JSON field": ("t.jsonl", '{"id":1,"stra\u00dfe":1}\n', "name of its column 2 is not UTF-8"),
}


@pytest.mark.parametrize(("name", "text", "says"), LATIN1.values(), ids=LATIN1)
def test_text_that_is_not_utf_8_is_named_not_guessed(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin1"))
    with pytest.raises(EncpipeError, match=rf"'{name}'.*{says}") as caught:
        read(open_source(tmp_path))
    assert caught.value.code == "source-unreadable"
    assert "iconv -f latin1 -t utf-8" in caught.value.hint


@pytest.mark.parametrize("data", ["a{0}b\n1{0}2\n", "a{0}b\n1,5{0}2\n", '"a"{0}"b"\r\n1{0}2\r\n'])
@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_than_the_comma_is_told(tmp_path: Path, data: str, mark: str) -> None:
    """All values in one column would fall under one key, named by nobody."""
    (tmp_path / "t.csv").write_text(data.format(mark))
    with pytest.raises(EncpipeError, match=r"'t\.csv'") as caught:
        read(open_source(tmp_path))
    assert caught.value.code == "source-unreadable"
    assert f"is the separator {mark!r}? encpipe reads commas" in caught.value.hint


def test_a_semicolon_may_stand_in_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a;b,c\n1,2\n")
    assert read(open_source(tmp_path)).column_names == ["a;b", "c"]
    (tmp_path / "t.csv").write_text("a;b\n1\n")
    given = pa.schema([("a;b", pa.int64())])
    assert read(open_source(tmp_path, schema=given)).to_pydict() == {"a;b": [1]}


def test_bytes_in_csv_are_taken_when_the_schema_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("id,name\n1,\u00df\n".encode("latin1"))
    given = pa.schema([("name", pa.binary())])
    assert read(open_source(tmp_path, schema=given)).to_pylist() == [{"id": 1, "name": b"\xdf"}]


def test_an_archive_of_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("a.csv", CSV)
        archive.writestr("b.csv", CSV)
    with pytest.raises(EncpipeError, match="holds 2 files"):
        open_source(tmp_path)


def test_quoted_newlines_are_kept_across_blocks(tmp_path: Path) -> None:
    value = "line one\nline two, still two\n" * 40
    (tmp_path / "t.csv").write_text("a,b\n" + f'1,"{value}"\n' * 5000)
    table = read(open_source(tmp_path))
    assert table.num_rows == 5000
    assert set(table.column("b").to_pylist()) == {value}


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    source = open_source(tmp_path)
    assert source.schema.names == ["a", "b"]
    with source.files[0].open() as reader:
        assert list(reader.tables()) == []


def test_partitions_of_text_files(tmp_path: Path) -> None:
    for a in (1, 2):
        (tmp_path / f"a={a}").mkdir()
        (tmp_path / f"a={a}" / "t.csv").write_text(f"x,a\n7,{a}\n")
    source = open_source(tmp_path)
    assert [dict(file.partition) for file in source.files] == [{"a": "1"}, {"a": "2"}]
    assert read(source).to_pydict() == {"x": [7, 7]}
