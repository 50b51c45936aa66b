"""Ownership on S3: a lease object that its owner renews by If-Match, on the server's clock.

The owner rewrites the object every `RENEW_SECONDS`. Whoever finds it unchanged for `LEASE_SECONDS`, by the
Date and Last-Modified of one answer, takes it over by If-Match: of several, one succeeds. No client's clock
counts. An owner that cannot renew for so long has lost it; its block goes on, and its commit, which is
conditional and finds its journal taken, decides. So a lease saves work; it does not protect data.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from encpipe.errors import ConflictError, EncpipeError
from encpipe.storage.s3_conditions import Conditions
from encpipe.storage.s3_objects import Found, Objects, RefusedError, new_mark

LEASE_SECONDS: Final = 60.0
RENEW_SECONDS: Final = 20.0
_MAX_BYTES: Final = 1024
_BODY: Final = b"encpipe lease\n"


class Lease:
    """`acquire`, then `release`; a daemon thread renews in between."""

    def __init__(
        self,
        objects: Objects,
        path: str,
        conditions: Conditions,
        *,
        lease: float | None = None,
        renew: float | None = None,
    ) -> None:
        self._objects, self._path, self._conditions = objects, path, conditions
        self._lease = LEASE_SECONDS if lease is None else lease
        self._renew = RENEW_SECONDS if renew is None else renew
        self._mark = new_mark()  # one for all renewals: after an outage we know our own lease by it
        self._etag = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="encpipe-lease", daemon=True)

    def acquire(self) -> None:
        """Raises `ConflictError` `locked` while another owner is alive, or was until `LEASE_SECONDS` ago."""
        found = self._objects.find(self._path, limit=_MAX_BYTES)
        if found is not None and found.age < self._lease:
            raise self._locked(found)
        try:
            self._write(found.etag if found is not None else None)
        except RefusedError:
            raise self._locked(None) from None
        self._thread.start()

    def is_live(self) -> bool:
        """Whether an owner renewed it within `LEASE_SECONDS`."""
        found = self._objects.find(self._path, limit=_MAX_BYTES)
        return found is not None and found.age < self._lease

    def release(self) -> None:
        """Stop renewing and remove the lease if it is still ours."""
        self._stop.set()
        self._thread.join()
        if self._objects.marked(self._path, self._mark) is not None:
            self._objects.delete(self._path)

    def _write(self, etag: str | None) -> None:
        # the body differs each time, or the ETag would stay the same and a stale condition would pass
        body = _BODY + new_mark().encode()
        condition = self._conditions.matching(etag)
        self._etag = self._objects.put(self._path, body, condition, mark=self._mark)

    def _keep(self) -> None:
        deadline = time.monotonic() + self._lease
        while not self._stop.wait(self._renew):
            started = time.monotonic()
            try:
                self._write(self._etag)
            except RefusedError:  # someone took it over, or removed it: it is lost
                return
            except EncpipeError:  # an outage: try again while the lease lasts
                if time.monotonic() > deadline:
                    return
            else:
                deadline = started + self._lease

    def _locked(self, found: Found | None) -> ConflictError:
        seen = "a moment" if found is None else f"{max(found.age, 0):.0f} s"
        return ConflictError(
            f"another live process holds {self._path!r} in {self._objects.url}; last sign of it {seen} ago",
            hint=f"wait for it; if it was killed, try again in {self._lease:.0f} s",
            code="locked",
        )
