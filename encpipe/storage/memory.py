"""A dataset in this process's memory, `memory://name/...`, on fsspec's memory files: for tests and demos.

All storages of one process see the same objects; they end with the process, and no other process sees them.
`arrow_path` is refused: Arrow reaches this file system only through Python, and that may abort at exit.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from typing import Any, BinaryIO, NoReturn

import pyarrow as pa
from fsspec.implementations.memory import MemoryFileSystem

from encpipe.config import Config
from encpipe.errors import ConfigError, ConflictError, StorageError
from encpipe.storage.base import ObjectInfo, Storage
from encpipe.storage.paths import absent, check_new_path, check_path, check_prefix, taken, too_large

_lock = threading.RLock()
_held: set[str] = set()


class _Spool(io.BytesIO):
    """Keeps its bytes when closed early, as Arrow's writers may."""

    def __init__(self) -> None:
        super().__init__()
        self._closed_with: bytes | None = None

    def close(self) -> None:
        if not self.closed:
            self._closed_with = self.getvalue()
        super().close()

    def taken(self) -> bytes:
        self.close()
        assert self._closed_with is not None
        return self._closed_with


class MemoryStorage(Storage):
    """`memory://name/folder`. Takes no options."""

    def __init__(self, url: str, options: Mapping[str, Any], config: Config) -> None:  # noqa: ARG002 - one signature for all back ends
        if options:
            raise ConfigError(
                f"memory:// takes no storage options, not {', '.join(sorted(options))}",
                hint="drop them",
                code="config-unknown-key",
            )
        root = url.removeprefix("memory://").strip("/")
        if not root:
            raise ConfigError(f"{url!r} names no folder", hint="name one: memory://name")
        self.url = url
        self._root = f"/{check_path(root)}/"
        self._memory = MemoryFileSystem()

    def read(self, path: str, *, limit: int) -> bytes:
        data = self._bytes(path)
        if len(data) > limit:
            raise too_large(path, self.url, limit)
        return data

    def size(self, path: str) -> int:
        return len(self._bytes(path))

    def open_input(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self._bytes(path))

    def arrow_path(self, path: str) -> NoReturn:
        """Always raises `StorageError` `unsupported`: see the module."""
        raise StorageError(
            f"{path!r} in {self.url}: memory:// has no file system that Arrow can read by itself",
            hint="use Dataset.scan(), or a local folder (/dev/shm is memory, too) for a PyArrow dataset",
            code="unsupported",
        )

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        start = self._root + check_prefix(prefix)
        with _lock:
            found = [
                ObjectInfo(key[len(self._root) :], len(file.getbuffer()), file.modified.astimezone(UTC))
                for key, file in sorted(self._memory.store.items())
                if key.startswith(start)
            ]
        yield from found

    def create(self, path: str, data: bytes) -> None:
        key = self._key(check_new_path(path))
        with _lock:
            if self._memory.exists(key):
                raise taken(path, self.url)
            self._memory.pipe_file(key, data)

    @contextlib.contextmanager
    def create_file(self, path: str) -> Iterator[BinaryIO]:
        if self._memory.isfile(self._key(check_new_path(path))):
            raise taken(path, self.url)
        spool = _Spool()
        yield spool
        self.create(path, spool.taken())

    def delete(self, path: str) -> None:
        with _lock, contextlib.suppress(FileNotFoundError):
            self._memory.rm_file(self._key(path))

    def commit(
        self,
        path: str,
        data: bytes,
        *,
        check: Callable[[bytes | None], None],
        is_ours: Callable[[bytes], bool],  # noqa: ARG002 - under the lock no answer can get lost
    ) -> None:
        key = self._key(check_new_path(path))
        with _lock:
            check(self._bytes(path) if self._memory.isfile(key) else None)
            self._memory.pipe_file(key, data)

    @contextlib.contextmanager
    def hold(self, path: str) -> Iterator[None]:
        key = self._key(check_new_path(path))
        with _lock:
            if key in _held:
                raise ConflictError(
                    f"another writer of this process holds {path!r} in {self.url}",
                    hint="wait for it to end",
                    code="locked",
                )
            _held.add(key)
        try:
            yield
        finally:
            with _lock:
                _held.discard(key)

    def is_held(self, path: str) -> bool:
        with _lock:
            return self._key(path) in _held

    def _key(self, path: str) -> str:
        return self._root + check_path(path)

    def _bytes(self, path: str) -> bytes:
        with _lock:
            try:
                data: bytes = self._memory.store[self._key(path)].getvalue()
            except KeyError:
                raise absent(path, self.url) from None
        return data
