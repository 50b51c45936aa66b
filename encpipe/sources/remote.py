"""Sources behind URLs: `s3://` under encpipe's TLS rules, anything else by fsspec and under its own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate
from pyarrow import fs

from encpipe.config import Config
from encpipe.errors import ConfigError, MissingExtraError, StorageError
from encpipe.sources.locate import WILD, Entry, Remote, base_of, first_line, shown

if TYPE_CHECKING:
    from encpipe.storage.s3_client import Connection

_REFUSED: Final = ("http", "https", "ftp")
_STAMPS: Final = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


def connect(source: str, options: Mapping[str, Any], config: Config) -> Remote:
    """The storage behind a URL. Raises `ConfigError`, `MissingExtraError`."""
    scheme = source.partition("://")[0].lower()
    if scheme in _REFUSED:
        raise ConfigError(f"{scheme}:// is no source", hint="download the files first, and name their folder")
    if scheme in ("s3", "s3a"):
        return _s3(source.partition("://")[2].strip("/"), options, config)
    return _Fsspec(source, options)


class _Fsspec:
    def __init__(self, source: str, options: Mapping[str, Any]) -> None:
        try:
            self._fs, self._path = url_to_fs(source, **options)
        except ImportError as error:
            raise MissingExtraError(
                f"{shown(source)} needs a package that is not installed", hint=first_line(error)
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"source {shown(source)} cannot be opened: {first_line(error)}") from None

    def find(self) -> tuple[Iterable[Entry], str]:
        if WILD.search(self._path):
            return self._entries(self._fs.glob(self._path, detail=True)), base_of(self._path)
        info = self._fs.info(self._path)
        if info["type"] == "file":
            return self._entries({info["name"]: info}), info["name"].rpartition("/")[0]
        return self._entries(self._fs.find(self._path, detail=True)), self._path

    def _entries(self, found: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
        return [
            Entry(path, int(info.get("size") or 0), next((str(info[k]) for k in _STAMPS if info.get(k)), ""))
            for path, info in found.items()
            if info["type"] == "file"
        ]

    def open_input(self, path: str, cache: str) -> pa.NativeFile:
        return pa.PythonFile(self._fs.open(path, "rb", cache_type=cache), "r")


def _s3(path: str, options: Mapping[str, Any], config: Config) -> Remote:
    from encpipe.storage.s3_client import Connection, S3Options

    connection = Connection(S3Options.parse(options), config.tls)
    return _ByArrow(path, connection) if connection.arrow_can else _ByBoto(path, options, config)


class _Bucket(ABC):
    """What lies at a path, or below it, or matches it. `path` has the bucket in front."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find(self) -> tuple[Iterable[Entry], str]:
        if WILD.search(self._path):
            base, pattern = base_of(self._path), re.compile(glob_translate(self._path))
            return (e for e in self._below_bucket(base) if pattern.fullmatch(e.path)), base
        one = self._one(self._path)
        if one is not None:
            return [one], self._path.rpartition("/")[0]
        return self._below_bucket(self._path), self._path

    def _below_bucket(self, folder: str) -> Iterable[Entry]:
        if not folder:
            raise ConfigError("an s3 source needs a bucket without wildcards", hint="s3://BUCKET/PATH")
        return self._below(folder)

    @abstractmethod
    def _one(self, path: str) -> Entry | None: ...

    @abstractmethod
    def _below(self, folder: str) -> Iterable[Entry]: ...

    @abstractmethod
    def open_input(self, path: str, cache: str) -> pa.NativeFile: ...


class _ByArrow(_Bucket):
    def __init__(self, path: str, connection: Connection) -> None:
        super().__init__(path)
        self._connection = connection

    def _one(self, path: str) -> Entry | None:
        info = self._connection.arrow().get_file_info(path)
        return _entry(info) if info.type == fs.FileType.File else None

    def _below(self, folder: str) -> Iterable[Entry]:
        found = self._connection.arrow().get_file_info(fs.FileSelector(folder, recursive=True))
        return [_entry(info) for info in found if info.type == fs.FileType.File]

    def open_input(self, path: str, cache: str) -> pa.NativeFile:  # noqa: ARG002 - Arrow reads what is asked
        return self._connection.arrow().open_input_file(path)


class _ByBoto(_Bucket):
    """Where Arrow's client cannot be held to the TLS rules."""

    def __init__(self, path: str, options: Mapping[str, Any], config: Config) -> None:
        from encpipe.storage.s3 import S3Storage

        super().__init__(path)
        self._bucket, _, _ = path.partition("/")
        self._storage = S3Storage(f"s3://{self._bucket}", options, config)

    def _one(self, path: str) -> Entry | None:
        if not self._key(path):
            return None
        try:
            self._storage.size(self._key(path))
        except StorageError as error:
            if error.code != "not-found":
                raise
            return None
        folder, _, _ = self._key(path).rpartition("/")
        listed = self._listed(f"{folder}/" if folder else "")
        return next((entry for entry in listed if entry.path == path), None)

    def _below(self, folder: str) -> Iterable[Entry]:
        key = self._key(folder)
        return list(self._listed(f"{key}/" if key else ""))

    def _listed(self, prefix: str) -> Iterator[Entry]:
        for found in self._storage.list(prefix):
            yield Entry(f"{self._bucket}/{found.path}", found.size, str(found.modified))

    def _key(self, path: str) -> str:
        return path.partition("/")[2]

    def open_input(self, path: str, cache: str) -> pa.NativeFile:  # noqa: ARG002 - as above
        return self._storage.open_input(self._key(path))


def _entry(info: fs.FileInfo) -> Entry:
    return Entry(info.path, int(info.size), "" if info.mtime is None else str(info.mtime_ns))
