"""Which columns a filter refers to: all of them, and no others; never by position."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from encpipe.errors import ConfigError
from encpipe.projection import filter_columns

SCHEMA = pa.schema(
    {
        "a": pa.int64(),
        "ab": pa.string(),
        "s": pa.struct({"x": pa.int64(), "y": pa.string()}),
        "with blank": pa.int64(),
        "z": pa.bool_(),
    }
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (pc.field("a") > 1, ["a"]),
        (pc.field("ab") == "a", ["ab"]),
        (pc.field("ab") == "z", ["ab"]),
        ((pc.field("z")) & ~(pc.field("a") + pc.field("with blank") > 3), ["a", "with blank", "z"]),
        (pc.field("s", "x") > 1, ["s"]),
        (pc.is_in(pc.field("a"), pa.array([1, 2])), ["a"]),
        (pc.field("a").is_null() | pc.field("z").is_valid(), ["a", "z"]),
        (pc.scalar(True), []),
    ],
    ids=str,
)
def test_all_that_are_named_and_no_others(expression: pc.Expression, expected: list[str]) -> None:
    assert list(filter_columns(expression, SCHEMA)) == expected


@pytest.mark.parametrize(
    "expression", [pc.field(0) > 1, (pc.field("a") > 1) & (pc.field(0) < 5), pc.field(("s", 0)) > 1]
)
def test_a_column_by_its_position_is_refused(expression: pc.Expression) -> None:
    with pytest.raises(ConfigError, match="by its position") as refused:
        filter_columns(expression, SCHEMA)
    assert refused.value.code == "filter"


@pytest.mark.parametrize(
    "expression", [pc.field("b") > 1, pc.field("ab") > 1, pc.field("s", "q") > 1], ids=str
)
def test_what_does_not_fit_is_refused(expression: pc.Expression) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        filter_columns(expression, SCHEMA)


def test_five_thousand_columns_take_no_time() -> None:
    schema = pa.schema({f"column {n}": pa.int64() for n in range(5_000)})
    started = time.thread_time()
    assert filter_columns(pc.field("column 4321") > 1, schema) == ("column 4321",)
    assert time.thread_time() - started < 2
