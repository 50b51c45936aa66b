"""The loader where it is easily misused: what a batch shares, what counts, what is refused, and how."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rowsource import MemorySource, ids, load, numbered
from scene import Scene, ended, forked, people, save

from encpipe import EncpipeError
from encpipe.torch import Conversion, IterableDataset, Loader, MapDataset

SHUFFLES = pytest.mark.parametrize("shuffle", [False, True])
LISTS = pytest.mark.parametrize("lists", ["offsets", "pad"])


def wide(first: int, rows: int) -> pa.Table:
    """Rows of numbers, vectors and lists, enough in a few row groups for memory that is used again."""
    ids = np.arange(first, first + rows)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 64).astype(np.float32)), 64)
    ends = pa.array(np.arange(rows + 1, dtype=np.int32) * 3)
    lists = pa.ListArray.from_arrays(ends, pa.array(ids.repeat(3)))
    return numbered(first, rows).append_column("v", vectors).append_column("l", lists)


# What a batch shares with others: nothing


@SHUFFLES
@pytest.mark.parametrize("batch_size", [1000, 1024, 7000])
def test_each_batch_has_storages_of_its_own(shuffle: bool, batch_size: int) -> None:
    for batch in load(MemorySource([4000] * 3, make=wide), batch_size, shuffle=shuffle):
        for tensor in (batch["i"], batch["v"], batch["l"], batch["l_offsets"]):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            written = io.BytesIO()
            torch.save(tensor, written)
            assert written.tell() < tensor.nbytes + 4096


@SHUFFLES
def test_a_write_into_a_batch_spoils_no_backward_pass_of_another(shuffle: bool) -> None:
    batches = iter(load(MemorySource([4000] * 3, make=wide), 1000, shuffle=shuffle))
    first, second = next(batches)["v"], next(batches)["v"]
    weight = torch.ones(64, requires_grad=True)
    loss = (first * weight).sum()
    second.sub_(1)
    loss.backward()
    assert weight.grad is not None
    batches.close()


@SHUFFLES
def test_an_array_of_a_batch_outlives_that_another_batch_is_moved_to_shared_memory(shuffle: bool) -> None:
    loader = load(MemorySource([4000] * 3, make=wide), 1000, shuffle=shuffle)
    batches = iter(loader)
    array, other = next(batches)["v"].numpy(), next(batches)["v"]
    expected = array.copy()
    other.share_memory_()
    del other
    assert len(ids(batches)) == 10_000  # into memory that came back, if any did
    assert len(ids(loader)) == 12_000
    assert (array == expected).all()


@SHUFFLES
@LISTS
def test_lists_of_different_lengths_are_moved_to_the_device_too(shuffle: bool, lists: Any) -> None:
    source = MemorySource([400] * 3, make=wide)
    for batch in load(source, 100, shuffle=shuffle, device="meta", conversion=Conversion(lists=lists)):
        kinds = {name: value.device.type for name, value in batch.items() if isinstance(value, torch.Tensor)}
        assert set(kinds.values()) == {"meta"}
        assert len(kinds) == 4


# What counts


@SHUFFLES
def test_a_batch_whose_transform_is_broken_off_is_still_to_come(shuffle: bool) -> None:
    fails = [False]

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        if fails[0]:
            raise KeyboardInterrupt
        return batch

    loader = load(MemorySource([30, 40]), 8, shuffle=shuffle, transform=transform)
    batches = iter(loader)
    found = next(batches)["i"].tolist()
    fails[0] = True
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    fails[0] = False
    loader.load_state_dict(loader.state_dict())
    found += ids(loader)
    assert sorted(found) == list(range(70))


def test_a_forked_child_cannot_go_on_with_an_iterator_and_may_begin_its_own() -> None:
    loader = load(MemorySource([50] * 20), 10, shuffle=True)
    batches = iter(loader)
    next(batches)

    def go_on() -> None:
        signal.alarm(20)
        with pytest.raises(EncpipeError, match="threads"):
            next(batches)

    def begin() -> None:
        signal.alarm(20)
        assert len(ids(loader)) == 1000

    assert ended(forked(begin)) == 0
    assert ended(forked(go_on)) == 0
    assert len(ids(batches)) == 990


def test_nothing_is_read_after_close(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "sealed"))
    scene.write(save(tmp_path / "plain", people(rows=12)))
    loader = Loader(scene.url, 3, ["id"], **scene.access)
    under_way = iter(loader)
    next(under_way)
    by_worker = IterableDataset(scene.url, 3, ["id"], **scene.access)
    by_number = MapDataset(scene.url, ["id"], **scene.access)
    assert by_number[0]["id"] == 0
    for opened in (loader, by_worker, by_number):
        opened.close()
    for read in (
        lambda: iter(loader),
        lambda: next(under_way),
        lambda: list(by_worker),
        lambda: by_number[5],
    ):
        with pytest.raises(ValueError, match="is closed"):
            read()
