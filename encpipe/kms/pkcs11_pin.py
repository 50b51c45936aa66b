"""Where the PIN of a token comes from. It is read for every call, and is never part of an error."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from encpipe.errors import ConfigError
from encpipe.keys import Secret
from encpipe.kms import privatefile
from encpipe.kms.base import AskPassphrase
from encpipe.kms.pkcs11_settings import TABLE
from encpipe.perprocess import PerProcess

MAX_PIN_BYTES: Final = 255


class _Asked:
    """PINs that a person has typed, by token label. A forked child keeps them."""

    def __init__(self, pins: dict[str, Secret]) -> None:
        self.lock = threading.Lock()
        self.pins = dict(pins)

    def inherited(self) -> _Asked:
        return _Asked(self.pins)


class PinSource:
    """`prompt`, `env:NAME` or `file:PATH`. A person is asked once per token and process, by one thread."""

    def __init__(self, setting: str, ask: AskPassphrase | None) -> None:
        self._kind, _, self._where = setting.partition(":")
        self._ask = ask
        self._asked = PerProcess(_Asked({}), _Asked.inherited)

    def read(self, token: str) -> Secret:
        """The PIN. Raises `ConfigError` when there is none to read, or others may read the file."""
        if self._kind == "env":
            value = os.environ.get(self._where, "").encode("utf-8", "surrogateescape")
            return _checked(value, f"the environment variable {self._where}")
        if self._kind == "file":
            text = privatefile.read(Path(self._where), what="PIN file", limit=MAX_PIN_BYTES + 2)
            return _checked(text.removesuffix(b"\n").removesuffix(b"\r"), f"the PIN file {self._where!r}")
        asked = self._asked.get()
        with asked.lock:
            if token not in asked.pins:
                asked.pins[token] = self._typed(token)
            return asked.pins[token]

    def forget(self, token: str) -> None:
        """Ask again the next time: what was typed is wrong."""
        self._asked.get().pins.pop(token, None)

    def _typed(self, token: str) -> Secret:
        what = f"PIN of the token {token!r}"
        hint = f'set {TABLE}.pin to "env:NAME" or "file:/ABSOLUTE/PATH"'
        if self._ask is None:
            raise ConfigError(
                f"the {what} is needed, and there is nobody to ask", hint=hint, code="config-missing"
            )
        try:
            typed = self._ask(what)
        except ConfigError as error:
            raise ConfigError(error.message, hint=hint, code=error.code) from None
        return _checked(typed.encode("utf-8", "surrogateescape"), f"the {what}")


def _checked(pin: bytes, where: str) -> Secret:
    try:
        pin.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text") from None
    if not 0 < len(pin) <= MAX_PIN_BYTES:
        raise ConfigError(
            f"{where} is not set, empty, or longer than {MAX_PIN_BYTES} bytes",
            hint=f"it holds the PIN that {TABLE}.pin promises",
            code="config-missing",
        )
    return Secret(pin)
