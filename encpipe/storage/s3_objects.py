"""Single requests on one bucket: read, conditional write, and telling our own write from another's.

Every write carries a random mark in the object's metadata. When an answer gets lost and the SDK's retry is
refused, the mark tells whether the object there is the one we wrote.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from botocore.exceptions import (
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

from encpipe.errors import EncpipeError, StorageError
from encpipe.storage.paths import absent, in_doubt, too_large
from encpipe.storage.s3_client import Connection
from encpipe.storage.s3_errors import is_absent, is_busy, is_refusal, mapped, status_of

MARK: Final = "encpipe-write"
"""Name of the metadata field that marks a write."""
READ_ATTEMPTS: Final = 3
"""Tries to get a whole body; the SDK itself retries only what comes before the body."""
BUSY_ATTEMPTS: Final = 6
"""Tries of a write while another conditional write of the same object is under way (409)."""
BUSY_PAUSE_SECONDS: Final = 0.05
"""Pause before the second of them; it doubles each time, and varies so that two writers come apart."""
_BROKEN_BODY: Final = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


Read = TypeVar("Read")


class Address(TypedDict):
    """Where an object lies, as boto3 takes it."""

    Bucket: str
    Key: str


class Version(TypedDict, total=False):
    """Which version of an object is meant; empty for the newest."""

    VersionId: str


class Condition(TypedDict, total=False):
    """What must hold for a write: `{"IfNoneMatch": "*"}`, `{"IfMatch": etag}`, or nothing."""

    IfNoneMatch: str
    IfMatch: str


class RefusedError(Exception):
    """The condition of a write did not hold. Stays inside the storage."""


@dataclass(frozen=True)
class Found:
    """An object as it was read: bytes, ETag, mark, and its age in seconds by the server's clock."""

    data: bytes
    etag: str
    mark: str
    age: float


def _tried(read: Callable[[], Read]) -> Read:
    """What `read` gives, tried again where the body breaks off."""
    for _ in range(READ_ATTEMPTS - 1):
        with contextlib.suppress(*_BROKEN_BODY):
            return read()
    return read()


def new_mark() -> str:
    """A mark for one write."""
    return secrets.token_hex(16)


def md5(data: bytes) -> str:
    """What the server compares an upload with: it finds damage, it protects nothing (RFC 1864)."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class Objects:
    """One bucket and prefix. Paths are checked by the caller."""

    def __init__(self, connection: Connection, bucket: str, root: str, url: str) -> None:
        self.connection, self.client = connection, connection.client
        self.bucket, self.root, self.url = bucket, root, url

    def at(self, path: str) -> Address:
        """Bucket and Key of `path`."""
        return {"Bucket": self.bucket, "Key": self.root + path}

    def mapped(self, path: str) -> AbstractContextManager[None]:
        """Raise errors of our tree about `path`."""
        return mapped(path, self.url, self.connection.endpoint)

    def head(self, path: str) -> HeadObjectOutputTypeDef:
        """The answer of HEAD. Raises `StorageError` `not-found`."""
        with self.mapped(path):
            return self.client.head_object(**self.at(path))

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            self.head(path)
        except StorageError as error:
            if error.code != "not-found":
                raise
            return False
        return True

    def find(self, path: str, *, limit: int, version: str = "") -> Found | None:
        """The whole object, its length checked, or None. Raises `StorageError` beyond `limit` bytes."""
        with self.mapped(path):
            return _tried(lambda: self._find(path, limit, version))

    def get(self, path: str, *, limit: int, version: str = "") -> Found:
        """Like `find`, but raises `StorageError` `not-found` when there is no object."""
        found = self.find(path, limit=limit, version=version)
        if found is None:
            raise absent(path, self.url)
        return found

    def first(self, path: str, size: int) -> bytes:
        """The first `size` bytes, or all where there are fewer. Raises `StorageError` `not-found`."""
        with self.mapped(path):
            return _tried(lambda: self._some(path, 0, size))

    def range(self, path: str, start: int, size: int) -> bytes:
        """The `size` bytes from `start` on. Raises `StorageError` where the object has fewer."""
        with self.mapped(path):
            data = _tried(lambda: self._some(path, start, size))
            if len(data) < size:  # it was cut since, or the answer is a lie
                raise IncompleteReadError(actual_bytes=len(data), expected_bytes=size)
            return data

    def _some(self, path: str, start: int, size: int) -> bytes:
        try:
            answer = self.client.get_object(**self.at(path), Range=f"bytes={start}-{start + size - 1}")
        except ClientError as error:
            if status_of(error) == 416:  # an empty object has no first byte
                return b""
            raise
        with contextlib.closing(answer["Body"]) as body:
            data = body.read(size)
        wanted = min(size, answer["ContentLength"])
        if len(data) < wanted:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=wanted)
        return data

    def _find(self, path: str, limit: int, version: str) -> Found | None:
        which: Version = {"VersionId": version} if version else {}
        try:
            answer = self.client.get_object(**self.at(path), **which)
        except ClientError as error:
            if is_absent(error):
                return None
            raise
        length = answer["ContentLength"]
        body = answer["Body"]
        try:
            if length > limit:
                raise too_large(path, self.url, limit)
            data = body.read()
        finally:
            body.close()
        if len(data) != length:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=length)
        return Found(data, answer["ETag"], answer.get("Metadata", {}).get(MARK, ""), _age(answer))

    def put(self, path: str, data: bytes, condition: Condition, *, mark: str) -> str:
        """Write one object and return its ETag. Raises `RefusedError` when the condition did not hold, and
        `StorageError` `storage-unavailable` when another write of the object stayed under way.

        A refusal that only follows from our own first try, its answer lost, counts as written.
        """
        with self.mapped(path):
            for attempt in range(BUSY_ATTEMPTS):
                if attempt:
                    pause = BUSY_PAUSE_SECONDS * 2 ** (attempt - 1)
                    time.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
                try:
                    answer = self.client.put_object(
                        **self.at(path), Body=data, ContentMD5=md5(data), Metadata={MARK: mark}, **condition
                    )
                except ClientError as error:
                    if not is_refusal(error):
                        raise
                    busy = is_busy(error)
                else:
                    return answer["ETag"]
                etag = self._settled(path, mark)
                if etag is not None:
                    return etag
                if not busy:
                    raise RefusedError
        raise StorageError(
            f"{path!r} in {self.url}: another write of the same object stays under way",
            hint="run the same command again",
            code="storage-unavailable",
        )

    def _settled(self, path: str, mark: str) -> str | None:
        """Like `marked`, but a failure leaves it open whether our write happened."""
        try:
            return self.marked(path, mark)
        except EncpipeError as error:
            raise in_doubt(error) from None

    def marked(self, path: str, mark: str) -> str | None:
        """The ETag of the object if the write with `mark` made it."""
        with self.mapped(path):
            try:
                answer = self.client.head_object(**self.at(path))
            except ClientError as error:
                if is_absent(error):
                    return None
                raise
        return answer["ETag"] if answer.get("Metadata", {}).get(MARK) == mark else None

    def delete(self, path: str) -> None:
        """Remove an object; none there is no error."""
        with self.mapped(path):
            self.client.delete_object(**self.at(path))


def _age(answer: Any) -> float:
    """Seconds since the last change, both times by the server's clock."""
    modified: datetime = answer["LastModified"]
    date = server_date(answer)
    return (date - modified).total_seconds() if date else 0.0


def server_date(answer: Any) -> datetime | None:
    """When the server answered, by its own clock, cut to the second."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(date) if date else None
