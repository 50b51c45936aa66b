"""The older versions of a bucket that keeps them: what they are, and removing one for good.

Needs `s3:ListBucketVersions` and `s3:DeleteObjectVersion`; to say what keeps a version also
`s3:GetObjectRetention` and `s3:GetObjectLegalHold`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from encpipe.errors import StorageError
from encpipe.storage.base import OldVersion
from encpipe.storage.paths import check_prefix
from encpipe.storage.s3_errors import code_of, status_of
from encpipe.storage.s3_objects import Objects

if TYPE_CHECKING:
    from collections.abc import Callable


def listed(objects: Objects, prefix: str) -> list[OldVersion]:
    """The versions below `prefix` that are not the newest of their object."""
    start = len(objects.root)
    with objects.mapped(prefix):
        pages = objects.client.get_paginator("list_object_versions").paginate(
            Bucket=objects.bucket, Prefix=objects.root + check_prefix(prefix)
        )
        return [
            OldVersion(entry["Key"][start:], entry["VersionId"])
            for page in pages
            for entry in page.get("Versions", ())
            if not entry["IsLatest"]
        ]


def delete(objects: Objects, old: OldVersion) -> None:
    """Remove one version. Raises `StorageError` `storage-denied` that names the lock, where there is one."""
    with objects.mapped(old.path):
        try:
            objects.client.delete_object(**objects.at(old.path), VersionId=old.version)
        except ClientError as error:
            if code_of(error) in ("NoSuchVersion", "NoSuchKey"):
                return
            lock = _lock(objects, old) if status_of(error) in (400, 403) else ""
            if not lock:
                raise
            raise StorageError(
                f"{old.path!r} in {objects.url}: a version is kept by {lock}",
                hint="remove it when the lock is over: run the same command again",
                code="storage-denied",
            ) from None


def _lock(objects: Objects, old: OldVersion) -> str:
    """What keeps a version; empty where nothing is seen to."""
    at, client = objects.at(old.path), objects.client

    def hold() -> str:
        answer = client.get_object_legal_hold(**at, VersionId=old.version)
        return "a legal hold" if answer.get("LegalHold", {}).get("Status") == "ON" else ""

    def retention() -> str:
        found = client.get_object_retention(**at, VersionId=old.version).get("Retention", {})
        until = found.get("RetainUntilDate")
        return f"object lock ({found.get('Mode', '')}) until {until:%Y-%m-%dT%H:%M:%SZ}" if until else ""

    return _told(hold) or _told(retention)


def _told(ask: Callable[[], str]) -> str:
    with contextlib.suppress(ClientError, BotoCoreError):  # not to be asked, or no lock in this bucket
        return ask()
    return ""
