"""What becomes of each Arrow type and of nulls. Pure: no dataset, no keys."""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from encpipe.errors import ConfigError, EncpipeError
from encpipe.torch.conversion import Conversion, Converter, Nulls

NUMBERS = {
    pa.int8(): "int8",
    pa.int16(): "int16",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.uint8(): "uint8",
    pa.uint16(): "uint16",
    pa.uint32(): "uint32",
    pa.uint64(): "uint64",
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
}


def convert(array: pa.Array | pa.ChunkedArray, nulls: Nulls = "error", **choices: Any) -> dict[str, Any]:
    table = pa.table({"x": array})
    converter = Converter(table.schema, nulls, conversion=Conversion(**choices))
    return converter.finish(converter.load(table))


def fixed(values: list[Any], size: int, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, pa.list_(kind or pa.int32(), size))


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_a_number_keeps_its_type(kind: pa.DataType) -> None:
    array = pa.array(np.arange(5, dtype=np.dtype(NUMBERS[kind])), kind).slice(1)
    found = convert(array)["x"]
    assert found.dtype == getattr(torch, NUMBERS[kind])
    assert found.tolist() == [1, 2, 3, 4]


def test_bool_stays_bool_wherever_the_slice_starts() -> None:
    found = convert(pa.array([True, False, True, True, False]).slice(3))["x"]
    assert found.dtype == torch.bool
    assert found.tolist() == [True, False]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.date32(), dt.date(1970, 1, 11), 10),
        (pa.date64(), dt.date(1970, 1, 2), 86_400_000),
        (pa.time32("s"), dt.time(0, 1), 60),
        (pa.time64("us"), dt.time(0, 0, 1), 1_000_000),
        (pa.timestamp("ms"), dt.datetime(1970, 1, 1, 0, 0, 2), 2_000),
        (pa.timestamp("s", "America/New_York"), dt.datetime(1970, 1, 1, 1, tzinfo=dt.UTC), 3_600),
        (pa.duration("ns"), dt.timedelta(microseconds=3), 3_000),
    ],
    ids=str,
)
def test_a_point_in_time_is_an_int64_count_of_its_unit(kind: pa.DataType, value: Any, expected: int) -> None:
    found = convert(pa.array([value, value], kind).slice(1))["x"]
    assert found.dtype == torch.int64
    assert found.tolist() == [expected]


def test_a_fixed_size_list_is_two_dimensional() -> None:
    found = convert(fixed([[1, 2, 3], [4, 5, 6], [7, 8, 9]], 3).slice(1))["x"]
    assert found.shape == (2, 3)
    assert found.tolist() == [[4, 5, 6], [7, 8, 9]]


def test_fixed_size_lists_of_fixed_size_lists_get_a_dimension_each() -> None:
    found = convert(fixed([[[1, 2], [3, 4], [5, 6]]], 3, pa.list_(pa.int8(), 2)))["x"]
    assert found.shape == (1, 3, 2)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_strings_are_a_list(kind: pa.DataType) -> None:
    assert convert(pa.array(["a", "", "ä"], kind))["x"] == ["a", "", "ä"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)], ids=str)
def test_binaries_are_a_list(kind: pa.DataType) -> None:
    assert convert(pa.array([b"ab", b"cd"], kind))["x"] == [b"ab", b"cd"]


def test_a_dictionary_column_gives_its_values_even_if_the_dictionary_changes() -> None:
    words = pa.chunked_array(
        [pa.array(["u", "v", "u"]).dictionary_encode(), pa.array(["w"]).dictionary_encode()]
    )
    assert convert(words)["x"] == ["u", "v", "u", "w"]
    assert convert(pa.array([7, 8, 7]).dictionary_encode())["x"].tolist() == [7, 8, 7]


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (pa.array([[["a"]]]), "columns="),
        (pa.array([decimal.Decimal("1.5")]), "float64"),
        (pa.array([{"a": 1}]), "columns="),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "columns="),
        (pa.nulls(2), "columns="),
        (fixed([["a"]], 1, pa.string()), "columns="),
    ],
    ids=["list of lists", "decimal", "struct", "map", "null", "strings in a fixed-size list"],
)
def test_what_no_tensor_can_hold_is_refused_before_anything_is_read(array: pa.Array, hint: str) -> None:
    with pytest.raises(EncpipeError, match="column 'x'") as caught:
        Converter(pa.table({"x": array}).schema)
    assert caught.value.code == "unsupported"
    assert hint in caught.value.hint


