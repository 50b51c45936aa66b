"""The sealed file list opens in its place, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from specimen import CREATED

from encpipe import filelist
from encpipe.errors import EncpipeError, FormatError, IntegrityError, ManifestError
from encpipe.filelist import FileEntry, FileList
from encpipe.keys import Secret
from encpipe.policy import Policy

KEK = Secret(b"k" * 32)
PLACE: dict[str, Any] = {"dataset_id": "d" * 32, "generation": 3, "list_id": "a" * 32}
POLICY = Policy("footer", {"pii": ("name", "addr*")}, ("day",), True)


def entry(n: int, **changes: Any) -> FileEntry:
    file_id = f"{n:032x}"
    return FileEntry(
        **{
            "id": file_id,
            "path": f"day=1/{file_id}.parquet",
            "size": 1000 + n,
            "rows": 5,
            "row_groups": (3, 2),
            "partition": {"day": "1", "hour": None},
            "sha256": bytes([n]) * 32,
            "footer_commitment": b"f" * 32,
            "columns_commitment": b"c" * 32,
            **changes,
        }
    )


LIST = FileList(
    policy=POLICY,
    schema=b"schema\xff",
    columns={"name": "pii", "addr.zip": "pii", "id": "footer"},
    partitions=("day", "hour"),
    files=(entry(1), entry(2), entry(3, rows=0, row_groups=(), partition={"day": "\u00e4\n", "hour": ""})),
)


def reopen(sealed: bytes, **changes: Any) -> FileList:
    return filelist.open_sealed(sealed, **{"footer_kek": KEK, **PLACE, **changes})


def test_what_was_sealed_opens_to_the_same() -> None:
    found = reopen(filelist.seal(LIST, footer_kek=KEK, **PLACE))
    assert found == FileList(LIST.policy, LIST.schema, LIST.columns, LIST.partitions, LIST.files, found.raw)
    assert list(found.columns) == ["name", "addr.zip", "id"]


@pytest.mark.parametrize("twice", [entry(1), entry(9, id=f"{1:032x}"), entry(9, path=entry(1).path)])
def test_a_file_named_twice_is_not_sealed(twice: FileEntry) -> None:
    listed = dataclasses.replace(LIST, files=(*LIST.files, twice))
    with pytest.raises(EncpipeError, match="twice") as refused:
        filelist.seal(listed, footer_kek=KEK, **PLACE)
    assert refused.value.code == "unsupported"


def test_an_empty_dataset_has_an_empty_list() -> None:
    found = reopen(filelist.seal(FileList(Policy(), b"", {}, (), ()), footer_kek=KEK, **PLACE))
    assert (found.files, found.columns, found.partitions) == ((), {}, ())


def test_nothing_of_it_is_readable_and_no_two_seals_are_alike() -> None:
    one, other = (filelist.seal(LIST, footer_kek=KEK, **PLACE) for _ in range(2))
    assert one[:1] == b"\x01"
    assert one[1:13] != other[1:13]
    assert not any(word in one for word in (b"name", b"parquet", b"pii", b"day"))


ELSEWHERE: dict[str, dict[str, Any]] = {
    "another dataset": {"dataset_id": "e" * 32},
    "another generation": {"generation": 4},
    "another list id": {"list_id": "b" * 32},
    "another footer key": {"footer_kek": Secret(b"K" * 32)},
}


@pytest.mark.parametrize("changes", ELSEWHERE.values(), ids=ELSEWHERE)
def test_it_opens_nowhere_else(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="does not open") as refused:
        reopen(filelist.seal(LIST, footer_kek=KEK, **PLACE), **changes)
    assert refused.value.code == "file-list"


@pytest.mark.parametrize("size", [1, 2, 28, 29, 100])
def test_a_cut_list_is_refused(size: int) -> None:
    with pytest.raises(ManifestError, match="does not open"):
        reopen(filelist.seal(LIST, footer_kek=KEK, **PLACE)[:size])


@pytest.mark.parametrize("first", [b"", b"\x00", b"\x02", b"{"])
def test_another_version_says_so(first: bytes) -> None:
    with pytest.raises(FormatError, match="version") as refused:
        reopen(first + filelist.seal(LIST, footer_kek=KEK, **PLACE)[1:] if first else b"")
    assert refused.value.code == "format-newer"


def test_unknown_fields_are_kept_when_the_list_is_written_again() -> None:
    raw = LIST.as_json()
    raw["later"] = [1]
    raw["policy"]["later"] = 2
    raw["files"][1]["later"] = {"a": 3}
    found = filelist.parse(json.dumps(raw).encode())
    again = json.loads(json.dumps(found.as_json()))
    assert again == raw
    assert found.files[0].extra == {}
    assert [e.as_json() for e in found.files] == raw["files"]


def edited(path: str, value: Any) -> bytes:
    """The list with one value replaced; a path is dotted, `files.0.rows`."""
    raw = json.loads(json.dumps(LIST.as_json()))
    *above, last = path.split(".")
    place: Any = raw
    for name in above:
        place = place[int(name) if isinstance(place, list) else name]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return json.dumps(raw).encode()


ID = f"{1:032x}"
MALFORMED: dict[str, tuple[str, Any]] = {
    "no policy": ("policy", ...),
    "a policy that is none": ("policy", []),
    "a footer key that is no key name": ("policy.footer_key", "Footer"),
    "a key name in the policy that is none": ("policy.columns", {"Pii": ["name"]}),
    "a key without columns": ("policy.columns", {"pii": []}),
    "entries that are no list": ("policy.columns", {"pii": "name"}),
    "partition keys that are text": ("policy.partition_keys", "day"),
    "strict that is a number": ("policy.strict", 1),
    "a schema that is not base64url": ("schema", "a+b="),
    "columns that are an object": ("columns", {}),
    "a column that is no pair": ("columns.0", ["name"]),
    "a column that is text": ("columns.0", "name"),
    "a column under no key name": ("columns.0", ["name", "a.b"]),
    "a column twice": ("columns.0", ["id", "footer"]),
    "a column that is a number": ("columns.0", [1, "footer"]),
    "partitions that are no texts": ("partitions", ["day", 1]),
    "no files": ("files", ...),
    "a file that is none": ("files.0", 1),
    "a file twice": ("files.0", entry(2).as_json()),
    "a file id twice": ("files.0", {**entry(2).as_json(), "path": f"other/{2:032x}.parquet"}),
    "a file without an id": ("files.0.id", ...),
    "a size below zero": ("files.0.bytes", -1),
    "a size that is text": ("files.0.bytes", "1"),
    "other rows than its row groups": ("files.0.rows", 4),
    "row groups that are no numbers": ("files.0.row_groups", [True, 4]),
    "row groups below zero": ("files.0.row_groups", [6, -1]),
    "more row groups than Parquet can seal": ("files.0.row_groups", [0] * 32_768),
    "a hash that is too short": ("files.0.sha256", "00"),
    "no footer commitment": ("files.0.footer_dek", ...),
    "no column commitment": ("files.0.column_deks", None),
    "a partition column missing": ("files.0.partition", {"day": "1"}),
    "a partition column too many": ("files.0.partition", {"day": "1", "hour": "1", "x": "1"}),
    "another partition column": ("files.0.partition", {"day": "1", "x": "1"}),
    "a partition value that is a number": ("files.0.partition", {"day": 1, "hour": None}),
    "partition KEKs that nothing asks for": ("files.0.partition_keks", ["a" * 32]),
    "an absolute path": ("files.0.path", f"/data/{ID}.parquet"),
    "a path of another file": ("files.0.path", f"data/{2:032x}.parquet"),
    "a path above": ("files.0.path", f"../{ID}.parquet"),
    "a path up and down": ("files.0.path", f"data/../../x/{ID}.parquet"),
    "a path with a dot": ("files.0.path", f"./{ID}.parquet"),
    "a path with an empty part": ("files.0.path", f"data//{ID}.parquet"),
    "a path below _encpipe": ("files.0.path", f"_encpipe/pending/{ID}.parquet"),
    "a path without a folder": ("files.0.path", f"{ID}.parquet"),
    "a path with a NUL": ("files.0.path", f"a\0b/{ID}.parquet"),
    "a path with a line end": ("files.0.path", f"a\nb/{ID}.parquet"),
    "a path of another type": ("files.0.path", f"data/{ID}.csv"),
    "a path that is too deep": ("files.0.path", "a/" * 33 + f"{ID}.parquet"),
    "a folder name that is too long": ("files.0.path", "a" * 256 + f"/{ID}.parquet"),
    "half a surrogate pair": ("files.0.path", f"\ud800/{ID}.parquet"),
}


@pytest.mark.parametrize(("path", "value"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused_though_it_was_sealed(path: str, value: Any) -> None:
    with pytest.raises(ManifestError) as refused:
        filelist.parse(edited(path, value))
    assert refused.value.code == "file-list"


def test_a_path_may_be_as_deep_and_long_as_the_limits() -> None:
    deep = "a" * 100 + "/" + "b/" * 31 + f"{ID}.parquet"
    assert filelist.parse(edited("files.0.path", deep)).files[0].path == deep
    assert filelist.parse(edited("files.0.path", f"..a/{ID}.parquet")).files[0].path.startswith("..a/")


def test_what_is_sealed_and_no_json_is_refused() -> None:
    for plaintext in (b"", b"[]", CREATED.encode(), b"\xff"):
        with pytest.raises(IntegrityError) as refused:
            filelist.parse(plaintext)
        assert refused.value.code == "file-list"
