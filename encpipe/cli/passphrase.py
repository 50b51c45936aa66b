"""Asking a person for a passphrase, on the terminal and nowhere else."""

from __future__ import annotations

import sys
from getpass import getpass
from typing import Final

from encpipe.errors import ConfigError

MIN_CHARACTERS: Final = 8
"""A new passphrase has at least this many. Argon2id makes guessing slow, not impossible."""
TRIES: Final = 3


def ask_passphrase(purpose: str) -> str:
    """Ask without echo. A purpose that starts with "new " is a passphrase to set: asked for twice.

    Raises `ConfigError` `config-missing` when standard input is not a terminal: nothing can then be asked.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            f"the {purpose} is needed, and this is not a terminal",
            hint="set ENCPIPE_PASSPHRASE_FILE or ENCPIPE_PASSPHRASE, or keyring.unlock in the configuration",
            code="config-missing",
        )
    if not purpose.startswith("new "):
        return getpass(f"{purpose}: ", stream=sys.stderr)
    for _ in range(TRIES):
        first = getpass(f"{purpose}: ", stream=sys.stderr)
        if len(first) < MIN_CHARACTERS:
            print(f"at least {MIN_CHARACTERS} characters, please", file=sys.stderr)
        elif getpass("the same again: ", stream=sys.stderr) != first:
            print("the two differ", file=sys.stderr)
        else:
            return first
    raise ConfigError(f"no passphrase was set in {TRIES} tries", code="usage")
