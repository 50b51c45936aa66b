"""Who may read what through the gateway. No I/O; what no rule allows is denied.

A rule gives one identity one dataset: some columns, the rows for which a filter holds, and so many rows per
period. It comes before everything a client asks for: to the client, other columns and rows do not exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from encpipe import strictjson
from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.gateway.identity import IDENTITY
from encpipe.gateway.wire import Conditions, as_wire, conditions

ALL_COLUMNS: Final = "*"
MAX_RULES: Final = 10_000


@dataclass(frozen=True)
class Rule:
    """What one identity may read of one dataset.

    `columns` are names of top-level columns, None is all of them; `filter` is None for all rows; `max_rows`
    (None: no limit) are given out in `period_seconds`.
    """

    identity: str
    dataset: str
    columns: tuple[str, ...] | None = None
    filter: Conditions | None = None
    max_rows: int | None = None
    period_seconds: int = 86_400

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of what is seen under this rule. A ticket names it, and dies with it."""
        columns = None if self.columns is None else sorted(self.columns)
        shown = {"columns": columns, "filter": as_wire(self.filter)}
        return hashlib.sha256(strictjson.dumps(shown)).hexdigest()

    def visible(self, names: Sequence[str]) -> list[str]:
        """Those of a dataset's columns that this rule shows, in their order."""
        return [name for name in names if self.columns is None or name in self.columns]


class Rules:
    """All rules at one time. Immutable: a change is another object."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = {(rule.identity, rule.dataset): rule for rule in rules}
        if len(self._rules) != len(rules):
            twice = next(rule for rule in rules if self._rules[rule.identity, rule.dataset] is not rule)
            raise ConfigError(
                f"two rules give {twice.identity!r} the dataset {twice.dataset!r}",
                hint="write one rule: which of two would count must not be a question",
            )

    def knows(self, identity: str) -> bool:
        """Whether any rule names this identity."""
        return any(who == identity for who, _ in self._rules)

    def datasets(self, identity: str) -> list[str]:
        """The datasets that an identity may read, sorted."""
        return sorted(dataset for who, dataset in self._rules if who == identity)

    def rule(self, identity: str, dataset: str) -> Rule:
        """The rule by which this identity reads this dataset.

        Raises `StorageError` `not-found`, with one text for a dataset that is not there and one that is not
        for this identity.
        """
        found = self._rules.get((identity, dataset))
        if found is None:
            raise StorageError(
                f"the gateway has no dataset {dataset[:64]!r} for this identity",
                hint="check the name in the URL, or ask who runs the gateway for a rule",
                code="not-found",
            )
        return found


def parse_rules(tables: Any, datasets: Sequence[str], where: str) -> Rules:
    """The rules in `gateway.rules`, a list of tables. Raises `ConfigError` with the number of the rule."""
    if not isinstance(tables, list) or len(tables) > MAX_RULES:
        raise ConfigError(f"{where}: rules must be a list of tables", hint="write [[gateway.rules]]")
    rules = []
    for number, table in enumerate(tables, 1):
        try:
            rules.append(_rule(table, datasets))
        except EncpipeError as error:
            raise ConfigError(
                f"{where}: rule {number}: {error.message}", hint=error.hint, code=_code(error)
            ) from None
    return Rules(rules)


def _code(error: EncpipeError) -> str:
    return error.code if isinstance(error, ConfigError) else "config"


_KNOWN: Final = {"identity", "dataset", "columns", "filter", "max_rows", "period_seconds"}


def _rule(table: Any, datasets: Sequence[str]) -> Rule:
    if not isinstance(table, Mapping):
        raise ConfigError("is not a table", hint="write [[gateway.rules]]")
    if unknown := set(table) - _KNOWN:
        raise ConfigError(
            f"unknown key {min(unknown)[:60]!r}",
            hint=f"known keys: {', '.join(sorted(_KNOWN))}",
            code="config-unknown-key",
        )
    identity, dataset = table.get("identity"), table.get("dataset")
    if not isinstance(identity, str) or not IDENTITY.fullmatch(identity):
        raise ConfigError("identity must be a URI", hint='as in "spiffe://example.org/trainer"')
    if dataset not in datasets:
        raise ConfigError(
            "dataset must be a name of the table gateway.datasets", hint=f"there: {', '.join(datasets)}"
        )
    given = conditions(table["filter"]) if "filter" in table else None
    return Rule(
        identity,
        str(dataset),
        _columns(table.get("columns")),
        given,
        _count(table, "max_rows"),
        _count(table, "period_seconds") or 86_400,
    )


def _columns(value: Any) -> tuple[str, ...] | None:
    """None for all. A rule says so in words (`"*"`): columns that come later are then shown, too."""
    if value in (ALL_COLUMNS, [ALL_COLUMNS]):
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise ConfigError(
            "columns must be a list of column names", hint=f'or columns = "{ALL_COLUMNS}" for all'
        )
    if ALL_COLUMNS in value:
        raise ConfigError(f'"{ALL_COLUMNS}" stands beside other columns', hint="leave one of them out")
    return tuple(value)


def _count(table: Mapping[str, Any], name: str) -> int | None:
    value = table.get(name)
    if value is None or (type(value) is int and 1 <= value <= strictjson.MAX_INT):
        return value
    raise ConfigError(f"{name} must be a number from 1", hint="leave it out for no limit")
