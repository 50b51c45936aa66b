"""The options that commands share, and what they mean."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from encpipe.errors import ConfigError

if TYPE_CHECKING:
    from encpipe.config import Config
    from encpipe.kms.registry import MasterKeys
    from encpipe.policy import Policy

SECRET_WORDS: Final = ("secret", "password", "passphrase", "token", "credential")
"""A storage option with one of these in its name does not belong on a command line."""

_UNITS: Final = {"m": 1, "h": 60, "d": 24 * 60, "w": 7 * 24 * 60}
"""Minutes."""
_MAX_DIGITS: Final = 5

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration. Default: $ENCPIPE_CONFIG, ./encpipe.toml, then the one in ~/.config/encpipe.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, errors included.")]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="The dataset: a path, s3://bucket/prefix, ...", show_default=False),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="Policy file, instead of the config's policy.", show_default=False
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        metavar="NAME=URI",
        help="Master key of a key name, instead of the config's. Repeat it for more.",
        show_default=False,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME=GLOB,GLOB",
        help="Columns under a key name, instead of the policy's. Repeat it for more.",
        show_default=False,
    ),
]
FooterKey = Annotated[
    str | None,
    typer.Option(
        "--footer-key",
        metavar="NAME",
        help="Key name of the footer and of all columns not named.",
        show_default=False,
    ),
]
PartitionKeys = Annotated[
    str | None,
    typer.Option(
        "--partition-keys",
        metavar="COL,COL",
        help="Partition columns by whose values files get keys of their own, to be shredded alone.",
        show_default=False,
    ),
]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="NAME=VALUE",
        help="Setting of the storage, as in the config's table storage. Repeat it for more. No secrets.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=256, help="Files at a time. Default: one per core.", show_default=False
    ),
]
ExpectDataset = Annotated[
    str | None,
    typer.Option("--expect-dataset", metavar="ID", help="Refuse any other dataset.", show_default=False),
]
MinGeneration = Annotated[
    int | None,
    typer.Option("--min-generation", min=0, help="Refuse an older generation.", show_default=False),
]


@dataclass(frozen=True)
class Settings:
    """What a library function needs besides the dataset's URL."""

    config: Config
    master_keys: MasterKeys
    storage_options: dict[str, Any] | None


def settings(
    config_file: Path | None, storage: Sequence[str] | None = None, *, keys: Sequence[str] | None = None
) -> Settings:
    """The configuration with what the flags change in it, and the master keys it gives."""
    from encpipe.cli.passphrase import ask_passphrase
    from encpipe.config import load_config
    from encpipe.kms.registry import MasterKeys

    config = load_config(config_file)
    if keys:
        config = replace(config, keys={**config.keys, **parse_keys(keys)})
    return Settings(config, MasterKeys(config, ask_passphrase=ask_passphrase), parse_storage(storage))


def must_be_configured(config: Config) -> None:
    """Raise `ConfigError` `config-missing` when a write would find no key at all."""
    if config.source is None and not config.keys:
        raise ConfigError(
            "nothing is configured: there is no master key to encrypt with",
            hint="make a keyring and a configuration with: encpipe init",
            code="config-missing",
        )


def policy_of(
    config: Config,
    file: Path | None,
    columns: Sequence[str] | None,
    footer_key: str | None,
    partition_keys: str | None = None,
) -> Policy:
    """The policy for a write: the file's, else the config's, with what the flags change in it."""
    from encpipe.config import load_policy

    policy = config.policy if file is None else load_policy(file)
    if columns:
        policy = replace(policy, columns={**policy.columns, **parse_columns(columns)})
    if partition_keys is not None:
        policy = replace(policy, partition_keys=tuple(parse_names(partition_keys) or ()))
    return policy if footer_key is None else replace(policy, footer_key=footer_key)


def check_keys_named(keys: Sequence[str] | None, policy: Policy) -> None:
    """Raise `ConfigError` for a `--key` of a key name under which nothing falls: a typo, most likely."""
    for name in parse_keys(keys or ()):
        if name not in policy.key_names:
            raise ConfigError(
                f"--key {name}=...: nothing is under key name {name[:40]!r}; there are: "
                f"{', '.join(policy.key_names)}",
                hint="columns fall under a key name by --columns NAME=GLOBS, or by the policy",
                code="usage",
            )


def parse_keys(values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`NAME=URI` flags: key name -> URIs in the order given."""
    keys: dict[str, tuple[str, ...]] = {}
    for value in values:
        name, uri = split(value, "--key", "--key pii=local:default")
        if ":" not in uri:
            raise ConfigError(
                f"--key {value}: {uri!r} is not a master key URI",
                hint='URIs look like "local:default" or "aws-kms:alias/NAME"',
                code="usage",
            )
        keys[name] = (*keys.get(name, ()), uri)
    return keys


def parse_columns(values: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`NAME=GLOB,GLOB` flags: key name -> names and globs."""
    columns: dict[str, tuple[str, ...]] = {}
    for value in values:
        name, globs = split(value, "--columns", "--columns 'pii=name,address.*'")
        columns[name] = (*columns.get(name, ()), *(glob.strip() for glob in globs.split(",") if glob.strip()))
    return columns


def parse_storage(values: Sequence[str] | None) -> dict[str, Any] | None:
    """`NAME=VALUE` flags as fsspec's `storage_options`; `true` and `false` are booleans."""
    if not values:
        return None
    options: dict[str, Any] = {}
    for value in values:
        name = value.partition("=")[0]
        if any(word in name.lower() for word in SECRET_WORDS):
            raise ConfigError(
                f"the storage option {name!r} may hold a secret, and every user of this machine can read it",
                hint="set it in the configuration or in the environment of the storage's own tools",
                code="usage",
            )
        name, text = split(value, "--storage-option", "--storage-option endpoint_url=https://s3.example.org")
        options[name] = {"true": True, "false": False}.get(text, text)
    return options


def parse_names(value: str | None) -> list[str] | None:
    """`NAME,NAME` as a list."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def unlock_form(value: str) -> str:
    """An unlock form of the command line; a path in it starts at the current folder."""
    kind, _, rest = value.partition(":")
    if kind in ("file", "key-file") and rest:
        return f"{kind}:{Path(os.path.expanduser(rest)).absolute()}"  # noqa: PTH111 - fine with a missing home
    return value


def split(value: str, flag: str, example: str) -> tuple[str, str]:
    """The two sides of `NAME=VALUE`."""
    name, equals, rest = value.partition("=")
    if not (name.strip() and equals and rest.strip()):
        raise ConfigError(f"{flag} takes NAME=VALUE", hint=f"for example {example}", code="usage")
    return name.strip(), rest.strip()


def confirm(question: str, *, json: bool) -> None:
    """Ask yes or no on the terminal; raises `ConfigError` `usage` where nobody can answer, or for a no."""
    if json or not sys.stdin.isatty():
        raise ConfigError("this needs a yes, and there is nobody to ask", hint="add --yes", code="usage")
    if not typer.confirm(question, err=True):
        raise ConfigError("stopped: nothing was changed", code="usage")


def parse_duration(value: str, flag: str) -> timedelta:
    """`90d`, `12h`, `30m` or `2w`."""
    number, unit = value[:-1], value[-1:]
    if not (number.isascii() and number.isdigit() and unit in _UNITS and len(number) <= _MAX_DIGITS):
        raise ConfigError(
            f"{flag} {value}: not a time", hint=f"a number and m, h, d or w, as in {flag} 90d", code="usage"
        )
    return timedelta(minutes=int(number) * _UNITS[unit])
