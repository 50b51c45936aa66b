"""Stacks: named columns packed into one tensor, names that collide, casts."""

from __future__ import annotations

import decimal
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from encpipe.errors import ConfigError
from encpipe.torch.conversion import Conversion, Converter, Nulls

TABLE = pa.table(
    {
        "a": pa.array([1, 2, 3], pa.int32()),
        "b": pa.array([0.5, None, 2.5], pa.float32()),
        "flag": pa.array([True, False, True]),
        "pair": pa.array([[10, 11], [20, 21], [30, 31]], pa.list_(pa.int64(), 2)),
        "name": ["u", "v", "w"],
        "list": [[1], [], [2, 3]],
    }
)


def convert(stack: dict[str, list[str]], nulls: Nulls = 0, **choices: Any) -> dict[str, Any]:
    converter = Converter(TABLE.schema, nulls, stack=stack, conversion=Conversion(**choices))
    return converter.finish(converter.load(TABLE))


def test_columns_are_packed_in_the_order_asked_for_and_not_given_on_their_own() -> None:
    found = convert({"x": ["pair", "a", "flag"]})
    assert found["x"].tolist() == [[10, 11, 1, 1], [20, 21, 2, 0], [30, 31, 3, 1]]
    assert found["x"].is_contiguous()
    assert list(found) == ["b", "name", "list", "list_offsets", "x"]


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [
        (["a", "flag"], torch.int32),
        (["a", "b"], torch.float64),
        (["a", "pair"], torch.int64),
        (["flag"], torch.bool),
    ],
    ids=str,
)
def test_the_type_is_the_one_that_holds_all_columns(columns: list[str], dtype: torch.dtype) -> None:
    assert convert({"x": columns})["x"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8])
def test_the_type_can_be_chosen(dtype: torch.dtype) -> None:
    found = convert({"x": ["a", "b"]}, dtypes={"x": dtype})["x"]
    assert found.dtype == dtype
    assert torch.equal(found, torch.tensor([[1, 0.5], [2, 0], [3, 2.5]]).to(dtype))


def test_types_that_have_none_in_common_are_refused() -> None:
    schema = pa.schema({"a": pa.uint64(), "b": pa.int64()})
    with pytest.raises(ConfigError, match="no common type") as caught:
        Converter(schema, stack={"x": ["a", "b"]})
    assert "dtypes" in caught.value.hint
    Converter(schema, stack={"x": ["a", "b"]}, conversion=Conversion(dtypes={"x": torch.float64}))


def test_the_mask_has_a_column_for_each() -> None:
    found = convert({"x": ["pair", "b"]}, "mask")
    assert found["x"].tolist() == [[10, 11, 0.5], [20, 21, 0], [30, 31, 2.5]]
    assert found["x_mask"].tolist() == [[True] * 3, [True, True, False], [True] * 3]


def test_a_column_whose_nulls_a_number_fills_is_true_in_the_mask_of_the_others() -> None:
    table = pa.table({"a": [1, None], "b": [None, 2]})
    converter = Converter(table.schema, {"a": "mask", "b": 7}, stack={"x": ["a", "b"]})
    found = converter.finish(converter.load(table))
    assert found["x"].tolist() == [[1, 7], [0, 2]]
    assert found["x_mask"].tolist() == [[True, True], [False, True]]


def test_columns_that_hold_no_nulls_need_no_mask() -> None:
    schema = pa.schema([pa.field("a", pa.int8(), nullable=False)])
    converter = Converter(schema, "mask", stack={"x": ["a"]})
    assert list(converter.finish(converter.load(pa.table([[1]], schema=schema)))) == ["x"]


def test_a_null_is_refused_and_names_its_column() -> None:
    with pytest.raises(ConfigError, match="column 'b' has nulls"):
        convert({"x": ["a", "b"]}, "error")


def test_a_number_fills_the_nulls_of_a_stack() -> None:
    assert convert({"x": ["a", "b"]}, -1.5)["x"].tolist() == [[1, 0.5], [2, -1.5], [3, 2.5]]


