"""A dataset in a bucket: boto3 for writes and control, Arrow's own client for random access.

Needs `s3:GetObject` and `s3:ListBucket`; to write also `s3:PutObject`, `s3:DeleteObject` and
`s3:AbortMultipartUpload`. An object appears whole, by one PUT or one CompleteMultipartUpload. A killed upload
leaves parts that no listing of objects shows: `gc` drops them, or a lifecycle rule of the bucket.

Ranged reads of Arrow's client carry no checksum, and a short answer of the right form comes out padded: only
the tags of what is sealed tell, so `open_input` is not for bytes that nothing authenticates. Not to be used
in a forked child: open it again there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
from pyarrow import fs

from encpipe.config import Config
from encpipe.errors import ConfigError, ConflictError, EncpipeError, StorageError
from encpipe.negotiation import Negotiated, negotiated
from encpipe.storage import s3_stale, s3_versions
from encpipe.storage.base import ObjectInfo, OldVersion, Storage, UnfinishedUpload
from encpipe.storage.paths import (
    MAX_COMMITTED_BYTES,
    check_new_path,
    check_path,
    check_prefix,
    in_doubt,
    taken,
)
from encpipe.storage.s3_client import Connection, S3Options
from encpipe.storage.s3_conditions import Conditions
from encpipe.storage.s3_errors import from_arrow
from encpipe.storage.s3_lease import Lease
from encpipe.storage.s3_objects import Condition, Found, Objects, RefusedError, new_mark
from encpipe.storage.s3_ranges import RangedReader
from encpipe.storage.s3_upload import Upload

COMMIT_ATTEMPTS: Final = 3
"""Tries of a commit whose fate an outage hid, each after reading back."""


class S3Storage(Storage):
    """`s3://bucket/prefix`. Options: see `S3Options`."""

    def __init__(self, url: str, options: Mapping[str, Any], config: Config) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not bucket or "@" in bucket:
            raise ConfigError("an s3:// URL names no bucket", hint="write s3://bucket/prefix; no credentials")
        parsed = S3Options.parse(options)
        self.url = url
        self._connection = Connection(parsed, config.tls)
        root = f"{check_path(prefix)}/" if prefix else ""
        self._objects = Objects(self._connection, bucket, root, url)
        self._conditions = Conditions(self._objects, single_writer=parsed.single_writer)

    def read(self, path: str, *, limit: int) -> bytes:
        return self._objects.get(_key(path), limit=limit).data

    def size(self, path: str) -> int:
        return int(self._objects.head(_key(path))["ContentLength"])

    def open_input(self, path: str) -> pa.NativeFile:
        if not self._connection.arrow_can:
            return pa.PythonFile(RangedReader(self._objects, _key(path)), "r")
        filesystem, place = self.arrow_path(path)
        try:
            return filesystem.open_input_file(place)
        except OSError as error:
            raise from_arrow(error, path, self.url) from None

    def first_bytes(self, path: str, size: int) -> bytes:
        return self._objects.first(_key(path), size)

    def arrow_path(self, path: str) -> tuple[fs.FileSystem, str]:
        if not self._connection.arrow_can:
            raise StorageError(
                f"{path!r} in {self.url}: Arrow's S3 client cannot present a client certificate, and follows "
                "redirects to any server in regions other than us-east-1",
                hint="use Dataset.scan(), which reads by boto3 instead",
                code="unsupported",
            )
        key = _key(path)
        with self._objects.mapped(path):
            return self._connection.arrow(), f"{self._objects.bucket}/{self._objects.root}{key}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        objects = self._objects
        start = len(objects.root)
        with objects.mapped(prefix):
            pages = objects.client.get_paginator("list_objects_v2").paginate(
                Bucket=objects.bucket, Prefix=objects.root + check_prefix(prefix)
            )
            found = [
                ObjectInfo(entry["Key"][start:], entry["Size"], entry["LastModified"].astimezone(UTC))
                for page in pages
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")  # a console's folder marker
            ]
        found.sort(key=attrgetter("path"))  # some servers list folder by folder
        yield from found

    def old_versions(self, prefix: str = "") -> Iterator[OldVersion]:
        """As the contract has it. Needs `s3:ListBucketVersions`; the bucket may never have kept any."""
        yield from s3_versions.listed(self._objects, prefix)

    def read_version(self, old: OldVersion, *, limit: int) -> bytes:
        """As the contract has it. Needs `s3:GetObjectVersion`."""
        return self._objects.get(_key(old.path), limit=limit, version=old.version).data

    def delete_version(self, old: OldVersion) -> None:
        """As the contract has it. Needs `s3:DeleteObjectVersion`."""
        _key(old.path)
        s3_versions.delete(self._objects, old)

    def create(self, path: str, data: bytes) -> None:
        with self._new(path) as condition:
            self._objects.put(check_new_path(path), data, condition, mark=new_mark())

    @contextlib.contextmanager
    def create_file(self, path: str) -> Iterator[BinaryIO]:
        with self._new(path) as condition:
            upload = Upload(self._objects, check_new_path(path), condition)
            try:
                yield cast("BinaryIO", upload)
                upload.finish()
            except BaseException:
                upload.abort()
                raise

    @contextlib.contextmanager
    def _new(self, path: str) -> Iterator[Condition]:
        """The condition for a new object at `path`; a refusal in the block means there is one."""
        condition = self._conditions.matching(None)
        if self._conditions.single_writer and self._objects.exists(_key(path)):
            raise taken(path, self.url)
        try:
            yield condition
        except RefusedError:
            raise taken(path, self.url) from None

    def delete(self, path: str) -> None:
        self._objects.delete(_key(path))

    def commit(
        self,
        path: str,
        data: bytes,
        *,
        check: Callable[[bytes | None], None],
        is_ours: Callable[[bytes], bool],
    ) -> None:
        seen = self._committed(check_new_path(path))
        condition = self._conditions.matching(seen.etag if seen else None)
        check(seen.data if seen else None)
        try:
            self._replace(path, data, seen, condition, is_ours)
        except EncpipeError as error:
            if isinstance(error, ConflictError) or error.code == "conditional-writes":
                raise
            raise in_doubt(error) from None

    def _replace(
        self,
        path: str,
        data: bytes,
        seen: Found | None,
        condition: Condition,
        is_ours: Callable[[bytes], bool],
    ) -> None:
        outage: StorageError | None = None
        for _ in range(COMMIT_ATTEMPTS):
            try:
                self._objects.put(path, data, condition, mark=new_mark())
            except RefusedError:
                outage = None
            except StorageError as error:
                if error.code != "storage-unavailable":
                    raise
                outage = error
            else:
                return
            if self._happened(path, seen, is_ours):
                return
            if outage is None:
                raise StorageError(
                    f"the S3 server of {self.url} refused to replace {path!r}, which nobody has changed",
                    hint="try again; if it stays, add --single-writer (option single_writer=True)",
                    code="conditional-writes",
                )
        assert outage is not None
        raise outage

    def _happened(self, path: str, seen: Found | None, is_ours: Callable[[bytes], bool]) -> bool:
        """Whether our write was done after all; raises `ConflictError` when another one was."""
        now = self._committed(path)
        if now is not None and is_ours(now.data):
            return True
        if (now and now.etag) != (seen and seen.etag):
            raise ConflictError(
                f"another writer committed {path!r} in {self.url} first",
                hint="run the command again: it starts from what the other writer committed",
            )
        return False

    def _committed(self, path: str) -> Found | None:
        return self._objects.find(_key(path), limit=MAX_COMMITTED_BYTES)

    @contextlib.contextmanager
    def hold(self, path: str) -> Iterator[None]:
        lease = Lease(self._objects, check_new_path(path), self._conditions)
        lease.acquire()
        try:
            yield
        finally:
            lease.release()

    def is_held(self, path: str) -> bool:
        return Lease(self._objects, _key(path), self._conditions).is_live()

    def now(self) -> datetime:
        return s3_stale.now(self._objects)

    def unfinished_uploads(self) -> Iterator[UnfinishedUpload]:
        """As the contract has it. Needs `s3:ListBucketMultipartUploads`."""
        yield from s3_stale.unfinished(self._objects)

    def drop_upload(self, upload: UnfinishedUpload) -> None:
        s3_stale.drop(self._objects, upload)

    def negotiated(self) -> Negotiated | None:
        endpoint = self._connection.endpoint
        return negotiated(endpoint, self._connection.tls) if endpoint.startswith("https:") else None

    def close(self) -> None:
        self._connection.client.close()


def _key(path: str) -> str:
    """`path`, checked. Raises `StorageError` also for text that is not Unicode: a key is UTF-8."""
    try:
        check_path(path).encode()
    except UnicodeEncodeError:
        raise StorageError(f"the path {path[:200]!r} is not valid Unicode, as S3 keys must be") from None
    return path
