"""A service's own words in messages. Whoever answers could put anything there."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 300


def printable(text: str) -> str:
    """The text on one line, without control characters, cut to `MAX_CHARACTERS`."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_CHARACTERS]).strip()


def after_colon(text: str, *, carries_key: bool) -> str:
    """`: <text>` as `printable` has it; nothing where the request held a key, which the text could repeat."""
    clean = printable(text)
    return f": {clean}" if clean and not carries_key else ""


def first_word(text: object, *, of: str = "A-Za-z0-9.") -> str:
    """The error code or reason that a text begins with: up to 60 characters of these; else empty."""
    found = re.match(rf"[{of}]{{1,60}}", str(text))
    return found[0] if found else ""
