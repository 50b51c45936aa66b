"""A dictionary, a codec: used where it makes the file smaller, judged by a sample of the first row group."""

from __future__ import annotations

import math
import random

import pyarrow as pa
import pytest

from encpipe.parquet import SchemaOnDisk
from encpipe.parquet.encoding import SAMPLE_VALUES, codecs, dictionary_leaves, expected_share

ROWS = 50_000
DRAW = random.Random(0)


def chosen(column: pa.Array) -> bool:
    table = pa.table({"x": column})
    leaves = SchemaOnDisk(table.schema).leaves
    return dictionary_leaves(table, leaves) == list(leaves)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([DRAW.random() for _ in range(ROWS)]), False),
        (pa.array(range(ROWS)), False),
        (pa.array([DRAW.randrange(100) for _ in range(ROWS)]), True),
        (pa.array([f"word {DRAW.randrange(5_000)}" for _ in range(ROWS)]), True),
        (pa.array([f"id {n}" for n in range(ROWS)]), False),
        (pa.array([DRAW.randbytes(2_000) for _ in range(500)]), False),
        (pa.array([None] * ROWS, pa.int64()), True),
        (pa.array([[DRAW.randrange(1_000) for _ in range(50)] for _ in range(1_000)]), True),
        (pa.array([[DRAW.random() for _ in range(50)] for _ in range(1_000)]), False),
        (pa.array(["a", "b"] * 100).dictionary_encode(), True),
        (pa.array([True, False] * 100), True),
    ],
    ids=[
        "reals",
        "counter",
        "few",
        "words",
        "ids",
        "blobs",
        "nulls",
        "tokens",
        "vectors",
        "categories",
        "flags",
    ],
)
def test_only_where_it_pays(column: pa.Array, expected: bool) -> None:
    assert chosen(column) is expected


def test_columns_inside_structs_and_maps_are_left_to_pyarrow() -> None:
    table = pa.table({"s": [{"x": n, "y": str(n)} for n in range(ROWS)], "x": range(ROWS)})
    assert dictionary_leaves(table, ("s.x", "s.y", "x")) == ["s.x", "s.y"]


def test_an_empty_file_has_no_opinion() -> None:
    assert chosen(pa.array([], pa.int64()))


@pytest.mark.parametrize("values", [10, 1_000, 100_000])
def test_the_number_of_values_is_estimated_from_the_sample(values: int) -> None:
    """Against the size that a dictionary of just these values would have."""
    total, width = 1_000_000, 8.0
    distinct = len({DRAW.randrange(values) for _ in range(SAMPLE_VALUES)})
    share = expected_share(distinct, SAMPLE_VALUES, width, total)
    if values * width > 1 << 20:
        assert share == math.inf
    else:
        index = math.ceil(math.log2(values + 1)) / 8
        assert share == pytest.approx((values * width + total * index) / (total * width), rel=0.1)


def test_a_column_that_does_not_shrink_is_not_compressed() -> None:
    table = pa.table(
        {
            "noise": [DRAW.randbytes(1_000) for _ in range(500)],
            "text": [f"the same words, and number {n}" for n in range(500)],
            "nested": [{"noise": DRAW.randbytes(100), "zeros": b"0" * 100} for _ in range(500)],
        }
    )
    leaves = SchemaOnDisk(table.schema).leaves
    wanted = {"noise": "none", "text": "zstd", "nested.noise": "none", "nested.zeros": "zstd"}
    assert codecs(table, leaves, "zstd", dictionary_leaves(table, leaves)) == wanted
    assert set(codecs(table, leaves, "none", []).values()) == {"none"}
    assert set(codecs(table.slice(0, 0), leaves, "zstd", []).values()) == {"zstd"}


def test_not_only_the_first_rows_decide() -> None:
    noise, zeros = [DRAW.randbytes(1_000) for _ in range(2_500)], [b"0" * 1_000] * 10_000
    assert codecs(pa.table({"x": noise + zeros}), ("x",), "snappy", []) == {"x": "snappy"}


def test_of_long_values_a_few_decide() -> None:
    table = pa.table({"x": [b"0" * (1 << 20)] * 64})
    assert codecs(table, ("x",), "snappy", []) == {"x": "snappy"}
