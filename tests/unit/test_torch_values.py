"""Rows cut, joined, spread over stripes and put in an order give what Arrow gives; memory is used again."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encpipe.torch import values
from encpipe.torch.conversion import Conversion, Converter
from encpipe.torch.memory import LEAST, Memory
from encpipe.torch.order import stretches
from encpipe.torch.stripes import Stripes
from encpipe.torch.weave import Weave

KINDS = {
    "int": (pa.int16(), st.integers(-5, 5)),
    "real": (pa.float64(), st.floats(-5, 5)),
    "flag": (pa.bool_(), st.booleans()),
    "pair": (pa.list_(pa.int32(), 2), st.lists(st.integers(0, 9), min_size=2, max_size=2)),
    "wide": (pa.list_(pa.int64(), 17), st.lists(st.integers(0, 9), min_size=17, max_size=17)),
    "none": (pa.list_(pa.int64(), 0), st.just([])),
    "list": (pa.list_(pa.int8()), st.lists(st.integers(0, 9), max_size=3)),
    "bools": (pa.large_list(pa.bool_()), st.lists(st.booleans(), max_size=3)),
    "text": (pa.string(), st.text(max_size=3)),
    "blob": (pa.binary(), st.binary(max_size=3)),
}
CHOICES = [
    Conversion(dtypes={"int": torch.bfloat16, "real": torch.float32}),
    Conversion(lists="pad", strings="arrow"),
]


@st.composite
def tables(draw: st.DrawFn, rows: st.SearchStrategy[int]) -> pa.Table:
    """Every kind of column, sliced, in any number of chunks."""
    count, skip = draw(rows), draw(st.integers(0, 3))
    cut = draw(st.integers(0, count))
    columns = {}
    for name, (kind, one) in KINDS.items():
        found = draw(st.lists(st.none() | one, min_size=skip + count, max_size=skip + count))
        array = pa.array(found, kind).slice(skip)
        columns[name] = pa.chunked_array([array.slice(0, cut), array.slice(cut)], kind)
    return pa.table(columns)


def converter(choice: Conversion) -> Converter:
    schema = pa.schema({name: kind for name, (kind, _) in KINDS.items()})
    return Converter(schema, "mask", stack={"x": ["flag", "pair"]}, conversion=choice)


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("choice", CHOICES, ids=["offsets", "pad"])
@settings(max_examples=25, deadline=None)
@given(table=tables(st.integers(0, 12)), data=st.data())
def test_any_order_gives_what_arrow_gives(choice: Conversion, table: pa.Table, data: st.DataObject) -> None:
    one = converter(choice)
    order = data.draw(st.permutations(range(len(table))))
    expected = one.finish(one.load(table.take(pa.array(order, pa.int64()))))
    agree(one.finish(values.take(one.load(table), np.array(order, np.int64))), expected)


@pytest.mark.parametrize("order", [[0, 3], [-1]], ids=str)
def test_a_row_number_that_there_is_not_is_refused(order: list[int]) -> None:
    with pytest.raises(IndexError, match="of 3 rows"):
        values.take({"x": torch.arange(3), "s": pa.array(["a", "b", "c"])}, np.array(order))


def test_taken_rows_are_copies() -> None:
    column = torch.arange(4)
    values.take({"x": column}, np.arange(4))["x"].zero_()
    assert column.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("choice", CHOICES, ids=["offsets", "pad"])
@settings(max_examples=25, deadline=None)
@given(table=tables(st.integers(1, 12)), data=st.data())
def test_cut_and_joined_rows_are_the_same_rows(
    choice: Conversion, table: pa.Table, data: st.DataObject
) -> None:
    one = converter(choice)
    loaded = one.load(table)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(table)), max_size=3)))
    borders = [0, *cuts, len(table)]
    parts = [values.cut(loaded, a, b) for a, b in itertools.pairwise(borders)]
    assert [values.length(part) for part in parts] == np.diff(borders).tolist()
    agree(one.finish(values.join(parts)), one.finish(loaded))
    size = data.draw(st.integers(1, 5))
    for number, batch in enumerate(one.split(loaded, size)):
        agree(batch, one.finish(one.load(table.slice(number * size, size))))


@pytest.mark.parametrize("choice", CHOICES, ids=["offsets", "pad"])
@settings(max_examples=25, deadline=None)
@given(data=st.data(), run=st.integers(1, 3), stripe_rows=st.integers(1, 9))
def test_blocks_of_lanes_are_spread_over_stripes_run_by_run(
    choice: Conversion, data: st.DataObject, run: int, stripe_rows: int
) -> None:
    one = converter(choice)
    lanes = [data.draw(tables(st.integers(1, 8))) for _ in range(data.draw(st.integers(1, 3)))]
    left = {lane: ((data.draw(st.integers(0, len(t) - 1)), len(t)),) for lane, t in enumerate(lanes)}
    legs = list(stretches(left, run, 10**6))
    weave = Weave(legs, run, stripe_rows)
    stripes = Stripes(weave)
    orders = [np.array(data.draw(st.permutations(range(len(table)))), np.int64) for table in lanes]
    for lane, table in enumerate(lanes):
        middle = data.draw(st.integers(0, len(table)))  # a block of two pieces
        parts = [one.load(table.slice(*at), to_move=True) for at in ((0, middle), (middle, len(table)))]
        for part in parts if choice.strings == "list" else ():  # as of text that repeats, and of long text
            form = data.draw(st.sampled_from(["as it is", "coded", "objects"]))
            text = pa.array(part["text"], pa.string())
            if form != "as it is":
                part["text"] = text.dictionary_encode() if form == "coded" else text.to_numpy(False)
        stripes.place(parts, orders[lane], list(weave.placements(lane, 0, len(table))))
    starts = np.cumsum([0, *map(len, lanes)])
    expected = [
        starts[lane] + orders[lane][start + turn * run + n]
        for leg in legs
        for turn in range(-(-leg.rows // run))
        for lane, start in zip(leg.lanes, leg.starts, strict=True)
        for n in range(min(run, leg.rows - turn * run))
    ]
    assert len(expected) == weave.rows
    together = pa.concat_tables(lanes).take(pa.array(expected, pa.int64()))
    for number in range(-(-weave.rows // stripe_rows)):
        wanted = together.slice(number * stripe_rows, stripe_rows)
        agree(one.finish(stripes.take(number)), one.finish(one.load(wanted)))


def test_joined_and_placed_rows_do_not_share_memory_with_their_parts() -> None:
    parts = [{"x": torch.zeros(4)}, {"x": torch.ones(4)}]
    weave = Weave(stretches({0: ((0, 8),)}, 2, 8), 2, 8)
    stripes = Stripes(weave)
    stripes.place(parts, np.arange(8), list(weave.placements(0, 0, 8)))
    for made in (values.join(parts), stripes.take(0)):
        made["x"].fill_(7)
    assert parts[0]["x"].tolist() == [0] * 4


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    memory = Memory()
    first = memory.empty(LEAST * 2)
    address = first.ctypes.data
    tensor = torch.from_numpy(first)[10:]
    del first
    gc.collect()
    assert memory.idle == 0
    assert memory.empty(LEAST * 2).ctypes.data != address
    del tensor
    again = [memory.empty(LEAST * 2) for _ in range(2)]
    assert address in [block.ctypes.data for block in again]


def test_memory_that_nobody_holds_is_kept_up_to_a_limit_and_released() -> None:
    memory = Memory(idle=3 * LEAST)
    held = [memory.empty(LEAST) for _ in range(9)]
    del held
    assert 0 < memory.idle <= 3 * LEAST
    memory.release()
    assert memory.idle == 0


def test_small_pieces_are_not_kept_and_all_are_aligned_and_of_the_size_asked_for() -> None:
    memory = Memory()
    for size in (0, 1, LEAST - 1, LEAST, LEAST + 1, 3 * LEAST + 7, 10**6):
        block = memory.empty(size)
        assert block.nbytes == size
        assert size < LEAST or block.ctypes.data % 64 == 0
        block[:] = 1
        del block
        assert size >= LEAST or memory.idle == 0


def test_a_forked_child_has_memory_although_the_parent_was_just_asking_for_some() -> None:
    memory = Memory()
    kept = memory.empty(LEAST)
    assert memory._lock.acquire(blocking=False)
    memory.after_fork()
    del kept
    assert memory.idle >= LEAST
    memory.release()
