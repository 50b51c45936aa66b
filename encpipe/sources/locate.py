"""What the user named, as files: a path, a folder, a glob or a URL of fsspec. Lists and opens, reads nothing.

Files and folders whose name starts with `_` or `.` are ignored, as PyArrow and Spark do; order is by path.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Protocol

import pyarrow as pa

from encpipe.config import Config
from encpipe.errors import EncpipeError, StorageError
from encpipe.sources.base import READ_ERRORS, unreadable

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*(?:::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)
WILD: Final = re.compile(r"[*?\[]")
BLOCK_BYTES: Final = 4 << 20
"""Text that is parsed at once, and that types are inferred from."""
_ZIP_ERRORS: Final[tuple[type[Exception], ...]] = (*READ_ERRORS, zipfile.BadZipFile, RuntimeError)
"""`zipfile` says RuntimeError for an encrypted member and for a method it does not know."""
_CODECS: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


@dataclass(frozen=True)
class Entry:
    """One object of a remote storage: full path, size in bytes, and what changes when its bytes do, or ""."""

    path: str
    size: int
    stamp: str


class Remote(Protocol):
    """A storage that lists and opens; its errors are its SDK's own."""

    def find(self) -> tuple[Iterable[Entry], str]:
        """The files that were named, and the folder their names start below. Raises `FileNotFoundError`."""

    def open_input(self, path: str, cache: str) -> pa.NativeFile:
        """Random access to one file."""


@dataclass(frozen=True)
class Located:
    """One file: `name` below what the user named, full `path`, `size` in bytes, `stamp` of its last change.

    `filesystem` is None for the local disk.
    """

    name: str
    path: str
    size: int
    stamp: str
    filesystem: Remote | None = field(default=None, repr=False, compare=False)

    @property
    def is_local(self) -> bool:
        return self.filesystem is None

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over name, size and stamp; "" when the storage tells no time of change."""
        if not self.stamp:
            return ""
        return hashlib.sha256(f"{self.name}\0{self.size}\0{self.stamp}".encode()).hexdigest()

    def open_input(self, *, cache: str = "none") -> pa.NativeFile:
        """Random access, to be closed by the caller; `cache` is fsspec's name. Raises `source-unreadable`."""
        try:
            if self.filesystem is None:
                return pa.OSFile(self.path, "rb")
            return self.filesystem.open_input(self.path, cache)
        except Exception as error:  # noqa: BLE001 - each fsspec back end raises its SDK's own
            raise unreadable(self.name, error) from None

    def open_stream(self) -> pa.NativeFile:
        """The bytes from first to last, decompressed as the suffix says. Raises `source-unreadable`."""
        suffix = PurePosixPath(self.path).suffix.lower()
        source = self.open_input(cache="readahead")
        if suffix == ".zip":
            return _open_zip(source, self.name)
        if not self.is_local:
            source = pa.BufferedInputStream(source, BLOCK_BYTES)
        return pa.CompressedInputStream(source, _CODECS[suffix]) if suffix in _CODECS else source


def _open_zip(source: pa.NativeFile, name: str) -> pa.NativeFile:
    try:
        archive = zipfile.ZipFile(source)
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise unreadable(name, f"the archive holds {len(members)} files, not one", hint="unpack it")
        return pa.PythonFile(archive.open(members[0]), "r")
    except _ZIP_ERRORS as error:
        source.close()
        raise unreadable(name, error, hint="unpack it") from None


def is_url(source: str) -> bool:
    """Whether `source` is a URL for fsspec, rather than a local path."""
    return _URL.match(source) is not None


def locate(source: str, options: Mapping[str, Any], config: Config) -> tuple[Located, ...]:
    """All files that `source` names, sorted by path.

    Raises `StorageError` `not-found` for a path that does not exist, `source-empty` for one without files,
    `ConfigError` for an unknown scheme, `MissingExtraError` for one whose package is absent.
    """
    if is_url(source) and not source.startswith("file://"):
        found = _locate_remote(source, options, config)
    else:
        found = _locate_local(source.removeprefix("file://"))
    files = tuple(sorted(found, key=lambda located: located.path))
    if not files:
        check = "check the path and the pattern; " if WILD.search(source) else ""
        raise EncpipeError(
            f"no source file at {shown(source)}",
            hint=f"{check}files whose name starts with _ or . are ignored",
            code="source-empty",
        )
    return files


def shown(source: str) -> str:
    """`source` for messages, without the user info of a URL."""
    return repr(re.sub(r"//[^/@]*@", "//", source))


def base_of(pattern: str) -> str:
    """The folder above the first part with a wildcard."""
    return pattern[: WILD.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr] # has one


def _hidden(name: str) -> bool:
    return any(part[0] in "_." for part in name.split("/") if part)


def _locate_local(source: str) -> Iterator[Located]:
    if os.path.isfile(source):  # noqa: PTH113 - a text path keeps what the user wrote
        yield _local(source, os.path.dirname(source))  # noqa: PTH120 - as above
    elif os.path.isdir(source):  # noqa: PTH112
        for path in _walk(source, frozenset()):
            yield _local(path, source)
    elif WILD.search(source):
        base = base_of(source)
        for match in sorted(glob.glob(source, recursive=True)):  # noqa: PTH207
            name = os.path.relpath(match, base or ".")
            if os.path.isfile(match) and not _hidden(name):  # noqa: PTH113
                yield _local(match, base or ".")
    else:
        raise StorageError(f"no source at {source!r}", hint="check the path", code="not-found")


def _local(path: str, root: str) -> Located:
    try:
        info = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise unreadable(path, error.strerror) from None
    name = PurePosixPath(os.path.relpath(path, root or ".")).as_posix()
    if any(0xD800 <= ord(letter) < 0xE000 for letter in path):
        raise unreadable(name, "its path is not UTF-8", hint="rename the file or folder")
    return Located(name, path, info.st_size, str(info.st_mtime_ns))


def _walk(folder: str, above: frozenset[str]) -> Iterator[str]:
    """Files below `folder`, links followed; a link to a folder above itself is not followed again."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error.strerror) from None
    for entry in entries:
        if entry.name[0] in "_.":
            continue
        if entry.is_dir():
            yield from _walk(entry.path, above | {real})
        else:
            yield entry.path


def _locate_remote(source: str, options: Mapping[str, Any], config: Config) -> Iterator[Located]:
    from encpipe.sources import remote

    filesystem = remote.connect(source, options, config)
    try:
        found, root = filesystem.find()
        entries = list(found)
    except FileNotFoundError:
        raise StorageError(f"no source at {shown(source)}", hint="check the URL", code="not-found") from None
    except EncpipeError:
        raise
    except Exception as error:  # noqa: BLE001 - each fsspec back end raises its SDK's own
        raise StorageError(f"source {shown(source)} cannot be listed: {first_line(error)}") from None
    for entry in entries:
        name = entry.path.removeprefix(root).lstrip("/")
        if not _hidden(name):
            yield Located(name, entry.path, entry.size, entry.stamp, filesystem)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
