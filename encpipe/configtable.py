"""Typed access to one TOML table. Every error names file, table and key; a key nobody asked for is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encpipe.errors import ConfigError

_TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list of strings",
}


class Table:
    """One table of the TOML file `source`; `name` is its dotted name, "" for the whole file.

    Each accessor raises `ConfigError` when the value has another type; `finish` when a key was not accessed.
    """

    def __init__(
        self, values: Mapping[str, Any], name: str, source: Path, *, home: Path | None = None
    ) -> None:
        self._values, self._name, self._source, self._home = values, name, source, home
        self._known: set[str] = set()

    @property
    def place(self) -> str:
        """File and table, for messages."""
        return f"{self._source}: table [{self._name}]" if self._name else str(self._source)

    def error(self, key: str, fault: str, *, hint: str = "") -> ConfigError:
        """An error about one key of this table."""
        return ConfigError(f"{self.place}: key {key!r} {fault}", hint=hint)

    def names(self) -> list[str]:
        """Every key there is, in file order, for tables with names of the user's choice."""
        return list(self._values)

    def text(self, key: str) -> str | None:
        """A string that is not empty, or None when the key is absent."""
        value = self._get(key, str)
        if value == "":
            raise self.error(key, "is an empty string", hint="leave the key out for the default")
        return None if value is None else str(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A boolean, `default` when the key is absent."""
        value = self._get(key, bool)
        return default if value is None else bool(value)

    def count(self, key: str, *, default: int, low: int = 1, high: int) -> int:
        """A whole number from `low` to `high`, `default` when the key is absent."""
        value = self._get(key, int)
        if value is not None and not low <= value <= high:
            raise self.error(key, f"must be a number from {low} to {high}")
        return default if value is None else int(value)

    def as_it_stands(self, key: str) -> dict[str, Any]:
        """The table `key`, empty when absent: who uses it checks it."""
        return dict(self._get(key, dict) or {})

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, none of them empty; () when the key is absent. One string is a list of one."""
        value = self._values.get(key)
        if isinstance(value, str):
            value = [value]
        elif value is not None:
            value = self._get(key, list)
        self._known.add(key)
        for entry in value or ():
            if not isinstance(entry, str) or not entry:
                raise self.error(key, "must be a list of strings, none of them empty")
        return tuple(value or ())

    def path(self, key: str) -> Path | None:
        """An absolute path, or None when the key is absent."""
        value = self.text(key)
        return None if value is None else self.resolve(value)

    def resolve(self, path: str) -> Path:
        """`path` made absolute: from the home for `~`, else from the folder of the configuration file."""
        if self._home is not None and (path == "~" or path.startswith("~/")):
            return self._home / path[2:]
        return self._source.absolute().parent / path

    def table(self, key: str) -> Table:
        """The table `key` of this one, empty when absent."""
        name = f"{self._name}.{key}" if self._name else key
        return Table(self._get(key, dict) or {}, name, self._source, home=self._home)

    def tables(self) -> dict[str, dict[str, Any]]:
        """Tables by name, their keys as they stand: who uses a table checks it."""
        return {name: dict(self._get(name, dict)) for name in self.names()}

    def finish(self) -> None:
        """Raise `ConfigError` `config-unknown-key` for a key that no accessor asked for."""
        for key in self._values:
            if key not in self._known:
                raise ConfigError(
                    f"{self.place}: unknown key {key[:60]!r}",
                    hint=did_you_mean(key, self._known),
                    code="config-unknown-key",
                )

    def _get(self, key: str, kind: type) -> Any:
        self._known.add(key)
        value = self._values.get(key)
        if value is None or type(value) is kind:
            return value
        wanted = "a table" if kind is dict else _TYPE_NAMES[kind]
        found = "a table" if isinstance(value, dict) else _TYPE_NAMES.get(type(value), type(value).__name__)
        raise self.error(key, f"must be {wanted}, and is {found}")


def did_you_mean(word: str, known: set[str]) -> str:
    """A hint: the known word that `word` most resembles, or all of them."""
    from difflib import get_close_matches

    close = get_close_matches(word.lower().replace("-", "_"), sorted(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
