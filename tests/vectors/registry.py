"""How a case is declared: an edit of a dataset, and what a reader and `verify` must make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from materials import Materials
from simulation import DatasetSim

Make = Callable[[Materials], DatasetSim]


@dataclass(frozen=True)
class Case:
    """One vector. The folder is `name`; everything but `make` stands in its `case.json`."""

    name: str
    what: str
    make: Make = field(repr=False)
    expect: dict[str, Any]
    reader: dict[str, Any]
    verify: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "expect": self.expect, "reader": self.reader, "verify": self.verify}


CASES: dict[str, Case] = {}


def _register(make: Make, expect: dict[str, Any], reader: dict[str, Any], verify: dict[str, Any]) -> Make:
    name = make.__name__.replace("_", "-")
    assert name not in CASES
    reader = {
        "keyring": "reader",
        "trust": ["local:main", "local:pii"],
        "options": {},
        "columns": None,
        **reader,
    }
    CASES[name] = Case(name, " ".join((make.__doc__ or "").split()), make, expect, reader, verify)
    return make


def ok(
    rows: list[dict[str, Any]], *, verify: dict[str, Any] | None = None, **reader: Any
) -> Callable[[Make], Make]:
    """The dataset reads as `rows`; `verify` finds no problem unless told otherwise."""
    found = verify if verify is not None and "error" in verify else {"problems": [], **(verify or {})}
    return lambda make: _register(make, {"rows": rows}, reader, found)


def refused(
    error: str, code: str, *, verify: dict[str, Any] | None = None, **reader: Any
) -> Callable[[Make], Make]:
    """Opening raises, for the reader and (unless told otherwise) for `verify`."""
    found = {"error": error, "code": code}
    return lambda make: _register(make, found, reader, verify or found)


def bad_file(
    error: str, code: str, *, verify: dict[str, Any] | None = None, **reader: Any
) -> Callable[[Make], Make]:
    """The dataset opens, reading raises; `verify --deep` reports one problem, of the same code by default."""
    found = {"error": error, "code": code}
    return lambda make: _register(make, found, reader, {"problems": [code], **(verify or {})})
