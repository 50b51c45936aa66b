"""Sources behind URLs: `s3://` by Arrow's own client under encpipe's TLS rules, anything else by fsspec."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate
from pyarrow import fs

from encpipe.config import Config
from encpipe.errors import ConfigError, MissingExtraError
from encpipe.sources.locate import WILD, Entry, Remote, base_of, first_line, shown

_REFUSED: Final = ("http", "https", "ftp")
_STAMPS: Final = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


def connect(source: str, options: Mapping[str, Any], config: Config) -> Remote:
    """The storage behind a URL. Raises `ConfigError`, `MissingExtraError`."""
    scheme = source.partition("://")[0].lower()
    if scheme in _REFUSED:
        raise ConfigError(f"{scheme}:// is no source", hint="download the files first, and name their folder")
    if scheme in ("s3", "s3a"):
        return _S3(source.partition("://")[2], options, config)
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


class _S3:
    def __init__(self, path: str, options: Mapping[str, Any], config: Config) -> None:
        from encpipe.storage.s3_client import Connection, S3Options

        self._path = path.strip("/")
        self._connection = Connection(S3Options.parse(options), config.tls)

    def find(self) -> tuple[Iterable[Entry], str]:
        client = self._connection.arrow()
        if WILD.search(self._path):
            base, pattern = base_of(self._path), re.compile(glob_translate(self._path))
            return (e for e in self._below(client, base) if pattern.fullmatch(e.path)), base
        info = client.get_file_info(self._path)
        if info.type == fs.FileType.File:
            return [_entry(info)], self._path.rpartition("/")[0]
        return self._below(client, self._path), self._path

    def _below(self, client: fs.S3FileSystem, folder: str) -> list[Entry]:
        if not folder:
            raise ConfigError("an s3 source needs a bucket without wildcards", hint="s3://BUCKET/PATH")
        found = client.get_file_info(fs.FileSelector(folder, recursive=True))
        return [_entry(info) for info in found if info.type == fs.FileType.File]

    def open_input(self, path: str, cache: str) -> pa.NativeFile:  # noqa: ARG002 - Arrow reads what is asked
        return self._connection.arrow().open_input_file(path)


def _entry(info: fs.FileInfo) -> Entry:
    return Entry(info.path, int(info.size), "" if info.mtime is None else str(info.mtime_ns))