def test_a_null_is_refused_by_default_and_names_the_column() -> None:
    with pytest.raises(ConfigError, match="column 'x' has nulls") as caught:
        convert(pa.array([1, None]))
    assert caught.value.code == "nulls"
    assert 'nulls="mask"' in caught.value.hint


@pytest.mark.parametrize(
    ("array", "values", "mask"),
    [
        (pa.array([5, None, 7]), [5, 0, 7], [True, False, True]),
        (pa.array([None, 1.5], pa.float16()), [0.0, 1.5], [False, True]),
        (pa.array([None, True]), [False, True], [False, True]),
        (pa.array([None, dt.date(1970, 1, 2)]), [0, 1], [False, True]),
        (fixed([[1, 2], None], 2), [[1, 2], [0, 0]], [[True, True], [False, False]]),
        (fixed([None, [1, None]], 2), [[0, 0], [1, 0]], [[False, False], [True, False]]),
        (
            fixed([None, [[1, None]]], 1, pa.list_(pa.int8(), 2)),
            [[[0, 0]], [[1, 0]]],
            [[[False, False]], [[True, False]]],
        ),
    ],
    ids=["int", "float16", "bool", "date", "list", "list with null elements", "nested list"],
)
def test_a_mask_is_true_where_there_is_a_value(array: pa.Array, values: list[Any], mask: list[Any]) -> None:
    found = convert(array, "mask")
    assert found["x"].tolist() == values
    assert found["x_mask"].tolist() == mask
    assert found["x_mask"].dtype == torch.bool


def test_what_lies_under_a_null_list_is_not_shown() -> None:
    array = pa.FixedSizeListArray.from_arrays(
        pa.array([1, 2, 3, 4, 5, 6]), 2, mask=pa.array([False, True, False])
    )
    found = convert(array.slice(1), "mask")
    assert found["x"].tolist() == [[0, 0], [5, 6]]
    assert found["x_mask"].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array(["a", None]), ["a", ""]),
        (pa.array(["a", None]).dictionary_encode(), ["a", ""]),
        (pa.array([b"a", None], pa.binary_view()), [b"a", b""]),
        (pa.array([b"ab", None], pa.binary(2)), [b"ab", b"\0\0"]),
    ],
    ids=["string", "dictionary", "binary", "fixed-size binary"],
)
def test_masked_text_is_empty(array: pa.Array, values: list[Any]) -> None:
    found = convert(array, "mask")
    assert found["x"] == values
    assert found["x_mask"].tolist() == [True, False]


def test_the_names_of_a_batch_do_not_depend_on_its_nulls() -> None:
    schema = pa.schema([pa.field("a", pa.int8()), pa.field("b", pa.int8(), nullable=False)])
    converter = Converter(schema, "mask")
    whole = converter.finish(converter.load(pa.table([[1], [2]], schema=schema)))
    assert list(whole) == ["a", "a_mask", "b"]
    assert whole["a_mask"].tolist() == [True]
    assert list(converter.finish(converter.load(pa.table([[None], [2]], schema=schema)))) == list(whole)


@pytest.mark.parametrize(
    ("array", "number", "values"),
    [
        (pa.array([1, None], pa.int8()), -1, [1, -1]),
        (pa.array([1, None], pa.int8()), 3.0, [1, 3]),
        (pa.array([1.0, None], pa.float32()), 0.5, [1.0, 0.5]),
        (pa.array([True, None]), 1, [True, True]),
        (fixed([None, [1, None]], 2), 9, [[9, 9], [1, 9]]),
    ],
    ids=["int", "whole float in int", "float", "bool", "list"],
)
def test_a_number_takes_the_place_of_nulls(array: pa.Array, number: float, values: list[Any]) -> None:
    found = convert(array, number)
    assert found["x"].tolist() == values
    assert list(found) == ["x"]


def test_nan_takes_the_place_of_nulls_in_floats() -> None:
    assert math.isnan(convert(pa.array([None, 1.0]), math.nan)["x"][0])


