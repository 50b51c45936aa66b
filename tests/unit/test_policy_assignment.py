"""Which column falls under which key name."""

from __future__ import annotations

import time

import pytest

from encpipe.errors import PolicyError
from encpipe.policy import Policy

LEAVES = ["id", "name", "address.city", "address.zip", "address_old", "tags.list.element", "SSN", "a[0]"]


def under(policy: Policy, name: str, leaves: list[str] = LEAVES) -> list[str]:
    return [leaf for leaf, key_name in policy.assign(leaves).items() if key_name == name]


CASES: dict[str, tuple[list[str], list[str]]] = {
    "a name": (["name"], ["name"]),
    "an ancestor covers what is below": (["address"], ["address.city", "address.zip"]),
    "a leaf path": (["address.zip"], ["address.zip"]),
    "a list by its name": (["tags"], ["tags.list.element"]),
    "a glob": (["a*s"], ["address.city", "address.zip"]),
    "a glob over all": (["*"], LEAVES),
    "a glob below": (["address.*"], ["address.city", "address.zip"]),
    "a glob crosses dots": (["a*y"], ["address.city"]),
    "one letter": (["i?"], ["id"]),
    "a set of letters": (["[in]*"], ["id", "name"]),
    "a set of other letters": (["[!a-z]*"], ["SSN"]),
    "letter case counts": (["ss*", "SSN"], ["SSN"]),
    "a name that looks like a glob": (["a[0]"], ["a[0]"]),
    "an entry twice": (["id", "id", "i*"], ["id"]),
    "order is the schema's": (["name", "id"], ["id", "name"]),
}


@pytest.mark.parametrize(("entries", "expected"), CASES.values(), ids=CASES)
def test_an_entry_names(entries: list[str], expected: list[str]) -> None:
    leaves = ["ssx", *LEAVES] if "ss*" in entries else LEAVES
    policy = Policy(columns={"pii": tuple(entries)})
    assert [leaf for leaf in under(policy, "pii", leaves) if leaf != "ssx"] == expected


def test_every_other_leaf_falls_under_the_footer_key() -> None:
    assert Policy().assign(LEAVES) == dict.fromkeys(LEAVES, "footer")
    assigned = Policy(footer_key="base", columns={"pii": ("name",)}).assign(LEAVES)
    assert set(assigned) == set(LEAVES)
    assert {key for leaf, key in assigned.items() if leaf != "name"} == {"base"}


def test_a_column_may_be_named_under_the_footer_key() -> None:
    policy = Policy(columns={"footer": ("id",), "pii": ("name",)})
    assert policy.key_names == ("footer", "pii")
    assert under(policy, "pii") == ["name"]
    assert "id" in under(policy, "footer")


def test_key_names_come_in_one_order() -> None:
    policy = Policy(footer_key="m", columns={"z": ("id",), "a": ("name",)})
    assert policy.key_names == ("m", "a", "z")


def test_a_list_of_entries_may_be_any_sequence_and_is_frozen() -> None:
    entries = ["id"]
    policy = Policy(columns={"pii": entries}, plaintext_partitions=["day"])  # type: ignore[dict-item, arg-type]  # lists are taken
    entries.append("name")
    assert policy == Policy(columns={"pii": ("id",)}, plaintext_partitions=("day",))


def test_strict_is_content_when_every_leaf_is_named() -> None:
    assert Policy(columns={"pii": ("*",)}, strict=True).assign(LEAVES) == dict.fromkeys(LEAVES, "pii")


def test_partition_columns_stand_in_no_file() -> None:
    policy = Policy(plaintext_partitions=("day",), columns={"footer": ("day*", "id")})
    with pytest.raises(PolicyError, match=r"'day\*'"):
        policy.assign(LEAVES, partitions=["day", "hour"])
    policy = Policy(plaintext_partitions=("day",), columns={"pii": ("id",)})
    assert "day" not in policy.assign(LEAVES, partitions=["day", "hour"])


def test_no_columns_no_keys() -> None:
    assert Policy().assign([]) == {}


def test_it_is_written_as_it_was_given() -> None:
    assert Policy("base", {"pii": ("b", "a*")}, ("day",), True).as_json() == {
        "footer_key": "base",
        "columns": {"pii": ["b", "a*"]},
        "plaintext_partitions": ["day"],
        "strict": True,
        "partition_keys": [],
    }


def test_five_thousand_named_columns_take_no_time() -> None:
    leaves = [f"group_{n % 50}.column_{n}" for n in range(5_000)]
    policy = Policy(columns={"pii": tuple(leaves[::2]), "other": tuple(leaves[1::2])}, strict=True)
    started = time.thread_time()
    assigned = policy.assign(leaves)
    assert time.thread_time() - started < 1.0  # a comparison of each with each takes half a minute
    assert list(assigned.values()) == ["pii", "other"] * 2_500


def test_a_spiteful_glob_takes_no_time() -> None:
    started = time.thread_time()
    with pytest.raises(PolicyError):
        Policy(columns={"pii": ("*a" * 30 + "b",)}).assign(["a" * 200])
    assert time.thread_time() - started < 1.0
