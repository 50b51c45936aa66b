"""Lists of different lengths: offsets or padding, nulls, elements of every kind."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import pyarrow as pa
import pytest
import torch

from encpipe.errors import ConfigError, EncpipeError
from encpipe.torch.conversion import Conversion, Converter, Nulls
from encpipe.torch.leaves import Lists


def convert(
    array: pa.Array | pa.ChunkedArray, lists: Lists = "offsets", nulls: Nulls = "error", **choices: Any
) -> dict[str, Any]:
    table = pa.table({"x": array})
    converter = Converter(table.schema, nulls, conversion=Conversion(lists=lists, **choices))
    return converter.finish(converter.load(table))


LISTS = [[9, 9], [1], [], [2, 3, 4], [5]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int16()), pa.large_list(pa.int16()), pa.list_view(pa.int16())], ids=str
)
def test_offsets_tell_the_rows_apart(kind: pa.DataType) -> None:
    found = convert(pa.array(LISTS, kind).slice(1))
    assert found["x"].tolist() == [1, 2, 3, 4, 5]
    assert found["x"].dtype == torch.int16
    assert found["x_offsets"].tolist() == [0, 1, 1, 4, 5]
    assert found["x_offsets"].dtype == torch.int64
    assert list(found) == ["x", "x_offsets"]


def test_padding_goes_to_the_longest_of_the_batch() -> None:
    found = convert(pa.array(LISTS).slice(1), "pad")
    assert found["x"].tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 4], [5, 0, 0]]
    assert found["x_lengths"].tolist() == [1, 0, 3, 1]
    assert list(found) == ["x", "x_lengths"]


def test_lists_of_one_length_need_no_padding() -> None:
    found = convert(pa.array([[1, 2], [3, 4]]), "pad")
    assert found["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("lists", ["offsets", "pad"])
def test_offsets_and_longest_are_those_of_each_batch(lists: Lists) -> None:
    table = pa.table({"x": LISTS})
    converter = Converter(table.schema, conversion=Conversion(lists=lists))
    first, second, third = converter.split(converter.load(table), 2)
    if lists == "offsets":
        assert [b["x_offsets"].tolist() for b in (first, second, third)] == [[0, 2, 3], [0, 0, 3], [0, 1]]
        assert [b["x"].tolist() for b in (first, second, third)] == [[9, 9, 1], [2, 3, 4], [5]]
    else:
        assert [b["x"].tolist() for b in (first, second, third)] == [
            [[9, 9], [1, 0]],
            [[0, 0, 0], [2, 3, 4]],
            [[5]],
        ]


@pytest.mark.parametrize(
    ("array", "values", "dtype"),
    [
        (pa.array([[True], [False, True]]), [True, False, True], torch.bool),
        (pa.array([[1.5], [2.5]], pa.list_(pa.float16())), [1.5, 2.5], torch.float16),
        (pa.array([[dt.date(1970, 1, 3)], []]), [2], torch.int64),
        (pa.array([[decimal.Decimal("1.50")], []]), [150], torch.int64),
        (pa.array([[7], [8, 7]], pa.list_(pa.dictionary(pa.int8(), pa.int64()))), [7, 8, 7], torch.int64),
        (
            pa.array([[[1, 2]], [[3, 4], [5, 6]]], pa.list_(pa.list_(pa.int8(), 2))),
            [[1, 2], [3, 4], [5, 6]],
            torch.int8,
        ),
    ],
    ids=["bool", "float16", "date", "decimal", "dictionary", "fixed-size list"],
)
def test_elements_become_what_columns_become(array: pa.Array, values: list[Any], dtype: torch.dtype) -> None:
    found = convert(array, decimals="int64")
    assert found["x"].tolist() == values
    assert found["x"].dtype == dtype
    assert found["x_offsets"].tolist() == [0, len(array[0]), len(array[0]) + len(array[1])]
    padded = convert(array, "pad", decimals="int64")["x"]
    assert padded.dtype == dtype
    assert padded[1, : len(array[1])].tolist() == values[len(array[0]) :]


def test_a_null_list_is_refused_by_default() -> None:
    with pytest.raises(ConfigError, match="column 'x' has nulls") as caught:
        convert(pa.array([[1], None]))
    assert caught.value.code == "nulls"


@pytest.mark.parametrize("nulls", ["error", "mask"])
def test_a_null_inside_a_list_is_refused_since_no_mask_shows_it(nulls: Nulls) -> None:
    with pytest.raises(ConfigError, match="column 'x' has nulls") as caught:
        convert(pa.array([[1, None]]), nulls=nulls)
    assert caught.value.code == "nulls"


def test_a_number_takes_the_place_of_nulls_inside_and_a_null_list_is_empty() -> None:
    found = convert(pa.array([[1, None], None, [3]]), nulls=7)
    assert found["x"].tolist() == [1, 7, 3]
    assert found["x_offsets"].tolist() == [0, 2, 2, 3]


def test_what_lies_under_a_null_list_is_not_shown() -> None:
    array = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False])
    )
    found = convert(array, nulls="mask")
    assert found["x"].tolist() == [1, 2, 5]
    assert found["x_offsets"].tolist() == [0, 2, 2, 3]
    assert found["x_mask"].tolist() == [True, False, True]


def test_the_mask_of_lists_has_one_value_a_row() -> None:
    found = convert(pa.array([[1, 2], [3]]), nulls="mask")
    assert found["x_mask"].tolist() == [True, True]


def test_lists_can_be_refused() -> None:
    with pytest.raises(EncpipeError, match="column 'x' is list") as caught:
        convert(pa.array(LISTS), "error")
    assert caught.value.code == "unsupported"
    assert "offsets" in caught.value.hint


@pytest.mark.parametrize("lists", ["offsets", "pad"])
def test_no_rows_and_only_empty_lists(lists: Lists) -> None:
    empty = convert(pa.array([], pa.list_(pa.int8())), lists)
    hollow = convert(pa.array([[], []], pa.list_(pa.int8())), lists)
    if lists == "offsets":
        assert (empty["x"].tolist(), empty["x_offsets"].tolist()) == ([], [0])
        assert (hollow["x"].tolist(), hollow["x_offsets"].tolist()) == ([], [0, 0, 0])
    else:
        assert (empty["x"].shape, empty["x_lengths"].tolist()) == ((0, 0), [])
        assert (hollow["x"].shape, hollow["x_lengths"].tolist()) == ((2, 0), [0, 0])


def test_a_cast_holds_for_the_elements() -> None:
    found = convert(pa.array(LISTS), dtypes={"x": torch.float32, "x_offsets": torch.int32})
    assert found["x"].dtype == torch.float32
    assert found["x_offsets"].dtype == torch.int32


def test_tensors_of_lists_can_be_written_to_without_harm() -> None:
    table = pa.table({"x": LISTS})
    converter = Converter(table.schema)
    first, second, _ = converter.split(converter.load(table), 2)
    first["x"].zero_()
    first["x_offsets"].zero_()
    assert second["x"].tolist() == [2, 3, 4]
    assert second["x_offsets"].tolist() == [0, 0, 3]
