"""A storage that counts what is asked of it, and calls a test back before each step.

    log = steps.install(monkeypatch)              # every storage that encpipe opens from now on
    log.before = lambda n, step: ...              # n counts from 0; `step` is "create_file data/x.parquet"

A stream has two steps, `create_file` and `publish`; so have a lock, `hold` and `release`, and a commit, whose
own check shows as a `size` after `commit`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
from pyarrow import fs

import encpipe.access
import encpipe.export
from encpipe.storage import ObjectInfo, OldVersion, Storage, UnfinishedUpload, open_storage

ID = re.compile(r"[0-9a-f]{32}")


class Log:
    """The steps so far, ids left out of the paths."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.before: Callable[[int, str], object] = lambda n, step: None
        self.wrap_input: Callable[[str, pa.NativeFile], Any] = lambda path, file: file
        self.wrap_output: Callable[[BinaryIO], Any] = lambda stream: stream
        self._lock = threading.Lock()

    def step(self, name: str, path: str) -> None:
        with self._lock:
            n, step = len(self.steps), f"{name} {ID.sub('ID', path)}".strip()
            self.steps.append(step)
        self.before(n, step)

    def count(self, name: str, path: str = "") -> int:
        """How many steps of this name had `path` in theirs."""
        return sum(step.split()[0] == name and path in step for step in self.steps)


def install(monkeypatch: pytest.MonkeyPatch, log: Log | None = None) -> Log:
    """Make every storage that encpipe opens a stepping one."""
    log = log or Log()

    def opened(url: str, **more: Any) -> Storage:
        return Stepping(open_storage(url, **more), log)

    monkeypatch.setattr(encpipe.access, "open_storage", opened)
    monkeypatch.setattr(encpipe.export, "open_storage", opened)
    return log


def die_before(n: int) -> Callable[[int, str], None]:
    """The process is killed instead of step `n`."""

    def before(now: int, step: str) -> None:
        if now == n:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


class Stepping(Storage):
    """Another storage, step by step."""

    def __init__(self, inner: Storage, log: Log) -> None:
        self._inner, self._log = inner, log
        self.url, self.remote = inner.url, inner.remote

    def read(self, path: str, *, limit: int) -> bytes:
        self._log.step("read", path)
        return self._inner.read(path, limit=limit)

    def size(self, path: str) -> int:
        self._log.step("size", path)
        return self._inner.size(path)

    def open_input(self, path: str) -> pa.NativeFile:
        self._log.step("open_input", path)
        return self._log.wrap_input(path, self._inner.open_input(path))

    def first_bytes(self, path: str, size: int) -> bytes:
        self._log.step("first_bytes", path)
        return self._inner.first_bytes(path, size)

    def arrow_path(self, path: str) -> tuple[fs.FileSystem, str]:
        return self._inner.arrow_path(path)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self._log.step("list", prefix)
        return self._inner.list(prefix)

    def old_versions(self, prefix: str = "") -> Iterator[OldVersion]:
        return self._inner.old_versions(prefix)

    def read_version(self, old: OldVersion, *, limit: int) -> bytes:
        return self._inner.read_version(old, limit=limit)

    def delete_version(self, old: OldVersion) -> None:
        self._log.step("delete_version", old.path)
        self._inner.delete_version(old)

    def create(self, path: str, data: bytes) -> None:
        self._log.step("create", path)
        self._inner.create(path, data)

    @contextlib.contextmanager
    def create_file(self, path: str) -> Iterator[BinaryIO]:
        self._log.step("create_file", path)
        with self._inner.create_file(path) as stream:
            yield self._log.wrap_output(stream)
            self._log.step("publish", path)

    def delete(self, path: str) -> None:
        self._log.step("delete", path)
        self._inner.delete(path)

    def commit(
        self,
        path: str,
        data: bytes,
        *,
        check: Callable[[bytes | None], None],
        is_ours: Callable[[bytes], bool],
    ) -> None:
        self._log.step("commit", path)
        self._inner.commit(path, data, check=check, is_ours=is_ours)

    @contextlib.contextmanager
    def hold(self, path: str) -> Iterator[None]:
        self._log.step("hold", path)
        with self._inner.hold(path):
            yield
            self._log.step("release", path)

    def is_held(self, path: str) -> bool:
        return self._inner.is_held(path)

    def now(self) -> datetime:
        return self._inner.now()

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        return self._inner.unfinished_uploads()

    def drop_upload(self, upload: UnfinishedUpload) -> None:
        self._log.step("drop_upload", upload.path)
        self._inner.drop_upload(upload)

    def close(self) -> None:
        self._inner.close()