@pytest.mark.parametrize(
    ("array", "number"),
    [
        (pa.array([None], pa.uint8()), -1),
        (pa.array([None], pa.int64()), 0.5),
        (pa.array([None], pa.int64()), math.nan),
        (pa.array([None], pa.int64()), 2**70),
        (pa.array([None], pa.bool_()), 2),
        (pa.array([None], pa.string()), 0),
    ],
    ids=["negative", "fraction", "nan", "too long", "bool", "string"],
)
def test_a_number_that_the_column_cannot_hold_is_refused(array: pa.Array, number: float) -> None:
    with pytest.raises(ConfigError, match="column 'x' has nulls, and") as caught:
        convert(array, number)
    assert caught.value.code == "nulls"


@pytest.mark.parametrize("nulls", ["zero", True, None])
def test_other_ways_to_treat_nulls_are_refused(nulls: Any) -> None:
    with pytest.raises(ConfigError, match="nulls is"):
        convert(pa.array([1]), nulls)


TWO = pa.table({"a": [1, None], "b": [None, 0.5], "text": ["u", "v"]})


def test_each_column_may_have_its_own_rule_for_nulls() -> None:
    converter = Converter(TWO.schema, {"b": np.float32(-1), "a": "mask"})
    found = converter.finish(converter.load(TWO))
    assert list(found) == ["a", "a_mask", "b", "text"]
    assert found["a"].tolist() == [1, 0]
    assert found["a_mask"].tolist() == [True, False]
    assert found["b"].tolist() == [-1, 0.5]


@pytest.mark.parametrize(
    "nulls", [{"a": 0}, {"a": "mask", "b": "error"}, {"a": 0, "text": "mask"}, {}], ids=str
)
def test_nulls_of_columns_without_a_rule_are_refused(nulls: Nulls) -> None:
    converter = Converter(TWO.schema, nulls)
    with pytest.raises(ConfigError, match=r"column 'b' has nulls" if nulls else "'a' has nulls") as caught:
        converter.load(TWO)
    assert caught.value.code == "nulls"
    assert "nulls={'b': \"mask\"}" in caught.value.hint or not nulls


@pytest.mark.parametrize(("name", "hint"), [("Text", "did you mean 'text'?"), (3, "known keys: a, b, text")])
def test_a_rule_for_the_nulls_of_a_column_that_there_is_not_is_refused(name: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"column {name!r}, which is not read") as caught:
        Converter(TWO.schema, {"a": 0, name: 0})
    assert caught.value.hint == hint


@pytest.mark.parametrize("rule", ["zero", True, None, {"b": 0}], ids=str)
def test_other_rules_for_the_nulls_of_a_column_are_refused(rule: Any) -> None:
    with pytest.raises(ConfigError, match=r"nulls\['b'\] is"):
        Converter(TWO.schema, {"a": 0, "b": rule})


def test_a_mask_does_not_hide_a_column_of_the_same_name() -> None:
    with pytest.raises(ConfigError, match="'x_mask'"):
        Converter(pa.schema({"x": pa.int8(), "x_mask": pa.bool_()}), "mask")


def test_no_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="no column"):
        Converter(pa.schema([]))


def test_tensors_can_be_written_to_without_a_warning_or_harm() -> None:
    table = pa.table({"a": np.arange(8), "b": [True] * 8, "c": [None, *range(7)]})
    converter = Converter(table.schema, nulls=0)
    first, second = (converter.finish(converter.load(table.slice(n, 4))) for n in (0, 4))
    for tensor in first.values():
        tensor.zero_()
    assert second["a"].tolist() == [4, 5, 6, 7]
    assert second["c"].tolist() == [3, 4, 5, 6]


def test_numbers_without_nulls_are_not_copied() -> None:
    array = pa.array(np.arange(8))
    found = convert(array.slice(2, 3))["x"]
    assert found.data_ptr() == array.buffers()[1].address + 16


DECIMALS = [decimal.Decimal("-1.50"), None, decimal.Decimal("2.25")]
DECIMAL_TYPES = [pa.decimal32(5, 2), pa.decimal64(12, 2), pa.decimal128(20, 2), pa.decimal256(50, 2)]


