"""`encpipe init`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encpipe.cli.options import Json, Keys, parse_keys
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Note, Part

if TYPE_CHECKING:
    from encpipe.initialise import Initialised

EXAMPLES = """
encpipe init
encpipe init --key pii=local:pii
encpipe init --key-file ~/keys/encpipe.key
ENCPIPE_PASSPHRASE_FILE=/run/secrets/passphrase encpipe init --global
"""


def init(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Write this file instead of ./encpipe.toml.", show_default=False
        ),
    ] = None,
    personal: Annotated[
        bool,
        typer.Option("--global", help="Write the configuration of all your projects (~/.config/encpipe)."),
    ] = False,
    key: Keys = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            metavar="FILE",
            help="Protect the keyring by a new key file here, not by a passphrase.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a keyring and a configuration.

    Asks for a passphrase unless ENCPIPE_PASSPHRASE_FILE or ENCPIPE_PASSPHRASE is set. A keyring that is
    there already is used as it is; nothing is overwritten.
    """
    from encpipe.cli.passphrase import ask_passphrase
    from encpipe.config import parse_config, user_config_path
    from encpipe.errors import ConfigError
    from encpipe.initialise import initialise

    if config is not None and personal:
        raise ConfigError("--config and --global name two places", hint="leave one out", code="usage")
    here = Path(os.environ.get("ENCPIPE_CONFIG") or "encpipe.toml")
    target = (user_config_path() if personal else config or here).absolute()
    made = initialise(
        target,
        keyring=parse_config("", target, env=os.environ).keyring,
        keys=parse_keys(key or ()),
        key_file=None if key_file is None else key_file.expanduser(),
        ask_passphrase=ask_passphrase,
    )
    make_output(json=json).result(made.as_json(), lambda: _view(made))


def _view(made: Initialised) -> list[Part]:
    rows = [("configuration", str(made.config))]
    if made.keyring is not None:
        rows.append(("keyring", str(made.keyring) + ("" if made.keyring_is_new else " (was there)")))
    if made.key_file is not None:
        rows.append(("key file", str(made.key_file)))
    rows += [(f"key name {name}", ", ".join(uris)) for name, uris in made.keys.items()]
    parts: list[Part] = [Facts(rows)]
    if made.keyring_is_new:
        secret = "key file" if made.key_file else "passphrase"
        parts.append(
            Note(
                f"a lost keyring is lost data, and so is a lost {secret}: make a copy with "
                "encpipe keys backup FILE",
                warning=True,
            )
        )
    return parts
