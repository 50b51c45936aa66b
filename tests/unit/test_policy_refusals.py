"""Policies that are refused, each with its code and a hint."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from encpipe.errors import PolicyError
from encpipe.policy import MAX_ENTRIES, Policy

LEAVES = ["id", "name", "address.city", "address.zip"]

MALFORMED: dict[str, Callable[[], Any]] = {
    "a footer key that is no key name": lambda: Policy(footer_key="Footer"),
    "an empty footer key": lambda: Policy(footer_key=""),
    "a key name with a line end": lambda: Policy(columns={"pii\n": ("id",)}),
    "a key name with a dot": lambda: Policy(columns={"a.b": ("id",)}),
    "a key name that is too long": lambda: Policy(columns={"a" * 33: ("id",)}),
    "a key without columns": lambda: Policy(columns={"pii": ()}),
    "an empty entry": lambda: Policy(columns={"pii": ("id", "")}),
    "too many entries": lambda: Policy(columns={"pii": ("x",) * (MAX_ENTRIES + 1)}),
    "text for a list of columns": lambda: Policy(columns={"pii": "name"}),  # type: ignore[dict-item]  # the mistake is the test
    "text for a list of partitions": lambda: Policy(plaintext_partitions="day"),  # type: ignore[arg-type]  # the mistake is the test
    "a number for a column": lambda: Policy(columns={"pii": (1,)}),  # type: ignore[dict-item]  # the mistake is the test
}


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_policy_is_refused_when_it_is_made(make: Callable[[], Any]) -> None:
    with pytest.raises(PolicyError) as refused:
        make()
    assert refused.value.code == "policy"
    assert len(str(refused.value)) < 200


def assign(columns: dict[str, tuple[str, ...]], leaves: list[str] = LEAVES, **settings: Any) -> None:
    partitions = settings.pop("partitions", ())
    Policy(columns=columns, **settings).assign(leaves, partitions=partitions)


UNFIT: dict[str, tuple[str, str, Callable[[], None]]] = {
    "a name that matches nothing": ("policy-no-match", "'nam'", lambda: assign({"pii": ("nam",)})),
    "a glob that matches nothing": ("policy-no-match", "'x*'", lambda: assign({"pii": ("id", "x*")})),
    "a path below a leaf": ("policy-no-match", "'id.x'", lambda: assign({"pii": ("id.x",)})),
    "the same name in another case": ("policy-no-match", "'ID'", lambda: assign({"pii": ("ID",)})),
    "one column under two keys": ("policy-two-keys", "'id'", lambda: assign({"a": ("id",), "b": ("id",)})),
    "one by name, one by glob": ("policy-two-keys", "'id'", lambda: assign({"a": ("i*",), "b": ("id",)})),
    "one by ancestor, one by path": (
        "policy-two-keys",
        "address.zip",
        lambda: assign({"a": ("address",), "b": ("address.zip",)}),
    ),
    "one under the footer key by name": (
        "policy-two-keys",
        "'id'",
        lambda: assign({"footer": ("id",), "b": ("*",)}),
    ),
    "strict, and a column is not named": (
        "policy-strict",
        "'name'",
        lambda: assign({"a": ("id",)}, strict=True),
    ),
    "a plaintext partition that is no partition column": (
        "policy-partition",
        "'day'",
        lambda: assign({}, plaintext_partitions=("day",), partitions=["hour"]),
    ),
    "a plaintext partition where there is none": (
        "policy-partition",
        "'id'",
        lambda: assign({}, plaintext_partitions=("id",)),
    ),
    "a partition column under a column key": (
        "policy-partition",
        "'day'",
        lambda: assign({"pii": ("day",)}, partitions=["day"]),
    ),
    "a partition column under a glob of a column key": (
        "policy-partition",
        "'day'",
        lambda: assign({"pii": ("id", "d*")}, partitions=["day"]),
    ),
    "two columns of one path": ("policy-column-name", "'a.b'", lambda: assign({}, ["a.b", "x", "a.b"])),
    "an empty column name": ("policy-column-name", "''", lambda: assign({}, ["id", ""])),
    "a comma in a name": ("policy-column-name", "'a,b'", lambda: assign({}, ["a,b"])),
    "a semicolon in a name": ("policy-column-name", "'a;b'", lambda: assign({}, ["a;b"])),
    "a colon in a name": ("policy-column-name", "'a:b'", lambda: assign({}, ["a:b"])),
    "a blank before a name": ("policy-column-name", "' a'", lambda: assign({}, [" a"])),
    "a line end after a name": ("policy-column-name", r"'a\n'", lambda: assign({}, ["a\n"])),
}


@pytest.mark.parametrize(("code", "names", "make"), UNFIT.values(), ids=UNFIT)
def test_a_policy_that_does_not_fit_the_schema_is_refused(
    code: str, names: str, make: Callable[[], None]
) -> None:
    with pytest.raises(PolicyError, match=re.escape(names)) as refused:
        make()
    assert refused.value.code == code
    assert refused.value.hint


def test_the_hint_shows_some_columns_and_counts_the_rest() -> None:
    leaves = [f"column_{n}" for n in range(100)]
    with pytest.raises(PolicyError) as refused:
        assign({"pii": ("x",)}, leaves)
    assert "column_11 and 88 more" in refused.value.hint
    with pytest.raises(PolicyError) as refused:
        assign({"pii": ("x",)})
    assert refused.value.hint == "columns are: id, name, address, address.city, address.zip"


def test_the_hint_says_when_there_are_no_partition_columns() -> None:
    with pytest.raises(PolicyError) as refused:
        assign({}, plaintext_partitions=("day",))
    assert refused.value.hint == "partition columns are: none"
