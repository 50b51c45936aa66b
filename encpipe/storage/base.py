"""The contract of a storage back end. Paths are relative to the dataset's URL, "/" between parts.

Every method raises `StorageError` (codes `not-found`, `exists`, `storage-denied`, `storage-full`,
`storage-unavailable`, `storage`), never an error of the operating system or of an SDK; an S3 back end also
`ConfigError` (untrusted certificate, wrong region). All are safe to call from several threads.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO, Final

import pyarrow as pa
from pyarrow import fs

from encpipe.errors import StorageError
from encpipe.negotiation import Negotiated

_PIECE_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class ObjectInfo:
    """One object: path below the dataset, size in bytes, last change by the storage's clock (UTC)."""

    path: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload that was neither finished nor dropped: the path it is for, its start by the storage's clock
    (UTC), and the storage's own name of it."""

    path: str
    started: datetime
    id: str


@dataclass(frozen=True)
class OldVersion:
    """What an object held before it was replaced or deleted: path below the dataset, id of the version."""

    path: str
    version: str


class Storage(ABC):
    """Where one dataset lives.

    Guarantees of every back end: an object that `create` or `create_file` made is whole and durable, or not
    there at all (after `storage-unavailable` it may be there); `commit` replaces one object as a whole, and
    of two racing commits at most one passes whose check saw the same state.
    """

    url: str
    """What the user named, without credentials, for messages."""

    remote: bool = False
    """Whether every read is a request to another machine, so that a few large ones are better."""

    @abstractmethod
    def read(self, path: str, *, limit: int) -> bytes:
        """The whole object. Raises `StorageError` `not-found`, or `storage` beyond `limit` bytes."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Size in bytes. Raises `StorageError` `not-found`."""

    @abstractmethod
    def open_input(self, path: str) -> pa.NativeFile:
        """Random access for one thread at a time; to be closed by the caller.

        Never a Python object behind the scenes: PyArrow may abort at exit with one (docs/adr).
        """

    def first_bytes(self, path: str, size: int) -> bytes:
        """The first `size` bytes, or all where there are fewer. Raises `StorageError` `not-found`."""
        try:
            with self.open_input(path) as source:
                return bytes(source.read(size))
        except OSError:  # its text may show the endpoint's answer
            raise StorageError(
                f"{path!r} in {self.url} could not be read",
                hint="run the same command again",
                code="storage-unavailable",
            ) from None

    def sha256(self, path: str) -> bytes:
        """SHA-256 of the whole object, read piece by piece. Raises `StorageError` `not-found`."""
        digest = hashlib.sha256()
        with self.open_input(path) as source:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.digest()

    @abstractmethod
    def arrow_path(self, path: str) -> tuple[fs.FileSystem, str]:
        """Arrow's own file system and the path in it, for fragments of a PyArrow dataset."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose path starts with `prefix` (a folder path ending in "/", or ""), in path order."""

    def old_versions(self, prefix: str = "") -> Iterator[OldVersion]:  # noqa: ARG002 - most keep none
        """The versions that were replaced or deleted and are still there, where the storage keeps any.

        Raises `StorageError` `storage-denied` where they may not be listed.
        """
        return iter(())

    def read_version(self, old: OldVersion, *, limit: int) -> bytes:
        """What that version holds. Raises `StorageError` `not-found` when it is gone."""
        return self.read(old.path, limit=limit)

    def delete_version(self, old: OldVersion) -> None:  # noqa: B027 - most back ends keep none
        """Remove that version for good; none there is no error.

        Raises `StorageError` `storage-denied` where something keeps it, and the message says what: a right
        that is missing, or a lock. No lock is got around.
        """

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Make a new object, durable on return. Raises `StorageError` `exists` when there is one."""

    @abstractmethod
    def create_file(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A writable stream that becomes the object when the block ends without an error.

        On an error nothing is left behind; what exists is never overwritten (`exists`). A killed process
        leaves at most a temp file, which `list` reports, or parts of an upload. Closing early does no harm.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; none there is no error."""

    @abstractmethod
    def commit(
        self,
        path: str,
        data: bytes,
        *,
        check: Callable[[bytes | None], None],
        is_ours: Callable[[bytes], bool],
    ) -> None:
        """Replace `path` by `data` if `check(current bytes, None when absent)` does not raise.

        Atomic against every other commit: when the object changes between check and write, raises
        `ConflictError` and leaves it as it is. An answer lost on the way is settled by `is_ours(current
        bytes)`: True means our write did happen. What `check` raises passes through; it must not commit, as a
        lock may be held meanwhile. What fails once the write was asked for is `storage-unavailable` (it may
        still have happened), `ConflictError` or `conditional-writes` (it did not).
        """

    @abstractmethod
    def hold(self, path: str) -> AbstractContextManager[None]:
        """Be the one live owner of `path` for the length of the block.

        Raises `ConflictError` `locked` when another live process (or thread) is. Ends with the process, also
        on kill -9: at once on a local disk, after the lease time elsewhere. `path` is an object of its own,
        gone afterwards. A lease may be lost in an outage; the block goes on, and the commit decides.
        """

    @abstractmethod
    def is_held(self, path: str) -> bool:
        """Whether a live owner holds `path` now. Changes nothing."""

    def now(self) -> datetime:
        """The time (UTC) by the clock of `ObjectInfo.modified`; never ahead of it."""
        return datetime.now(UTC)

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        """Uploads that were begun and neither finished nor dropped, live ones included."""
        return iter(())

    def drop_upload(self, upload: UnfinishedUpload) -> None:  # noqa: B027 - most back ends have no uploads
        """Remove what an upload left; none there is no error. Its writer, if alive, gets an error."""

    def negotiated(self) -> Negotiated | None:
        """What a TLS connection to this storage comes to; None where it is reached without TLS.

        Raises as `encpipe.negotiation.negotiated` does.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most back ends have nothing to release
        """Release connections. The storage is not used afterwards."""
