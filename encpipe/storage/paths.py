"""Which paths a storage takes: relative, "/" between parts, never leaving the dataset."""

from __future__ import annotations

import re
from typing import Final

from encpipe.errors import EncpipeError, StorageError

MAX_PATH_BYTES: Final = 900
"""UTF-8 bytes of a path: S3 keys end at 1024, and the dataset's own prefix needs room."""
MAX_PART_BYTES: Final = 255
"""UTF-8 bytes of one part: the limit of Linux file systems, and of SeaweedFS."""
LOCK_PATH: Final = "_encpipe/lock"
"""What commits lock on a local disk. Never deleted by a storage, reported by `list`."""
MAX_COMMITTED_BYTES: Final = 64 << 20
"""Largest object `commit` reads back for its check; a manifest has at most 16 MiB."""
_NOT_PORTABLE: Final = re.compile(r"[\\\x00-\x1f\x7f\ud800-\udfff]")


def check_path(path: str) -> str:
    """`path` itself. Raises `StorageError` when it is absolute or too long, or has a part "", "." or ".."."""
    parts = path.split("/")
    try:
        raw = path.encode("utf-8", "surrogateescape")  # what a disk may hold that is not Unicode
    except UnicodeEncodeError:
        raise StorageError(f"the path {path[:200]!r} is not text") from None
    if any(part in ("", ".", "..") for part in parts) or b"\0" in raw:
        raise StorageError(f"the path {path[:200]!r} would leave the dataset or names no object in it")
    longest = max(len(part.encode("utf-8", "surrogateescape")) for part in parts)
    if len(raw) > MAX_PATH_BYTES or longest > MAX_PART_BYTES:
        raise StorageError(
            f"the path {path[:60]!r}... is too long: {len(raw)} bytes, its longest part {longest}",
            hint=f"at most {MAX_PATH_BYTES} bytes, {MAX_PART_BYTES} for a part: shorten partition values",
        )
    return path


def check_new_path(path: str) -> str:
    """`path` itself, if an object of that name can be made, and copied to any other storage.

    Raises `StorageError` like `check_path`, and for what some S3 servers take for another name: backslashes
    (SeaweedFS makes them "/"), control characters, and text that is not Unicode.
    """
    if _NOT_PORTABLE.search(check_path(path)):
        raise StorageError(
            f"the path {path[:200]!r} has characters that not every storage keeps",
            hint="percent-encode backslashes and control characters in folder names",
        )
    return path


def check_prefix(prefix: str) -> str:
    """`prefix` itself, "" or a folder path ending in "/". Raises `StorageError` like `check_path`."""
    if prefix:
        check_path(prefix.removesuffix("/"))
        if not prefix.endswith("/"):
            raise StorageError(f"the prefix {prefix[:200]!r} does not end in '/'")
    return prefix


def absent(path: str, url: str) -> StorageError:
    """There is no such object."""
    return StorageError(f"no object {path!r} in {url}", hint="check the URL", code="not-found")


def in_doubt(error: EncpipeError) -> StorageError:
    """Something failed after a write was asked for, so the write may have happened: `storage-unavailable`."""
    if isinstance(error, StorageError) and error.code == "storage-unavailable":
        return error
    return StorageError(
        f"{error.message}; whether the write happened is not known",
        hint=error.hint or "run the same command again: it finds out",
        code="storage-unavailable",
    )


def taken(path: str, url: str) -> StorageError:
    """There is one already, and it stays."""
    return StorageError(f"the object {path!r} in {url} exists and is not overwritten", code="exists")


def too_large(path: str, url: str, limit: int) -> StorageError:
    """Larger than the reader is ready for."""
    return StorageError(f"the object {path!r} in {url} is larger than the {limit} bytes it may have")
