"""What gc asks of a bucket: its clock, and unfinished uploads, which no listing of objects shows.

Needs `s3:ListBucketMultipartUploads` beside what writing needs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from operator import attrgetter

from botocore.exceptions import ClientError

from encpipe.errors import StorageError
from encpipe.storage.base import UnfinishedUpload
from encpipe.storage.s3_errors import code_of
from encpipe.storage.s3_objects import Objects, server_date


def now(objects: Objects) -> datetime:
    """The server's time, from the Date of an answer. Raises `StorageError` when it tells none."""
    with objects.mapped(""):
        answer = objects.client.list_objects_v2(
            Bucket=objects.bucket, Prefix=f"{objects.root}_encpipe/", MaxKeys=1
        )
    date = server_date(answer)
    if date is None:
        raise StorageError(
            f"the S3 server of {objects.url} does not tell its time",
            hint="its answers lack the header Date: nothing can be told from the age of an object",
        )
    return date.astimezone(UTC)


def unfinished(objects: Objects) -> list[UnfinishedUpload]:
    """The uploads that were begun below the dataset and neither completed nor aborted, in path order."""
    with objects.mapped(""):
        pages = objects.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=objects.bucket, Prefix=objects.root
        )
        found = [
            UnfinishedUpload(
                entry["Key"][len(objects.root) :], entry["Initiated"].astimezone(UTC), entry["UploadId"]
            )
            for page in pages
            for entry in page.get("Uploads", ())
        ]
    return sorted(found, key=attrgetter("path", "id"))


def drop(objects: Objects, upload: UnfinishedUpload) -> None:
    """Abort an upload; one that is gone is no error."""
    with objects.mapped(upload.path):
        try:
            objects.client.abort_multipart_upload(**objects.at(upload.path), UploadId=upload.id)
        except ClientError as error:
            if code_of(error) != "NoSuchUpload":
                raise