@pytest.mark.parametrize("kind", DECIMAL_TYPES, ids=str)
def test_a_decimal_is_its_unscaled_integer_or_a_float(kind: pa.DataType) -> None:
    array = pa.array([DECIMALS[2], *DECIMALS], kind).slice(1)
    unscaled = convert(array, "mask", decimals="int64")
    assert unscaled["x"].tolist() == [-150, 0, 225]
    assert unscaled["x"].dtype == torch.int64
    assert unscaled["x_mask"].tolist() == [True, False, True]
    real = convert(array, "mask", decimals="float64")
    assert real["x"].tolist() == [-1.5, 0, 2.25]
    assert real["x"].dtype == torch.float64


@pytest.mark.parametrize("kind", [pa.decimal128(38, 0), pa.decimal256(60, 0)], ids=str)
@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64 + 5])
def test_an_unscaled_integer_beyond_int64_is_refused(kind: pa.DataType, value: int) -> None:
    with pytest.raises(EncpipeError, match="beyond int64") as caught:
        convert(pa.array([1, value], pa.decimal128(38, 0)).cast(kind), decimals="int64")
    assert caught.value.code == "unsupported"
    edges = pa.array([2**63 - 1, -(2**63)], pa.decimal128(38, 0)).cast(kind)
    assert convert(edges, decimals="int64")["x"].tolist() == [2**63 - 1, -(2**63)]


def test_what_lies_under_a_null_decimal_is_no_matter() -> None:
    whole = pa.array([2**80, 7], pa.decimal128(38, 0))
    array = pa.Array.from_buffers(whole.type, 2, [pa.py_buffer(b"\x02"), whole.buffers()[1]])
    assert convert(array, "mask", decimals="int64")["x"].tolist() == [0, 7]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_text_may_stay_in_arrow(kind: pa.DataType) -> None:
    array = pa.array(["a", None, "c", "d"], pa.string()).cast(kind)
    table = pa.table({"x": array})
    converter = Converter(table.schema, "mask", conversion=Conversion(strings="arrow"))
    first, second = converter.split(converter.load(table), 3)
    assert isinstance(first["x"], pa.Array)
    assert first["x"].cast(pa.string()).to_pylist() == ["a", "", "c"]
    assert first["x_mask"].tolist() == [True, False, True]
    assert second["x"].cast(pa.string()).to_pylist() == ["d"]


EVERY = {
    "int": pa.array([1, None, 3, 4, 5], pa.int16()),
    "real": pa.array([0.5, 1.5, None, 3.5, 4.5]),
    "flag": pa.array([True, False, None, True, True]),
    "time": pa.array([1, 2, 3, None, 5], pa.timestamp("us")),
    "day": pa.array([1, 2, 3, 4, None], pa.date32()),
    "pair": pa.array([[1, 2], None, [3, 4], [5, None], [7, 8]], pa.list_(pa.float32(), 2)),
    "wide": pa.array([[n] * 40 for n in range(5)], pa.list_(pa.int64(), 40)),
    "list": pa.array([[1], None, [], [2, 3], [4]]),
    "price": pa.array([decimal.Decimal(n) / 4 for n in range(5)], pa.decimal128(10, 2)),
    "text": pa.array(["a", None, "c", "d", "e"]),
    "blob": pa.array([b"a", b"", None, b"d", b"e"]),
    "word": pa.array(["u", "v", "u", None, "v"]).dictionary_encode(),
    "level": pa.array([7, 8, None, 7, 8]).dictionary_encode(),
}
CHOICES = [
    Conversion(decimals="int64"),
    Conversion(decimals="float64", lists="pad", strings="arrow", dtypes={"real": torch.float32}),
]


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return list(found) == list(expected) and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        if isinstance(value, torch.Tensor)
        else found[name] == value
        for name, value in expected.items()
    )


@pytest.mark.parametrize("choice", CHOICES, ids=["offsets", "pad"])
@pytest.mark.parametrize("borders", [[0, 2, 5], [0, 1, 2, 5], [0, 0, 4, 5], [0, 5, 5]], ids=str)
def test_chunks_do_not_matter(choice: Conversion, borders: list[int]) -> None:
    table = pa.table(EVERY)
    parts = [table.slice(start, stop - start) for start, stop in itertools.pairwise(borders)]
    chunked = pa.concat_tables(parts)
    assert chunked["int"].num_chunks == len(parts)
    converter = Converter(table.schema, "mask", conversion=choice, stack={"x": ["int", "pair"]})
    found, expected = (converter.finish(converter.load(one)) for one in (chunked, table))
    assert same(found, expected)


