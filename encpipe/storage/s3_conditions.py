"""Whether a server honours conditional writes, found out by trying, once per bucket and prefix.

Old servers ignore the condition (two writers would both win) or answer a false 412 (nobody would).
"""

from __future__ import annotations

import secrets
import threading
from typing import Final

from encpipe.errors import StorageError
from encpipe.storage.s3_objects import Condition, Objects, RefusedError, new_mark

_NO_ETAG: Final = '"00000000000000000000000000000000"'

_lock = threading.Lock()
_proved: set[tuple[str, str, str]] = set()


class Conditions:
    """The conditions of one storage's writes; none at all for the only writer there is."""

    def __init__(self, objects: Objects, *, single_writer: bool) -> None:
        self._objects = objects
        self.single_writer = single_writer

    def matching(self, etag: str | None) -> Condition:
        """The condition that the object is still what was read: this ETag, or absent for None.

        Raises `StorageError` `conditional-writes` when the server was seen not to honour it.
        """
        if self.single_writer:
            return {}
        self.prove()
        return {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}

    def prove(self) -> None:
        """See both refusals and both passes in this bucket, or raise `StorageError` `conditional-writes`."""
        objects = self._objects
        place = (objects.connection.endpoint, objects.bucket, objects.root)
        with _lock:
            if place not in _proved:
                self._probe(f"_encpipe/probe-{secrets.token_hex(16)}")
                _proved.add(place)

    def _probe(self, path: str) -> None:
        try:
            etag = self._pass(path, {"IfNoneMatch": "*"})
            self._refuse(path, {"IfNoneMatch": "*"})
            self._refuse(path, {"IfMatch": _NO_ETAG})
            self._pass(path, {"IfMatch": etag})
        finally:
            self._objects.delete(path)

    def _pass(self, path: str, condition: Condition) -> str:
        mark = new_mark()
        try:
            return self._objects.put(path, mark.encode(), condition, mark=mark)
        except RefusedError:
            raise self._broken(f"refuses a write whose {'/'.join(condition)} holds") from None

    def _refuse(self, path: str, condition: Condition) -> None:
        mark = new_mark()
        try:
            self._objects.put(path, mark.encode(), condition, mark=mark)
        except RefusedError:
            return
        raise self._broken(f"ignores {'/'.join(condition)}")

    def _broken(self, what: str) -> StorageError:
        return StorageError(
            f"the S3 server of {self._objects.url} {what}: it cannot keep two writers apart",
            hint="if nobody else writes to this dataset, add --single-writer (option single_writer=True)",
            code="conditional-writes",
        )
