"""A dataset in a folder of a local disk.

Durable when a call returns: file and folder are synced. A kill leaves at most temp files (`.tmp-<random>`
beside their target), which `list` reports and `gc` removes. Modes follow the umask: what lies here is sealed.
Folders appear with their first object and go with their last. A symbolic link is followed only within the
dataset; something that is no regular file (a pipe, a device) is never opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from encpipe.config import Config
from encpipe.errors import ConfigError, ConflictError, StorageError
from encpipe.storage import posix
from encpipe.storage.base import ObjectInfo, Storage
from encpipe.storage.paths import (
    LOCK_PATH,
    MAX_COMMITTED_BYTES,
    check_new_path,
    check_path,
    check_prefix,
    taken,
    too_large,
)
from encpipe.storage.posix import TempFile


class LocalStorage(Storage):
    """Plain paths and `file://`. Takes no options."""

    def __init__(self, url: str, options: Mapping[str, Any], config: Config) -> None:  # noqa: ARG002 - one signature for all back ends
        if options:
            raise ConfigError(
                f"a local path takes no storage options, not {', '.join(sorted(options))}",
                hint="drop them, or name an s3:// URL",
                code="config-unknown-key",
            )
        name = url.removeprefix("file://")
        if not name or "\0" in name:
            raise ConfigError(f"{url!r} names no folder", hint="name the dataset's folder")
        self.url = url
        self._root = Path(os.path.abspath(Path(name).expanduser()))  # noqa: PTH100 - resolve() would follow links
        self._arrow = fs.LocalFileSystem()

    def read(self, path: str, *, limit: int) -> bytes:
        with self._mapped(path):
            return self._read(path, limit)

    def _read(self, path: str, limit: int) -> bytes:
        fd = os.open(self._file(path)[0], os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise too_large(path, self.url, limit)
        return data

    def size(self, path: str) -> int:
        with self._mapped(path):
            return self._file(path)[1].st_size

    def open_input(self, path: str) -> pa.NativeFile:
        with self._mapped(path):
            return pa.OSFile(str(self._file(path)[0]), "r")

    def arrow_path(self, path: str) -> tuple[fs.FileSystem, str]:
        with self._mapped(path):
            return self._arrow, str(self._file(path)[0])

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._mapped(prefix):
            folder = self._place(prefix + "x").parent if check_prefix(prefix) else self._root
            yield from self._walk(folder, prefix)

    def _walk(self, folder: Path, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as entries:
                found = [(e.name + ("/" if e.is_dir(follow_symlinks=False) else ""), e) for e in entries]
        except FileNotFoundError:  # none there, or pruned meanwhile
            return
        for name, entry in sorted(found, key=lambda pair: pair[0]):
            if name.endswith("/"):
                yield from self._walk(folder / entry.name, prefix + name)
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                yield ObjectInfo(prefix + name, status.st_size, modified)

    def create(self, path: str, data: bytes) -> None:
        with self.create_file(path) as stream:
            stream.write(data)

    @contextlib.contextmanager
    def create_file(self, path: str) -> Iterator[BinaryIO]:
        with self._mapped(path):
            target = self._place(check_new_path(path))
            if os.path.lexists(target):
                raise taken(path, self.url)
            temp = TempFile(target, path, self.url)
        with temp:
            yield temp.stream
            with self._mapped(path):
                temp.publish(self._root / LOCK_PATH)

    def delete(self, path: str) -> None:
        with self._mapped(path):
            target = self._place(path)
            with contextlib.suppress(FileNotFoundError):
                target.unlink()
            posix.prune_folders(target.parent, self._root)

    def commit(
        self,
        path: str,
        data: bytes,
        *,
        check: Callable[[bytes | None], None],
        is_ours: Callable[[bytes], bool],  # noqa: ARG002 - under the lock no answer can get lost
    ) -> None:
        with contextlib.ExitStack() as stack:
            with self._mapped(path):
                target = self._place(check_new_path(path))
                stack.enter_context(posix.locked(self._place(LOCK_PATH)))
                current = self._read(path, MAX_COMMITTED_BYTES) if os.path.lexists(target) else None
            check(current)
            with self._mapped(path), TempFile(target, path, self.url) as temp:
                temp.stream.write(data)
                temp.replace()

    @contextlib.contextmanager
    def hold(self, path: str) -> Iterator[None]:
        with self._mapped(path):
            place = self._place(check_new_path(path))
            fd = posix.try_lock(place)
        if fd is None:
            raise ConflictError(
                f"another live process holds {path!r} in {self.url}",
                hint="wait for it to end, or stop it",
                code="locked",
            )
        try:
            yield
        finally:
            with self._mapped(path):
                posix.remove_and_unlock(place, fd)
                posix.prune_folders(place.parent, self._root)

    def is_held(self, path: str) -> bool:
        with self._mapped(path):
            return posix.is_locked(self._place(path))

    def now(self) -> datetime:
        """By the clock of the file system, which a server may keep."""
        return datetime.fromtimestamp(posix.clock(self._root / "_encpipe"), UTC)

    def _place(self, path: str) -> Path:
        """Where `path` lies; raises when a folder on the way is a link that leaves the dataset."""
        place = self._root
        for part in check_path(path).split("/")[:-1]:
            place = place / part
            if place.is_symlink():
                self._check_inside(place, path)
        return self._root / path

    def _file(self, path: str) -> tuple[Path, os.stat_result]:
        """Place and status of the regular file at `path`."""
        place = self._place(path)
        if place.is_symlink():
            self._check_inside(place, path)
        status = place.stat()
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(
                f"{path!r} in {self.url} is no regular file", hint="remove it: nobody listed it"
            )
        return place, status

    def _check_inside(self, link: Path, path: str) -> None:
        if not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(self._root)):
            raise StorageError(
                f"{path!r} in {self.url} goes through a symbolic link that leaves the dataset",
                hint="copy the dataset with its links resolved: cp -rL",
                code="storage-denied",
            )

    @contextlib.contextmanager
    def _mapped(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise posix.mapped(error, path, self.url) from None
