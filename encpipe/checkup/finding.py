"""One thing that was looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encpipe.errors import EncpipeError

Level = Literal["ok", "note", "warn", "fail"]
"""`note`: good to know. `warn`: plaintext may end up where it should not, or work is slow. `fail`: encpipe
cannot work like this."""


@dataclass(frozen=True)
class Finding:
    """`check` names what was looked at and is stable; `found` and `hint` are for people."""

    check: str
    level: Level
    found: str
    hint: str = ""


def failed(check: str, error: EncpipeError) -> Finding:
    """The finding of a check that ended in an error."""
    return Finding(check, "fail", error.message, error.hint)
