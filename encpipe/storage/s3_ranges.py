"""Random access to one object by boto3, for where Arrow's own client cannot be held to the TLS rules."""

from __future__ import annotations

import io
import os

from encpipe.storage.s3_objects import Objects


class RangedReader(io.RawIOBase):
    """The object at `path`, read-only; each read is one ranged GET, which is whole or raises `StorageError`.

    Making one asks for the object's size, and raises `StorageError` `not-found` where there is none. As with
    Arrow's client, no checksum covers a range: it is for bytes that are authenticated elsewhere.
    """

    def __init__(self, objects: Objects, path: str) -> None:
        super().__init__()
        self._objects, self._path = objects, path
        self._size = int(objects.head(path)["ContentLength"])
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """The new position. Raises `ValueError` for one before the object begins."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the beginning")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, or as many as there are; all that are left for -1 and None."""
        left = max(self._size - self._at, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        data = self._objects.range(self._path, self._at, wanted)
        self._at += wanted
        return data
