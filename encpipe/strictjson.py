"""JSON as the formats of encpipe use it: strict when read, one spelling when written.

Reading refuses duplicate names, NaN and infinities, numbers that are not integers in 0 .. 2**53 - 1,
nesting beyond `MAX_DEPTH`, bad UTF-8, half surrogate pairs and anything after the value. `Fields` reads one
object and raises `ManifestError` with the object's name for a missing field or a wrong type.

Much of what is read here is not authenticated yet: no error repeats more than a few characters of it, and
`text` refuses what could steer a terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from encpipe import aead
from encpipe.errors import IntegrityError, ManifestError

MAX_DEPTH: Final = 64
"""Levels of nesting a parsed value may have."""

MAX_INT: Final = 2**53 - 1
"""Largest integer: what every JSON implementation reads exactly."""

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_HEX_ID: Final = re.compile(r"[0-9a-f]{32}")
_HEX_SHA256: Final = re.compile(r"[0-9a-f]{64}")
MAX_TEXT: Final = 4096
"""Characters a text field may have unless its reader says otherwise."""


def dumps(value: Any) -> bytes:
    """The bytes we write: one line, sorted names, no blanks, ASCII.

    Tags cover stored bytes, so a reader never needs to write a value again to check it.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def loads(data: bytes, *, what: str, code: str = "manifest") -> dict[str, Any]:
    """The one object that `data` holds. Raises `ManifestError` naming `what`."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
        if _SURROGATE.search(data):  # half a pair is no text: it fails to encode, here or much later
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{what} is not well-formed JSON: {_reason(error)}", code=code) from None
    if not isinstance(value, dict):
        raise ManifestError(f"{what} is not a JSON object", code=code)
    _check_depth(value, what, code)
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at byte {error.pos}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "bad UTF-8" if isinstance(error, UnicodeError) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return value


def _integer(text: str) -> int:
    if len(text) > 16 or text.startswith("-") or int(text) > MAX_INT:
        raise ValueError("a number is out of range")
    return int(text)


def _refuse_number(_: str) -> NoReturn:
    raise ValueError("a number is not an integer")


def _check_depth(value: Any, what: str, code: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ManifestError(f"{what} is nested too deeply", code=code)


class Fields:
    """Typed reading of one JSON object; unknown fields are left alone (they are kept and MACed)."""

    def __init__(
        self, value: Any, *, what: str, error: type[IntegrityError] = ManifestError, code: str = "manifest"
    ) -> None:
        self._what, self._error, self._code = what, error, code
        if not isinstance(value, dict):
            self.refuse("is not an object")
        self._value: Mapping[str, Any] = value

    def refuse(self, why: str) -> NoReturn:
        """Raise this object's error."""
        raise self._error(f"{self._what} {why}", code=self._code)

    def _get(self, name: str, kind: type, noun: str) -> Any:
        if name not in self._value:
            self.refuse(f"lacks the field {name[:64]!r}")
        value = self._value[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.refuse(f"has a field {name[:64]!r} that is not {noun}")
        return value

    def others(self, *known: str) -> dict[str, Any]:
        """The fields beside the known ones, which must be there: they are kept when it is written again."""
        if len(self._value) == len(known):
            return {}
        return {name: value for name, value in self._value.items() if name not in known}

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._value

    def text(self, name: str, *, limit: int = MAX_TEXT) -> str:
        """Printable text."""
        value = self._get(name, str, "text")
        if len(value) > limit:
            self.refuse(f"has a field {name[:64]!r} longer than {limit} characters")
        if not value.isprintable():
            self.refuse(f"has a field {name[:64]!r} with control characters in it")
        return str(value)

    def match(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self.text(name)
        if not pattern.fullmatch(value):
            self.refuse(f"has a field {name[:64]!r} that is not of the form {pattern.pattern}")
        return value

    def hex_id(self, name: str) -> str:
        return self.match(name, _HEX_ID)

    def sha256(self, name: str) -> bytes:
        return bytes.fromhex(self.match(name, _HEX_SHA256))

    def data(self, name: str, *, limit: int) -> bytes:
        """base64url bytes, at most `limit` of them."""
        text = self.text(name, limit=limit * 2 + 4)
        try:
            value = aead.from_text(text)
        except ValueError as error:
            self.refuse(f"has a field {name[:64]!r} that is {error}")
        if len(value) > limit:
            self.refuse(f"has a field {name[:64]!r} longer than {limit} bytes")
        return value

    def integer(self, name: str) -> int:
        return int(self._get(name, int, "a number"))

    def flag(self, name: str) -> bool:
        return bool(self._get(name, bool, "true or false"))

    def array(self, name: str, *, limit: int) -> list[Any]:
        value: list[Any] = self._get(name, list, "a list")
        if len(value) > limit:
            self.refuse(f"has a list {name[:64]!r} of more than {limit} entries")
        return value

    def texts(self, name: str, *, limit: int) -> tuple[str, ...]:
        value = self.array(name, limit=limit)
        if not all(isinstance(item, str) for item in value):
            self.refuse(f"has a list {name[:64]!r} with something else than text in it")
        return tuple(value)

    def object(self, name: str, *, limit: int) -> dict[str, Any]:
        value: dict[str, Any] = self._get(name, dict, "an object")
        if len(value) > limit:
            self.refuse(f"has an object {name[:64]!r} of more than {limit} entries")
        return value

    def fields(self, name: str) -> Fields:
        """The object in field `name`, to be read field by field."""
        value = self._get(name, dict, "an object")
        return Fields(value, what=f"{self._what}, {name}", error=self._error, code=self._code)
