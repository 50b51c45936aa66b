"""The loader where it is easily misused: what a batch shares, what counts, what is refused, and how."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from rowsource import MemorySource, ids, load, numbered
from scene import Scene, ended, forked, people, save

from encpipe import ConfigError, EncpipeError
from encpipe.scan import Scan
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


# What is taken, and what is refused with a word about it


@SHUFFLES
def test_numpy_integers_are_numbers(shuffle: bool) -> None:
    options = {
        "threads": np.int32(1),
        "nulls": np.float32(0),
        "prefetch": np.int8(2),
        "seed": np.int64(3),
        "shuffle": shuffle,
    }
    place = {"rank": np.int64(1), "world_size": np.int64(2)}
    numbers, plain = (
        load(MemorySource([30, 40]), np.int64(8), **options, **place),
        load(MemorySource([30, 40]), 8, seed=3, shuffle=shuffle, rank=1, world_size=2),
    )
    numbers.set_epoch(np.int64(4))
    plain.set_epoch(4)
    assert json.dumps(numbers.state_dict()) == json.dumps(plain.state_dict())
    assert ids(numbers) == ids(plain)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "nope"}, "device is 'nope'"),
        ({"device": "hpu:77"}, "device is 'hpu:77'"),
        ({"device": 1.5}, "device is 1.5"),
        ({"stack": ["i"]}, "stack is"),
        ({"stack": {"x": [1]}}, "column 1, which is not read"),
        ({"stack": {"x": ["s"]}}, "which is no number"),
        ({"stack": {"x": 3}}, "list of different columns"),
        ({"conversion": {"lists": "pad"}}, "conversion is"),
        ({"conversion": None}, "conversion is None"),
        ({"guard": None}, "guard is None"),
        ({"guard": False}, "guard is False"),
        ({"transform": 3}, "transform is 3"),
        ({"columns": "i"}, "columns is 'i': it is a list"),
        ({"nulls": None}, "nulls is None"),
    ],
)
def test_a_likely_mistake_is_named_when_the_loader_is_made(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        load(MemorySource([3]), **options)


def test_an_unknown_argument_is_told_what_it_may_have_meant(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="did you mean 'batch_size'"):
        Loader(tmp_path, batchsize=3)  # type: ignore[call-arg] # the mistake
    with pytest.raises(TypeError, match="threads"):
        Loader(tmp_path, num_workers=3)  # type: ignore[call-arg] # the mistake


@pytest.mark.parametrize("epoch", [2**31, 10**30])
def test_an_epoch_beyond_counting_is_refused(tmp_path: Path, epoch: int) -> None:
    scene = Scene(str(tmp_path / "sealed"))
    scene.write(save(tmp_path / "plain", people()))
    for kind in (Loader, IterableDataset):
        with kind(scene.url, 3, ["id"], **scene.access) as opened:
            with pytest.raises(ConfigError, match="epoch is"):
                opened.set_epoch(epoch)
            with pytest.raises(ConfigError, match="makes no sense"):
                opened.load_state_dict(opened.state_dict() | {"epoch": epoch})


def test_many_lanes_cost_little_where_rows_are_few() -> None:
    began = time.thread_time()
    assert sorted(ids(load(MemorySource([200]), 16, shuffle=True, lanes=8192))) == list(range(200))
    assert time.thread_time() - began < 5  # with the square of the lanes it is 15, and not 0.2


def test_a_loop_collected_while_files_are_opened_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(str(tmp_path / "sealed"))
    scene.write(save(tmp_path / "plain", people(rows=40)))
    with scene.open() as dataset, Loader(dataset, 4, ["id"], shuffle=True) as loader:
        left: list[Any] = [iter(loader)]
        next(left[0])
        left.append(left)  # only the garbage collector ends it
        list(loader)  # closes the files of both
        open_again = Scan.row_groups
        monkeypatch.setattr(Scan, "row_groups", lambda scan: (gc.collect(), open_again(scan))[1])
        del left
        reading = threading.Thread(target=list, args=(loader,), daemon=True)
        reading.start()
        reading.join(20)
        assert not reading.is_alive()


# Filters and states


def test_a_state_of_another_long_filter_is_refused() -> None:
    """PyArrow's text of a long list leaves out its middle."""
    some, others = ([*range(10), *range(first, first + 900), *range(9_990, 10_000)] for first in (10, 2_000))
    assert str(pc.field("i").isin(some)) == str(pc.field("i").isin(others))
    state = load(MemorySource([30]), filter=pc.field("i").isin(some)).state_dict()
    with pytest.raises(ConfigError, match="another filter"):
        load(MemorySource([30]), filter=pc.field("i").isin(others)).load_state_dict(state)
    load(MemorySource([30]), filter=pc.field("i").isin(some)).load_state_dict(state)
    load(MemorySource([30]), filter=[("i", "in", some)]).load_state_dict(state)


def test_the_text_of_a_filter_is_the_same_in_every_process() -> None:
    code = (
        "from encpipe.torch.feed import filter_text\n"
        "words = {chr(97 + n) * 3 for n in range(26)}\n"
        "print([filter_text([('s', 'in', some)]) for some in (words, frozenset({'a', 'b', 'c'}))])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in (1, 2)
    }
    assert len(found) == 1
