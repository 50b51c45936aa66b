"""A writable stream that becomes one object, or nothing: a single PUT when small, else a multipart upload."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from encpipe.errors import StorageError
from encpipe.storage.s3_errors import code_of, is_refusal
from encpipe.storage.s3_objects import MARK, Condition, Objects, RefusedError, md5, new_mark

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES: Final = 16 << 20
"""Size of a part; also what one open stream holds in memory, twice at most."""
_PARTS_PER_SIZE: Final = 2000
"""The part size doubles after this many parts, so that S3's limit of 10,000 reaches 496 GiB."""


class Upload(io.BufferedIOBase):
    """Sends each part when it is full, in the writer's thread. `finish` or `abort` ends it."""

    def __init__(self, objects: Objects, path: str, condition: Condition) -> None:
        self._objects, self._path, self._condition = objects, path, condition
        self._mark = new_mark()
        self._buffer = bytearray()
        self._parts: list[CompletedPartTypeDef] = []
        self._upload_id: str | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to a closed stream")
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PART_BYTES):
            self._buffer += view[start : start + PART_BYTES]
            while len(self._buffer) >= self._part_bytes():
                self._send(self._part_bytes())
        return len(view)

    def _part_bytes(self) -> int:
        return PART_BYTES << (len(self._parts) // _PARTS_PER_SIZE)

    def _send(self, count: int) -> None:
        objects, number = self._objects, len(self._parts) + 1
        part = bytes(memoryview(self._buffer)[:count])
        with objects.mapped(self._path):
            if self._upload_id is None:
                started = objects.client.create_multipart_upload(
                    **objects.at(self._path), Metadata={MARK: self._mark}
                )
                self._upload_id = started["UploadId"]
            answer = objects.client.upload_part(
                **objects.at(self._path),
                UploadId=self._upload_id,
                PartNumber=number,
                Body=part,
                ContentMD5=md5(part),
            )
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})
        del self._buffer[:count]

    def finish(self) -> None:
        """Make the object. Raises `RefusedError` when there is one already."""
        if self._upload_id is None:
            self._objects.put(self._path, bytes(self._buffer), self._condition, mark=self._mark)
            return
        if self._buffer:
            self._send(len(self._buffer))
        with self._objects.mapped(self._path):
            try:
                self._complete(self._upload_id)
            except ClientError as error:
                # "NoSuchUpload" is what a retry hears when the answer to the first try got lost
                if self._objects.marked(self._path, self._mark) is None:
                    if is_refusal(error):
                        raise RefusedError from None
                    raise
                if code_of(error) != "NoSuchUpload" and not is_refusal(error):
                    raise

    def _complete(self, upload_id: str) -> None:
        answer = self._objects.client.complete_multipart_upload(
            **self._objects.at(self._path),
            UploadId=upload_id,
            MultipartUpload={"Parts": self._parts},
            **self._condition,
        )
        if "ETag" not in answer:  # S3 may answer 200 and tell of a failure in the body
            raise StorageError(
                f"{self._path!r} in {self._objects.url}: the upload was not completed",
                hint="run the same command again",
                code="storage-unavailable",
            )

    def abort(self) -> None:
        """Leave nothing behind. A failure here costs storage, not correctness: `gc` cleans up."""
        self._buffer.clear()
        if self._upload_id is not None:
            with contextlib.suppress(ClientError, BotoCoreError):
                self._objects.client.abort_multipart_upload(
                    **self._objects.at(self._path), UploadId=self._upload_id
                )
