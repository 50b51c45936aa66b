"""Rules, budgets and identities of a gateway, decided without I/O."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encpipe.config import parse_config
from encpipe.errors import ConfigError, StorageError
from encpipe.gateway.identity import identity_of
from encpipe.gateway.limits import RowBudget, Streams
from encpipe.gateway.rules import Rule, Rules, parse_rules
from encpipe.gateway.settings import gateway_settings

ANA = "spiffe://example.org/ana"
WHERE = Path("/etc/gateway.toml")
TABLE = """
[gateway]
certificate = "server.pem"
key = "server.key"
client_ca = "clients.pem"
datasets = { flights = "s3://bucket/flights", local = "data" }
"""


def given(**more: Any) -> dict[str, Any]:
    return {"identity": ANA, "dataset": "flights", "columns": ["a"], **more}


def parsed(*tables: Any) -> Rules:
    return parse_rules(list(tables), ["flights", "other"], "here")


def test_what_no_rule_allows_is_denied() -> None:
    rules = parsed(given())
    assert rules.rule(ANA, "flights").columns == ("a",)
    for who, what in ((ANA, "other"), (ANA + "x", "flights"), (ANA[:-1], "flights"), ("", "flights")):
        with pytest.raises(StorageError) as refused:
            rules.rule(who, what)
        assert refused.value.code == "not-found"
    assert not rules.knows(ANA.upper())
    assert parsed().datasets(ANA) == []


@pytest.mark.parametrize(
    "table",
    [
        given(identity="ana"),
        given(identity="spiffe://example.org/*" + " "),
        given(identity=3),
        given(dataset="nope"),
        given(columns=[]),
        given(columns="a"),
        given(columns=["*", "a"]),
        given(columns=[3]),
        given(max_rows=0),
        given(max_rows=True),
        given(max_rows=1.5),
        given(period_seconds=-1),
        given(filter=[]),
        given(filter=["a", "=", 3]),
        given(filter=[["a", "like", "x"]]),
        given(filter=[["a", "in", 3]]),
        given(filter=[["a", "=", [3]]]),
        given(filtre=[["a", "=", 3]]),
        {"identity": ANA, "dataset": "flights"},
        3,
    ],
)
def test_a_rule_that_says_anything_else_is_an_error(table: Any) -> None:
    with pytest.raises(ConfigError, match="rule 2"):
        parsed(given(dataset="other"), table)


def test_all_columns_are_given_in_words_only() -> None:
    assert parsed(given(columns="*")).rule(ANA, "flights").columns is None


def test_two_rules_for_one_identity_and_dataset_are_an_error() -> None:
    with pytest.raises(ConfigError, match="two rules"):
        parsed(given(), given(columns=["b"]))


def test_the_digest_tells_what_is_seen_and_nothing_else() -> None:
    rule = Rule(ANA, "flights", ("a", "b"), ((("a", "=", 3),),))
    assert rule.digest == Rule("x://y", "other", ("b", "a"), ((("a", "=", 3),),), 7, 60).digest
    others = {
        Rule(ANA, "flights", columns, filter).digest
        for columns in (None, ("a",), ("a", "b"))
        for filter in (None, ((("a", "=", 3),),), ((("a", "=", "3"),),), ((("a", "=", 3.0),),))
    }
    assert len(others) == 12


def test_the_settings_are_read_and_an_unknown_key_is_an_error() -> None:
    found = gateway_settings(parse_config(TABLE, WHERE))
    assert found.datasets == {"flights": "s3://bucket/flights", "local": "/etc/data"}
    assert found.certificate == Path("/etc/server.pem")
    assert (found.max_streams, found.max_streams_per_identity, found.parallel) == (16, 4, 4)
    for more in (
        "x = 1",
        "listen = 'nowhere'",
        "listen = '0.0.0.0:99999'",
        "max_streams = 0",
        "max_streams_per_identity = 17",
        "[gateway.datasetz]",
        "rules = 3",
    ):
        with pytest.raises(ConfigError):
            gateway_settings(parse_config(f"{TABLE}{more}\n", WHERE))


def test_without_a_table_it_says_so() -> None:
    with pytest.raises(ConfigError) as refused:
        gateway_settings(parse_config("", WHERE))
    assert refused.value.code == "config-missing"


def test_rows_of_a_period_are_counted_for_each_identity_and_dataset() -> None:
    budget = RowBudget()

    def take(rows: int, now: float, who: str = ANA, what: str = "flights", most: int | None = 100) -> int:
        return budget.take(who, what, rows, most=most, period=60, now=now)

    assert [take(70, 0), take(70, 59.9), take(1, 59.9)] == [70, 30, 0]
    assert (take(70, 59, who="x"), take(70, 59, what="other")) == (70, 70)
    assert take(70, 60) == 70, "another period"
    assert take(10**9, 60, most=None) == 10**9
    assert take(1, 60) == 0, "rows count, too, that were given when there was no limit"


def test_streams_are_counted_for_each_and_for_all() -> None:
    streams = Streams(3, 2)
    with streams.one("a"), streams.one("a"), streams.one("b"):
        for who in ("a", "b", "c"):
            with pytest.raises(StorageError) as refused, streams.one(who):
                pass
            assert refused.value.code == "gateway-busy"
        assert streams.open == 3
    assert streams.open == 0
    with pytest.raises(ValueError, match="x"), streams.one("a"):
        raise ValueError("x")
    assert streams.open == 0


@pytest.mark.parametrize(
    "certificate", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_nobody(certificate: bytes) -> None:
    with pytest.raises(StorageError) as refused:
        identity_of(certificate)
    assert refused.value.code == "gateway-denied"
