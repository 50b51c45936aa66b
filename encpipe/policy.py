"""Which column falls under which key name. Pure: no I/O, no keys.

A policy names the footer key and, for each other key name, columns by name or glob. A name means a leaf
path (`address.city`), or any of its ancestors (`address`), which covers all leaves below. Every leaf that no
entry names falls under the footer key: no column of an encpipe dataset is ever in clear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, Final

from encpipe.errors import PolicyError
from encpipe.keys import KEY_NAME

MAX_ENTRIES: Final = 10_000
"""Names and globs a policy may list in all."""

FORBIDDEN_IN_NAMES: Final = ",;:"
"""PyArrow passes column names through a "key:column,column;" string; these would break it."""


@dataclass(frozen=True)
class Policy:
    """Which column falls under which key name.

    `columns` maps a key name to column names or globs. `plaintext_partitions` are the partition columns
    whose values may stand in folder names, readable to whoever lists the storage; the values of every other
    partition column stay in the sealed file list. With `strict` every leaf column must be named.
    `partition_keys` are the partition columns by whose values files get KEKs of their own, one for each key
    name, so that the files of some values can be shredded alone.

    Raises `PolicyError` for a malformed policy.
    """

    footer_key: str = "footer"
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plaintext_partitions: tuple[str, ...] = ()
    strict: bool = False
    partition_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for listed in (self.plaintext_partitions, self.partition_keys, *self.columns.values()):
            _check_listed(listed)
        columns = {name: tuple(entries) for name, entries in self.columns.items()}
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "plaintext_partitions", tuple(self.plaintext_partitions))
        object.__setattr__(self, "partition_keys", tuple(dict.fromkeys(self.partition_keys)))
        for name in self.key_names:
            if not KEY_NAME.fullmatch(name):
                raise PolicyError(
                    f"{name[:40]!r} is not a key name",
                    hint="a key name is a lower-case letter, then up to 31 of a-z, 0-9, _ and -",
                )
        if sum(map(len, columns.values())) > MAX_ENTRIES:
            raise PolicyError(f"a policy may list at most {MAX_ENTRIES} columns and globs")
        empty = [name for name, entries in columns.items() if not entries or not all(entries)]
        if empty:
            raise PolicyError(
                f"key name {empty[0]!r} lists no columns", hint="name a column, or drop the key"
            )

    @property
    def key_names(self) -> tuple[str, ...]:
        """Every key name, the footer key first."""
        return (self.footer_key, *sorted(set(self.columns) - {self.footer_key}))

    def assign(self, leaves: Sequence[str], *, partitions: Iterable[str] = ()) -> dict[str, str]:
        """Leaf path -> key name, for every leaf of the schema, in schema order.

        `leaves` are dotted leaf paths, `partitions` the names of partition columns, which stand in no file.
        Raises `PolicyError` when an entry matches nothing, a column falls under two keys, a partition
        column is named, or a name cannot be encrypted.
        """
        _check_names(leaves)
        self._check_partitions(tuple(partitions))
        owners: dict[str, str] = {}
        paths = _paths(leaves)
        for name, entries in self.columns.items():
            for entry in entries:
                self._claim(name, entry, paths, owners)
        unnamed = [leaf for leaf in leaves if leaf not in owners]
        if self.strict and unnamed:
            raise PolicyError(
                f"the policy is strict and does not name column {unnamed[0]!r}",
                hint="list it under a key name, or set strict = false to put it under the footer key",
                code="policy-strict",
            )
        return {leaf: owners.get(leaf, self.footer_key) for leaf in leaves}

    def _claim(self, name: str, entry: str, paths: _Paths, owners: dict[str, str]) -> None:
        matched = _match(entry, paths)
        if not matched:
            raise PolicyError(
                f"the policy lists {entry!r} under key name {name!r}, and no column matches",
                hint=f"columns are: {_some(list(paths))}",
                code="policy-no-match",
            )
        for leaf in matched:
            if owners.setdefault(leaf, name) != name:
                raise PolicyError(
                    f"column {leaf!r} falls under the key names {owners[leaf]!r} and {name!r}",
                    hint="a column is sealed under one key: narrow one of the entries",
                    code="policy-two-keys",
                )

    def _check_partitions(self, partitions: tuple[str, ...]) -> None:
        listed = [("plaintext_partitions", column) for column in self.plaintext_partitions]
        listed += [("partition_keys", column) for column in self.partition_keys]
        for setting, column in listed:
            if column not in partitions:
                raise PolicyError(
                    f"{setting} lists {column!r}, which is not a partition column of the source",
                    hint=f"partition columns are: {_some(partitions) or 'none'}",
                    code="policy-partition",
                )
        paths = _paths(partitions)
        for name, entries in self.columns.items():
            for entry in entries:
                matched = _match(entry, paths)
                if name != self.footer_key and matched:
                    raise PolicyError(
                        f"partition column {matched[0]!r} is listed under the column key {name!r}",
                        hint="its values stand in the file list, under the footer key: "
                        "drop the entry, or keep the column inside the files",
                        code="policy-partition",
                    )

    def as_json(self) -> dict[str, Any]:
        """The policy as it stands in the file list."""
        return {
            "footer_key": self.footer_key,
            "columns": {name: list(entries) for name, entries in self.columns.items()},
            "plaintext_partitions": list(self.plaintext_partitions),
            "strict": self.strict,
            "partition_keys": list(self.partition_keys),
        }


def _check_listed(listed: Iterable[Any]) -> None:
    if isinstance(listed, str) or not all(isinstance(entry, str) for entry in listed):
        raise PolicyError(
            f"a policy takes lists of column names, not {str(listed)[:60]!r}", hint='write ["name"]'
        )


def _some(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


_Paths = Mapping[str, Sequence[str]]
"""Each leaf path and each ancestor of one, with the leaves at or below it."""


def _paths(leaves: Iterable[str]) -> _Paths:
    paths: dict[str, list[str]] = {}
    for leaf in leaves:
        parts = leaf.split(".")
        for n in range(1, len(parts) + 1):
            paths.setdefault(".".join(parts[:n]), []).append(leaf)
    return paths


def _match(entry: str, paths: _Paths) -> list[str]:
    """The leaves that an entry names, by itself or by an ancestor; a name counts before a glob does."""
    found = dict.fromkeys(paths.get(entry, ()))
    if any(c in entry for c in "*?["):
        matches = re.compile(translate(entry)).match
        for path, below in paths.items():
            if matches(path):
                found.update(dict.fromkeys(below))
    return list(found)


def _check_names(leaves: Sequence[str]) -> None:
    if len(set(leaves)) != len(leaves):
        twice = next(leaf for leaf in leaves if list(leaves).count(leaf) > 1)
        raise PolicyError(
            f"two columns have the path {twice!r}",
            hint="rename one: Parquet encryption names columns by their dotted path",
            code="policy-column-name",
        )
    for leaf in leaves:
        if leaf != leaf.strip() or not leaf or any(c in leaf for c in FORBIDDEN_IN_NAMES):
            raise PolicyError(
                f"column {leaf!r} has a name that Parquet encryption in PyArrow cannot take",
                hint='rename it: no ",", ";" or ":", no blank at either end, not empty',
                code="policy-column-name",
            )