@pytest.mark.parametrize("choice", CHOICES, ids=["offsets", "pad"])
def test_no_rows_have_the_names_types_and_dimensions_of_some(choice: Conversion) -> None:
    table = pa.table(EVERY)
    converter = Converter(table.schema, "mask", conversion=choice, stack={"x": ["int", "pair"]})
    some = converter.finish(converter.load(table))
    for empty in (table.schema.empty_table(), table.slice(2, 0)):
        none = converter.finish(converter.load(empty))
        assert list(none) == list(some)
        for name, value in some.items():
            if isinstance(value, torch.Tensor):
                assert (none[name].dtype, none[name].dim()) == (value.dtype, value.dim()), name
                assert len(none[name]) == (1 if name.endswith("_offsets") else 0)
        assert converter.split(converter.load(empty), 3) == []


def test_batches_are_views_of_equal_rows_and_the_last_is_shorter() -> None:
    table = pa.table({"x": np.arange(10), "s": [str(n) for n in range(10)]})
    converter = Converter(table.schema)
    batches = converter.split(converter.load(table), 4)
    assert [batch["x"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch["s"] for batch in batches] == [list("0123"), list("4567"), list("89")]
    assert batches[1]["x"].data_ptr() == batches[0]["x"].data_ptr() + 32


def test_samples_are_rows_by_themselves() -> None:
    table = pa.table(EVERY)
    converter = Converter(table.schema, "mask", conversion=CHOICES[0], stack={"x": ["int", "flag"]})
    found = converter.samples(converter.load(table))
    assert len(found) == 5
    assert found[3]["real"] == torch.tensor(3.5, dtype=torch.float64)
    assert found[3]["list"].tolist() == [2, 3]
    assert found[1]["list"].tolist() == []
    assert found[3]["x"].tolist() == [4, 1]
    assert found[3]["text"] == "d"
    assert found[2]["text_mask"].item() is True
    assert found[1]["pair"].tolist() == [0, 0]


@pytest.mark.parametrize("nulls", [0, 50], ids=["no nulls", "nulls"])
@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.dictionary(pa.int16(), pa.string())], ids=str)
def test_text_that_repeats_is_the_same_text_in_objects_that_are_shared(kind: pa.DataType, nulls: int) -> None:
    words = [None if nulls and n % nulls == 0 else f"word {n % 9}" for n in range(3000)]
    column = pa.chunked_array([pa.array(part).cast(kind) for part in (words[:1000], words[1000:])])
    expected = [word or "" for word in words]
    if kind == pa.binary():
        expected = [word.encode() for word in expected]  # type: ignore[misc] # bytes now
    converter = Converter(pa.schema({"x": kind}), "mask")
    found = converter.finish(converter.load(pa.table({"x": column})))
    assert found["x"] == expected
    assert found["x_mask"].tolist() == [word is not None for word in words]
    assert len({id(word) for word in found["x"]}) <= 10


def test_a_dictionary_may_hold_null_itself() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 1, 1]), pa.array(["u", None]))
    found = convert(array, "mask")
    assert found["x"] == ["u", "", "u", "", ""]
    assert found["x_mask"].tolist() == [True, False, True, False, False]
    with pytest.raises(ConfigError, match="has nulls"):
        convert(array)


@pytest.mark.parametrize(
    "column", [pa.array([1.5, None, 3.5]), pa.nulls(3, pa.float64())], ids=["some", "all"]
)
def test_filling_nulls_leaves_the_table_with_its_nulls(column: pa.Array) -> None:
    table = pa.table({"a": column.slice(1)})
    before = table["a"].to_pylist()
    made = Converter(table.schema, 7).load(table)["a"]
    assert made.tolist() == [7.0 if value is None else value for value in before]
    assert table["a"].to_pylist() == before
    assert pc.is_null(table["a"]).to_pylist() == [value is None for value in before]
