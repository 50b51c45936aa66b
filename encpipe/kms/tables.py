"""What the tables `kms.*` of a configuration have in common: texts, and times in seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

from encpipe.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Made = TypeVar("Made", bound=DataclassInstance)

MAX_SECONDS: Final = 3600.0


def read_table(kind: type[Made], name: str, table: Mapping[str, Any], *, needs: Mapping[str, str]) -> Made:
    """A dataclass whose fields are texts (`str`, `str | None`) and seconds (`float`), from the table `name`.

    `needs` has a hint for every field without a default. Raises `ConfigError`: `config-unknown-key`,
    `config-missing`, else `config`.
    """
    known = {field.name: field for field in fields(kind)}
    check_known(name, table, known)
    for key, value in table.items():
        (_check_text if "str" in str(known[key].type) else check_seconds)(name, key, value)
    for key, field in known.items():
        if field.default is MISSING and key not in table:
            raise ConfigError(f"{name}.{key} is not set", hint=needs[key], code="config-missing")
    return kind(**table)


def check_known(name: str, table: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `ConfigError` `config-unknown-key` for a key that is not one of `known`."""
    for key in table:
        if key not in known:
            raise ConfigError(
                f"the table {name!r} has an unknown key {key!r}",
                hint=f"known keys: {', '.join(known)}",
                code="config-unknown-key",
            )


def check_seconds(name: str, key: str, value: object) -> None:
    """Raise `ConfigError` for anything but a number of seconds above 0 and up to `MAX_SECONDS`."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    if not 0 < number <= MAX_SECONDS:
        raise ConfigError(
            f"{name}.{key} is not a number of seconds",
            hint=f"write a number above 0 and up to {MAX_SECONDS:g}",
        )


def _check_text(name: str, key: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}.{key} is not a text", hint=f'write {key} = "..."')
