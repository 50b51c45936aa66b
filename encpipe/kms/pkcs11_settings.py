"""What names a key on a token, and the table `kms.pkcs11`. No I/O, and nothing of the SDK."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from encpipe.errors import ConfigError
from encpipe.kms.tables import check_known, check_seconds

SCHEME: Final = "pkcs11"
TABLE: Final = f"kms.{SCHEME}"
MAX_LABEL_BYTES: Final = {"token": 32, "serial": 16, "object": 255, "id": 255}
"""Attribute of a URI -> how long it may be. Token label and serial number have that length in PKCS#11."""

_REQUIRED: Final = ("token", "object")
_ATTRIBUTE: Final = re.compile(r"(token|serial|object|id)=((?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+)")

Mechanism = Literal["aes-gcm", "aes-key-wrap"]
HEADS: Final[Mapping[Mechanism, bytes]] = {"aes-gcm": b"\x01", "aes-key-wrap": b"\x02"}
"""Mechanism -> first byte of a wrapping made with it."""


@dataclass(frozen=True)
class KeyPlace:
    """Where a key is: label of its token, label of the key object, and what tells it from others like it."""

    token: str
    object: str
    serial: str | None = None
    id: bytes | None = None

    @classmethod
    def parse(cls, uri: str) -> KeyPlace:
        """Of a `pkcs11:` URI (RFC 7512). Raises `ConfigError` for any but the one canonical spelling:
        trust compares URIs as text. A module or PIN in a URI is refused, for datasets name URIs too."""
        scheme, _, rest = uri.partition(":")
        found = [_ATTRIBUTE.fullmatch(part) for part in rest.split(";")]
        values = {match[1]: unquote_to_bytes(match[2]) for match in found if match is not None}
        try:
            place = cls(
                values["token"].decode(),
                values["object"].decode(),
                values["serial"].decode() if "serial" in values else None,
                values.get("id"),
            )
        except (KeyError, UnicodeDecodeError):
            raise _malformed(uri) from None
        too_long = any(len(value) > MAX_LABEL_BYTES[name] for name, value in values.items())
        if scheme != SCHEME or place.uri != uri or too_long:
            raise _malformed(uri, hint=f"write {place.uri}" if not too_long else "")
        return place

    @property
    def uri(self) -> str:
        """The canonical spelling: token, serial, object, id; all but unreserved characters as %XX."""
        named = {
            "token": self.token.encode(),
            "serial": self.serial.encode() if self.serial is not None else None,
            "object": self.object.encode(),
            "id": self.id,
        }
        parts = [f"{name}={quote_from_bytes(value, safe='')}" for name, value in named.items() if value]
        return f"{SCHEME}:{';'.join(parts)}"


def _malformed(uri: str, *, hint: str = "") -> ConfigError:
    shown = re.sub(r"(pin-[a-z]+=)[^;&?]*", r"\1...", uri[:300])
    return ConfigError(
        f"{shown!r} is not the URI of a key on a PKCS#11 token",
        hint=hint or "pkcs11:token=LABEL;object=LABEL, a blank as %20; serial= and id= tell namesakes apart",
    )


@dataclass(frozen=True)
class Pkcs11Table:
    """The table `kms.pkcs11`. `pin` says where the PIN is, and never holds it; `deadline` is seconds."""

    module: str
    pin: str = "prompt"
    mechanism: Mechanism = "aes-gcm"
    deadline: float = 20.0

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Pkcs11Table:
        """Raises `ConfigError`, code `config-unknown-key` for a key that is not one of these."""
        check_known(TABLE, table, cls.__dataclass_fields__)
        if "module" not in table:
            raise ConfigError(
                f"{TABLE}.module is not set",
                hint='write module = "/usr/lib/softhsm/libsofthsm2.so", or the path of your own token\'s',
                code="config-missing",
            )
        for key, check in _CHECKS.items():
            if key in table:
                check(table[key])
        return cls(**{**table, "pin": _whole_pin(table.get("pin", cls.pin))})


def _check_module(value: object) -> None:
    if not isinstance(value, str) or not value.startswith("/"):  # else the linker would search for it
        raise ConfigError(f"{TABLE}.module is not an absolute path", hint='write module = "/usr/lib/..."')


def _check_pin(value: object) -> None:
    kind, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value == "prompt" or (kind == "env" and rest.isidentifier()):
        return
    if kind == "file" and os.path.expanduser(rest).startswith("/"):  # noqa: PTH111  # a Path cannot say no
        return
    raise ConfigError(  # the text itself is not shown: it may be a PIN put in the wrong place
        f"{TABLE}.pin is not understood",
        hint='one of: "prompt", "env:NAME", "file:/ABSOLUTE/PATH"; never the PIN itself',
    )


def _check_mechanism(value: object) -> None:
    if value not in HEADS:
        raise ConfigError(f"{TABLE}.mechanism is not understood", hint=f"one of: {', '.join(HEADS)}")


def _check_deadline(value: object) -> None:
    check_seconds(TABLE, "deadline", value)


_CHECKS: Final = {
    "module": _check_module,
    "pin": _check_pin,
    "mechanism": _check_mechanism,
    "deadline": _check_deadline,
}


def _whole_pin(pin: str) -> str:
    kind, _, rest = pin.partition(":")
    return f"file:{Path(rest).expanduser()}" if kind == "file" else pin