def test_nulls_in_lists_and_in_every_block_of_rows_are_filled() -> None:
    rows = 10_000  # more than are written at once
    flat: list[int | None] = [None if n % 7 == 0 else n for n in range(2 * rows)]
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(flat), 2)
    column = pa.chunked_array([pairs.slice(0, 6_001), pairs.slice(6_001)])
    table = pa.table({"a": pa.array([None, *range(rows - 1)]), "pair": column})
    converter = Converter(table.schema, "mask", stack={"x": ["a", "pair"]})
    expected = np.array(
        [[n - 1 if n else 0, flat[2 * n] or 0, flat[2 * n + 1] or 0] for n in range(rows)], np.int64
    )
    valid = np.array([[n > 0, 2 * n % 7 != 0, (2 * n + 1) % 7 != 0] for n in range(rows)])
    found = converter.finish(converter.load(table))
    assert np.array_equal(found["x"].numpy(), expected)
    assert np.array_equal(found["x_mask"].numpy(), valid)


def test_decimals_are_stacked_as_chosen() -> None:
    table = pa.table({"d": [decimal.Decimal("1.50")], "n": [2]})
    converter = Converter(table.schema, stack={"x": ["d", "n"]}, conversion=Conversion(decimals="float64"))
    assert converter.finish(converter.load(table))["x"].tolist() == [[1.5, 2]]


def test_a_column_may_be_in_two_stacks_and_a_stack_called_as_one_of_its_columns() -> None:
    found = convert({"x": ["a", "flag"], "a": ["a"]})
    assert found["x"].shape == (3, 2)
    assert found["a"].tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("stack", "message", "hint"),
    [
        ({"x": ["a", "pear"]}, "'pear'", "'pair'"),
        ({"x": ["name"]}, "'name'", "leave it out"),
        ({"x": ["list"]}, "'list'", "leave it out"),
        ({"x": []}, "list of different columns", ""),
        ({"x": ["a", "a"]}, "list of different columns", ""),
        ({"x": "a"}, "list of different columns", ""),
        ({"b": ["a"]}, "'b'", "another name"),
        ({"list_offsets": ["a"]}, "'list_offsets'", "another name"),
        ({"x": ["a", "b"], "x_mask": ["flag"]}, "'x_mask'", "another name"),
    ],
    ids=str,
)
def test_stacks_that_cannot_be_are_refused_before_anything_is_read(
    stack: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Converter(TABLE.schema, "mask", stack=stack)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (pa.schema({"x": pa.list_(pa.int8()), "x_offsets": pa.int8()}), "x_offsets"),
        (pa.schema({"x": pa.int8(), "x_mask": pa.int8()}), "x_mask"),
        (pa.schema([pa.field("x", pa.string()), pa.field("x_mask", pa.bool_())]), "x_mask"),
    ],
    ids=["offsets", "mask", "mask of strings"],
)
def test_two_things_of_one_name_are_refused(schema: pa.Schema, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Converter(schema, "mask")


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ({"bb": torch.float32}, "'bb'"),
        ({"name": torch.float32}, "'name'"),
        ({"a": torch.float32}, "'a'"),
        ({"b": "float32"}, "torch.dtype"),
    ],
    ids=str,
)
def test_casts_of_what_is_no_tensor_of_the_batch_are_refused(dtypes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Converter(TABLE.schema, 0, stack={"x": ["a"]}, conversion=Conversion(dtypes=dtypes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool], ids=str)
def test_a_cast_is_what_torch_makes_of_it(dtype: torch.dtype) -> None:
    names = {"a": dtype, "b": dtype, "flag": dtype, "pair": dtype}
    plain, cast = (convert({}, dtypes=chosen) for chosen in ({}, names))
    for name in names:
        assert cast[name].dtype == dtype
        assert torch.equal(cast[name], plain[name].to(dtype)), name


def test_a_mask_can_be_cast() -> None:
    assert convert({}, "mask", dtypes={"b_mask": torch.float32})["b_mask"].tolist() == [1, 0, 1]


def test_a_converter_crosses_processes() -> None:
    converter = Converter(
        TABLE.schema, "mask", stack={"x": ["a", "b"]}, conversion=Conversion(dtypes={"x": torch.float64})
    )
    copy = pickle.loads(pickle.dumps(converter))
    found, expected = (one.finish(one.load(TABLE)) for one in (copy, converter))
    assert list(found) == list(expected)
    assert torch.equal(found["x"], expected["x"])


@pytest.mark.parametrize("choice", [{"lists": "ragged"}, {"decimals": "str"}, {"strings": "numpy"}], ids=str)
def test_choices_that_there_are_not_are_refused(choice: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=min(choice)):
        Conversion(**choice)
