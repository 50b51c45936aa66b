"""What a sink is, and how it says that it failed."""

from __future__ import annotations

from typing import Final, Protocol

from encpipe.errors import StorageError

_HINT: Final = "the operation was refused; mend the log, or set audit.required = false to go on without it"


class Sink(Protocol):
    """Takes lines. Both methods raise `StorageError` `audit`. Safe to use from several threads."""

    def append(self, body: str) -> None:
        """Write one line, chained to the one before."""
        ...

    def check(self) -> None:
        """Raise if a line could not be written now. Writes none."""
        ...


def failed(what: str, why: str) -> StorageError:
    """The error for a line that was not taken."""
    return StorageError(f"{what} cannot be written: {why}", hint=_HINT, code="audit")
