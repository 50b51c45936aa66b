"""Files held in memory as a whole, each read once and given out only if its SHA-256 is the committed one.

Against a KEK holder who writes the storage: he can seal other pages under a file's own DEKs, which every
other check takes. Since the bytes that were hashed are the bytes that are decrypted, he gains nothing by
changing the file in between.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import pyarrow as pa

from encpipe.errors import IntegrityError, StorageError
from encpipe.filelist import FileEntry
from encpipe.perprocess import PerProcess

HELD_BYTES: Final = 2 << 30
"""Encrypted bytes that files kept open for the next read may take; those that are being read come on top."""


class _Held:
    """What one process has in memory: a buffer lives as long as a handle reads from it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loading: dict[str, threading.Lock] = {}
        self.buffers: WeakValueDictionary[str, pa.Buffer] = WeakValueDictionary()


class WholeFiles:
    """The files of one generation. Safe to use from several threads; a forked child reads them anew."""

    def __init__(self) -> None:
        self._process = PerProcess(_Held(), lambda _: _Held())

    def open(self, entry: FileEntry, open_input: Callable[[], pa.NativeFile]) -> pa.NativeFile:
        """The file as a reader of its own over the checked bytes.

        One of another size is given back as it is: whoever opens it compares the size first. Raises
        `IntegrityError` `file-hash`, `StorageError`.
        """
        held = self._process.get()
        with held.lock:
            loading = held.loading.setdefault(entry.path, threading.Lock())
        with loading:
            buffer = held.buffers.get(entry.path)
            if buffer is None:
                source = open_input()
                if source.size() != entry.size:
                    return source
                buffer = held.buffers[entry.path] = _checked(entry, source)
        return pa.BufferReader(buffer)


def _checked(entry: FileEntry, source: pa.NativeFile) -> pa.Buffer:
    try:
        with source:
            buffer = source.read_buffer(entry.size)
    except OSError as error:
        raise StorageError(
            f"file {entry.path} cannot be read: {error.strerror or 'the storage did not answer'}",
            hint="try again; the dataset is unchanged",
            code="storage-unavailable",
        ) from None
    if not hmac.compare_digest(hashlib.sha256(buffer).digest(), entry.sha256):
        raise IntegrityError(
            f"file {entry.path} has other bytes than committed",
            hint="someone rewrote the file, maybe one who has its keys: restore it from a copy you trust",
            code="file-hash",
        )
    return buffer


def open_at_once(largest: int, most: int) -> int:
    """How many files may stay open between reads where the largest has so many bytes: at most `most`."""
    return max(1, min(most, HELD_BYTES // max(largest, 1)))
