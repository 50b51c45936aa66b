"""Reads a dataset with one object changed, again and again, each time in a child of its own.

Run as `python -m simulation.flipping FOLDER PATH KIND`, positions as a JSON list on standard input: it loads
the dataset into memory, forks for every change (a forked child costs milliseconds, a spawned one half a
second) and prints a JSON line for each: what came of it. Nothing here starts a thread before it forks.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
from fsspec.implementations.memory import MemoryFileSystem

from encpipe import Config, EncpipeError, IntegrityError, open_dataset, verify_dataset
from encpipe.config import KeyringConfig
from encpipe.kms import local as _local
from encpipe.storage import memory as _memory

LOADED = (_local, _memory)
"""What a reader imports when it is used: once for all children."""

LIMIT_SECONDS = 10
"""A child that takes longer hangs."""
IN_FLIGHT = 2
SAME, INTEGRITY, KEY_OR_CONFIG, WRONG, OTHER = 0, 10, 11, 20, 21
NAMES = {
    SAME: "same",
    INTEGRITY: "integrity",
    KEY_OR_CONFIG: "key-or-config",
    WRONG: "wrong data",
    OTHER: "other error",
}
URL = "memory://flipping"


SETTINGS = Config(
    keyring=KeyringConfig(unlock="key-env:ENCPIPE_MASTER_KEY"),
    keys={"footer": ("local:env",), "pii": ("local:env",)},
)
"""The master key comes from the environment."""


def changed(data: bytes, kind: str, position: int) -> bytes:
    """`flip`: one bit of the byte at `position`, another for each; `cut`: the first `position` bytes."""
    if kind == "cut":
        return data[:position]
    return data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]


def read_all() -> pa.Table:
    """Everything a reader may look at."""
    with open_dataset(URL, config=SETTINGS) as dataset:
        return dataset.to_table()


def child(store: MemoryFileSystem, path: str, data: bytes, expected: list[dict[str, Any]]) -> int:
    store.pipe(f"/flipping/{path}", data)
    try:
        table = read_all()
    except IntegrityError:
        return INTEGRITY
    except EncpipeError:
        return KEY_OR_CONFIG
    if table.to_pylist() != expected:
        return WRONG
    # what no reader needs may differ unnoticed, but not by a deep verification
    return SAME if verify_dataset(URL, config=SETTINGS, deep=True).problems else WRONG


def run(folder: Path, path: str, kind: str, positions: Iterable[int]) -> None:
    store = MemoryFileSystem()
    for file in folder.rglob("*"):
        if file.is_file():
            store.pipe(f"/flipping/{file.relative_to(folder)}", file.read_bytes())
    expected = json.loads((folder.parent / "expected.json").read_text())
    original = (folder / path).read_bytes()
    running: deque[tuple[int, int]] = deque()
    gc.freeze()  # a collection in a child would copy every page
    for position in positions:
        running.append((position, fork(store, path, changed(original, kind, position), expected)))
        if len(running) >= IN_FLIGHT:
            report(*running.popleft())
    while running:
        report(*running.popleft())


def fork(store: MemoryFileSystem, path: str, data: bytes, expected: list[dict[str, Any]]) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(LIMIT_SECONDS)
    code = OTHER
    try:
        code = child(store, path, data, expected)
    except BaseException:  # noqa: BLE001 - any other exception is a finding, whatever it is
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def report(position: int, pid: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outcome = "hang" if code == -signal.SIGALRM else NAMES.get(code, f"crash {code}")
    print(json.dumps({"position": position, "outcome": outcome}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.load(sys.stdin))
