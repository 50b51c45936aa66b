"""What a loader tells of itself, where its tensors go, and which settings it refuses."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import pty
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rowsource import MemorySource, ids, load

from encpipe import ConfigError, EncpipeError
from encpipe.torch import Loader

ROWS = [300] * 60
TOTAL = sum(ROWS)
SHUFFLES = pytest.mark.parametrize("shuffle", [False, True])


@SHUFFLES
def test_stats_add_up(shuffle: bool) -> None:
    source = MemorySource(ROWS)
    loader = load(source, 250, shuffle=shuffle, threads=2)
    assert (loader.stats().rows, loader.stats().seconds) == (0, 0.0)
    for n, _batch in enumerate(loader):
        stats = loader.stats()
        assert (stats.epoch, stats.batches, stats.rows) == (0, n + 1, 250 * (n + 1))
    stats = loader.stats()
    assert (stats.rows, stats.batches, stats.bytes) == (TOTAL, len(loader), sum(source.sizes))
    assert 0 < stats.read_seconds + stats.convert_seconds <= 2 * 1.1 * stats.seconds + 0.1
    assert 0 <= stats.wait_seconds <= stats.seconds
    assert 0 <= stats.decrypt_share <= 1
    assert stats.rows_per_second == stats.rows / stats.seconds
    assert stats.megabytes_per_second == stats.bytes / 1e6 / stats.seconds
    next(iter(loader))
    assert (loader.stats().epoch, loader.stats().rows) == (1, 250)


def test_waiting_for_a_slow_reader_shows_in_the_stats() -> None:
    source, loop = MemorySource([10] * 4), time.perf_counter
    source.before_read = lambda row_group: time.sleep(0.02)
    start = loop()
    loader = load(source, 10, threads=1)
    ids(loader)
    assert 0.05 <= loader.stats().wait_seconds <= loop() - start
    assert loader.stats().read_seconds >= 0.08


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = pty.openpty() if terminal else os.pipe()
    monkeypatch.setenv("TERM", "xterm")
    shown = bytearray()
    reader = threading.Thread(target=read_all, args=(read, shown))
    reader.start()
    with os.fdopen(write, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        loader = load(MemorySource([50] * 4), 20, shuffle=True, progress=True)
        assert sorted(ids(loader)) == list(range(200))
    reader.join(20)
    os.close(read)
    assert all(text in shown for text in (b"epoch 0", b"10/10", b"rows/s")) == terminal
    assert bool(shown) == terminal


def read_all(descriptor: int, into: bytearray) -> None:
    """Read until the other end is closed, which a terminal tells by an error."""
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 1 << 16):
            into += data


# Where tensors go, and where a loader does not


def test_pin_memory_without_an_accelerator_warns_and_works() -> None:
    with pytest.warns(UserWarning, match="no accelerator") as caught:
        loader = Loader(MemorySource([9]), 4, pin_memory=True)
    assert caught[0].filename == __file__
    assert ids(loader) == list(range(9))


@SHUFFLES
@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_tensors_are_moved_to_the_device_and_texts_stay(shuffle: bool, batch_size: int) -> None:
    """Batches lie across what is moved at once."""
    rows = [100, 33, 500, 1, 90]
    for batch in load(MemorySource(rows), batch_size, shuffle=shuffle, device="meta"):
        assert batch["i"].device.type == "meta"
        assert batch["s"][0].isdecimal()
        assert len(batch["i"]) == len(batch["s"])
    assert sorted(ids(load(MemorySource(rows), batch_size, shuffle=shuffle, device="cpu"))) == list(
        range(724)
    )


@pytest.mark.parametrize("take_along", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_stays_in_its_process(take_along: Callable[[Loader], object]) -> None:
    with pytest.raises(EncpipeError, match="stays in its process") as caught:
        take_along(load(MemorySource([3])))
    assert caught.value.code == "unsupported"
    assert "IterableDataset" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        *(
            ({name: value}, name)
            for name in ("threads", "lanes", "window")
            for value in (0, -1, 1.5, True, "2")
        ),
        *(({name: value}, name) for name in ("prefetch", "seed") for value in (-1, 1.5, "2")),
        ({"uneven": "stop"}, "uneven is 'stop'"),
        ({"rank": 1}, "rank and world_size go together"),
        ({"world_size": 2}, "rank and world_size go together"),
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2"),
        ({"rank": -1, "world_size": 2}, "rank is -1"),
        ({"rank": 0, "world_size": 0}, "world_size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(MemorySource([3]), **{"shuffle": True, **options})


@pytest.mark.parametrize("epoch", [-1, 1.0, True, None])
def test_an_epoch_is_a_number(epoch: Any) -> None:
    with pytest.raises(ConfigError, match="epoch is"):
        load(MemorySource([3])).set_epoch(epoch)
