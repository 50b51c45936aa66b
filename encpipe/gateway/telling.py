"""What a client is told of an error.

Its code, always; its text only where the text is made of what the client knows (`telling`), since texts of
storage and key services name URLs, files and keys.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from encpipe.errors import CODES, EncpipeError, StorageError

LOG = logging.getLogger("encpipe.gateway")


class RefusedError(Exception):
    """What the client is told: `error` may cross."""

    def __init__(self, error: EncpipeError) -> None:
        super().__init__(error.code)
        self.error = error


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """The errors of this block are made of what the client knows, so they may cross."""
    try:
        yield
    except EncpipeError as error:
        raise RefusedError(error) from None


def told(error: Exception) -> EncpipeError:
    """What a client is told of an error: its code and what that means, and the rest to our log only."""
    if isinstance(error, RefusedError):
        return error.error
    if isinstance(error, EncpipeError):
        LOG.warning("%s: %s", error.code, error.message)
        kind = next(c for c in type(error).__mro__ if c.__module__ == EncpipeError.__module__)
        crossing: EncpipeError = kind(
            f"the gateway cannot read the dataset: {CODES[error.code]}",
            hint="who runs the gateway finds more in its log",
            code=error.code,
        )
        return crossing
    LOG.error("unexpected %s", type(error).__name__, exc_info=error)
    return EncpipeError("the gateway met a state it does not expect", hint="see the gateway's log")


def ticket_error(why: str) -> StorageError:
    """The error for a ticket that is in order and cannot be used any more."""
    return StorageError(f"the ticket {why}", hint="ask the gateway for a new one", code="ticket")
