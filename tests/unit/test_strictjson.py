"""JSON is read strictly and written in one spelling."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encpipe import strictjson
from encpipe.errors import EncpipeError, IntegrityError, ManifestError
from encpipe.strictjson import MAX_DEPTH, MAX_INT, MAX_TEXT, Fields, dumps, loads

REFUSED = {
    "nothing": b"",
    "blank": b"  ",
    "cut": b'{"a":1',
    "cut in a string": b'{"a":"b',
    "two values": b'{"a":1}{"b":2}',
    "text after the value": b'{"a":1} x',
    "a trailing comma": b'{"a":1,}',
    "a comment": b'{"a":1}//',
    "single quotes": b"{'a':1}",
    "no object: list": b"[1]",
    "no object: number": b"1",
    "no object: null": b"null",
    "no object: text": b'"a"',
    "a name twice": b'{"a":1,"a":1}',
    "a name twice, once escaped": b'{"a":1,"\\u0061":1}',
    "a name twice, deep inside": b'{"a":[{"b":{"c":1,"c":2}}]}',
    "NaN": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "minus infinity": b'{"a":-Infinity}',
    "a fraction": b'{"a":1.5}',
    "a whole fraction": b'{"a":1.0}',
    "an exponent": b'{"a":1e3}',
    "a negative number": b'{"a":-1}',
    "a negative zero": b'{"a":-0}',
    "a leading zero": b'{"a":01}',
    "a plus": b'{"a":+1}',
    "one too large": b'{"a":9007199254740992}',
    "a huge number": b'{"a":' + b"9" * 100_000 + b"}",
    "a huge negative number": b'{"a":-' + b"9" * 100_000 + b"}",
    "an Arabic digit": '{"a":\u0663}'.encode(),
    "bad UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"a":1}',
    "half a surrogate pair": b'{"a":"\\ud800"}',
    "the other half": b'{"a":"\\uDFFF"}',
    "halves the wrong way round": b'{"a":"\\udc00\\ud800"}',
    "half a pair as a name": b'{"\\udabc":1}',
    "a control character": b'{"a":"\x01"}',
    "a raw line end in text": b'{"a":"\n"}',
    "too deep": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "so deep that the parser gives up": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "so many objects deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_refused(data: bytes) -> None:
    with pytest.raises(ManifestError, match=r"^the thing is n") as refused:
        loads(data, what="the thing", code="journal")
    assert refused.value.code == "journal"
    assert len(str(refused.value)) < 200


READ: dict[str, tuple[bytes, Any]] = {
    "empty": (b"{}", {}),
    "blanks around": (b' {"a" : [ ] }\r\n', {"a": []}),
    "the largest number": (b'{"a":9007199254740991}', {"a": MAX_INT}),
    "zero": (b'{"a":0}', {"a": 0}),
    "a whole surrogate pair": (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "an escaped backslash before ud": (b'{"a":"\\\\ud800"}', {"a": "\\ud800"}),
    "UTF-8": ('{"\u00e4":"\U0001f600"}'.encode(), {"\u00e4": "\U0001f600"}),
    "as deep as allowed": (b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, None),
}


@pytest.mark.parametrize(("data", "value"), READ.values(), ids=READ)
def test_read(data: bytes, value: Any) -> None:
    found = loads(data, what="it")
    assert value is None or found == value


def test_deep_nesting_is_refused_wherever_the_caller_stands() -> None:
    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
        else:
            loads(REFUSED["so deep that the parser gives up"], what="it")

    with pytest.raises(ManifestError, match="nested too deeply"):
        deep(sys.getrecursionlimit() // 2)


def test_one_spelling_is_written() -> None:
    assert dumps({"b": [1, None, True], "a": "\u00e4\n\U0001f600"}) == (
        b'{"a":"\\u00e4\\n\\ud83d\\ude00","b":[1,null,true]}'
    )
    with pytest.raises(ValueError, match="JSON"):
        dumps({"a": float("nan")})


OBJECT = {
    "text": "a b",
    "number": 7,
    "flag": True,
    "none": None,
    "list": ["x", "y"],
    "mixed": ["x", 1],
    "object": {"inner": "x"},
    "id": "0123456789abcdef" * 2,
    "sha": "0f" * 32,
    "data": "Zm9v",
    "fraction": 1.5,
}


def fields(**changes: Any) -> Fields:
    return Fields({**OBJECT, **changes}, what="the thing")


def test_fields_give_what_is_there() -> None:
    given = fields()
    assert given.text("text") == "a b"
    assert given.match("text", re.compile("a.b")) == "a b"
    assert given.integer("number") == 7
    assert given.flag("flag") is True
    assert given.array("mixed", limit=2) == ["x", 1]
    assert given.texts("list", limit=2) == ("x", "y")
    assert given.object("object", limit=1) == {"inner": "x"}
    assert given.fields("object").text("inner") == "x"
    assert given.hex_id("id") == OBJECT["id"]
    assert given.sha256("sha") == b"\x0f" * 32
    assert given.data("data", limit=3) == b"foo"


def test_fields_that_nobody_asked_for_are_told() -> None:
    given = Fields({"a": 1, "b": 2, "c": 3}, what="the thing")
    assert given.others("a", "b") == {"c": 3}
    assert given.others("a", "b", "c") == {}


WRONG: dict[str, Callable[[Fields], object]] = {
    "a missing field": lambda f: f.text("absent"),
    "text for a number": lambda f: f.integer("text"),
    "a flag for a number": lambda f: f.integer("flag"),
    "a number for a flag": lambda f: f.flag("number"),
    "null for text": lambda f: f.text("none"),
    "a number for text": lambda f: f.text("number"),
    "an object for a list": lambda f: f.array("object", limit=9),
    "a list for an object": lambda f: f.object("list", limit=9),
    "a list for fields": lambda f: f.fields("list"),
    "a fraction": lambda f: f.integer("fraction"),
    "text that does not match": lambda f: f.match("text", re.compile("a")),
    "an id that is none": lambda f: f.hex_id("text"),
    "an id of another length": lambda f: f.hex_id("sha"),
    "a hash of another length": lambda f: f.sha256("id"),
    "data that is not base64": lambda f: f.data("text", limit=9),
    "data beyond the limit": lambda f: f.data("data", limit=2),
    "data far beyond the limit": lambda f: f.data("sha", limit=2),
    "a list beyond the limit": lambda f: f.array("list", limit=1),
    "an object beyond the limit": lambda f: f.object("object", limit=0),
    "text beyond the limit": lambda f: f.text("text", limit=2),
    "other things among texts": lambda f: f.texts("mixed", limit=9),
    "a field of an inner object": lambda f: f.fields("object").integer("inner"),
}


@pytest.mark.parametrize("read", WRONG.values(), ids=WRONG)
def test_a_wrong_field_is_refused_by_name(read: Callable[[Fields], object]) -> None:
    with pytest.raises(ManifestError, match=r"^the thing"):
        read(fields())


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "a\tb", "\x7f", "\x9b1m", "\u202eabc", "\u2028", "\0"])
def test_text_that_could_steer_a_terminal_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="control characters"):
        fields(text=text).text("text")


def test_a_default_limit_holds_for_text() -> None:
    assert len(fields(text="x" * MAX_TEXT).text("text")) == MAX_TEXT
    with pytest.raises(ManifestError, match="longer than"):
        fields(text="x" * (MAX_TEXT + 1)).text("text")


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_what_is_no_object_has_no_fields(value: object) -> None:
    with pytest.raises(ManifestError, match="the thing is not an object"):
        Fields(value, what="the thing")


def test_the_reader_chooses_error_and_code() -> None:
    with pytest.raises(IntegrityError) as refused:
        Fields({"o": {}}, what="a ring", error=IntegrityError, code="keyring-damaged").fields("o").text("x")
    assert type(refused.value) is IntegrityError
    assert refused.value.code == "keyring-damaged"
    assert str(refused.value).startswith("a ring, o lacks")


def test_errors_do_not_repeat_long_names() -> None:
    name = "x" * 100_000
    for read in (Fields.integer, Fields.sha256):
        for value in ({}, {name: "text"}):
            with pytest.raises(EncpipeError) as refused:
                read(Fields(value, what="the thing"), name)
            assert len(str(refused.value)) < 200


def test_the_parser_is_the_strict_one_everywhere() -> None:
    package = Path(strictjson.__file__).parent
    lax = re.compile(r"(?<!strict)json\.loads?\(")
    found = {path.name for path in package.rglob("*.py") if lax.search(path.read_text())}
    from_our_own_parent = {"shredchild.py"}  # storage options may hold what strict JSON does not
    assert found == {"strictjson.py"} | from_our_own_parent
