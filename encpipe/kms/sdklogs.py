"""Keeps raw keys out of logs: an SDK logs requests and answers whole at debug level."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Final

LOGGERS_WITH_BODIES: Final = (
    "botocore.endpoint",
    "botocore.parsers",
    "google.auth.transport.requests",
    "google.cloud.kms_v1.services.key_management_service.transports.rest",
)


class _NoBodies(logging.Filter):
    """Drops the records of threads that are inside `without_bodies`, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  # logging's signature
        return not getattr(self.thread, "inside", False)


_NO_BODIES: Final = _NoBodies()


@contextlib.contextmanager
def without_bodies() -> Iterator[None]:
    """Within the block, in this thread, an SDK logs no request and no answer. Not to be nested."""
    for name in LOGGERS_WITH_BODIES:
        logging.getLogger(name).addFilter(_NO_BODIES)  # adding it again does nothing
    _NO_BODIES.thread.inside = True
    try:
        yield
    finally:
        _NO_BODIES.thread.inside = False
