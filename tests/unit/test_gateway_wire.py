"""Requests, filters, tickets and errors as they cross between client and gateway."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encpipe import aead, strictjson
from encpipe.errors import ConfigError, EncpipeError, ShreddedError, StorageError
from encpipe.gateway import wire
from encpipe.gateway.tickets import Ticket, TicketKey
from encpipe.gateway.wire import Request
from encpipe.keys import Secret

ANA = "spiffe://example.org/ana"
KEY = TicketKey(Secret(b"k" * 32))
TICKET = Ticket(ANA, "flights", "c" * 64, "d" * 64, ("a", "b"), ((("a", "in", (1, 2)),),), 3, 7, 1000)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.binary(max_size=20),
    st.dates(),
    st.datetimes(timezones=st.sampled_from([None, dt.UTC])),
)
CONDITION = st.one_of(
    st.tuples(st.text(min_size=1, max_size=5), st.sampled_from(["=", "!=", "<", ">="]), VALUES),
    st.tuples(st.just("a"), st.sampled_from(["in", "not in"]), st.lists(VALUES, min_size=1, max_size=4)),
)


@given(st.lists(st.lists(CONDITION, min_size=1, max_size=3), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_a_filter_crosses_unchanged(groups: list[Any]) -> None:
    filter = wire.conditions(groups)
    request = Request("flights", ("a", "ö"), filter, "c" * 64, (1, 3))
    assert wire.read_request(wire.request_bytes(request)) == request


def test_a_filter_keeps_the_kinds_of_its_values() -> None:
    when = dt.datetime(2026, 1, 31, 9, 30, 0, 1, tzinfo=dt.UTC)
    for value in ("3", 3, 3.0, True, b"3", when, when.date(), -0.0):
        found = wire.from_wire(json.loads(json.dumps(wire.as_wire(wire.conditions([("a", "=", value)])))))
        assert found is not None
        ((_, _, crossed),) = found[0]
        assert (type(crossed), str(crossed)) == (type(value), str(value))


@pytest.mark.parametrize("value", [None, {"a": 1}, object(), 2**64, dt.timedelta(1)])
def test_a_value_that_cannot_cross_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        wire.conditions([("a", "=", value)])
    assert refused.value.code == "filter"


@given(st.one_of(st.binary(max_size=300), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["v", "dataset", "columns", "filter", "core", "groups", "s", "i", "l", "x", "t"]),
        inner, max_size=5),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_request_or_a_clear_refusal(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        wire.read_request(data)


@pytest.mark.parametrize(
    "filter",
    [
        3, {}, "x", [[]], [[["a", "=", 3]]], [[["a", "=", {"i": 3}]]], [[["a", "=", {"i": "1e3"}]]],
        [[["a", "=", {"i": "9" * 400}]]], [[["a", "=", {"f": "x"}]]], [[["a", "=", {"x": "A"}]]],
        [[["a", "=", {"l": [{"i": "1"}]}]]], [[["a", "in", {"i": "1"}]]], [[["a", "in", {"l": []}]]],
        [[["a", "in", {"l": [{"l": []}]}]]], [[["a", "=", {"i": "1", "s": "x"}]]],
        [[["a", "=", {"t": "now"}]]], [[["a", "=", {"f": "0x1p+5000"}]]],
        [[[["a"], "=", {"i": "1"}]]], [[["a", ["="], {"i": "1"}]]],
    ],
)  # fmt: skip
def test_a_foreign_filter_that_is_none_is_refused(filter: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        wire.from_wire(filter)
    assert refused.value.code == "filter"


def test_a_filter_has_limits() -> None:
    with pytest.raises(ConfigError):
        wire.conditions([("a", "=", 1)] * (wire.MAX_CONDITIONS + 1))
    with pytest.raises(ConfigError):
        wire.conditions([("a", "in", list(range(wire.MAX_VALUES + 1)))])
    with pytest.raises(ConfigError):
        wire.request_bytes(Request("flights", ("x" * wire.MAX_REQUEST_BYTES,)))


# Tickets


def refusal(data: bytes, identity: str = ANA, now: float = 999.0, key: TicketKey = KEY) -> str:
    with pytest.raises(StorageError) as refused:
        key.redeem(data, identity, now)
    assert refused.value.code == "ticket"
    return refused.value.message


def test_a_ticket_comes_back_as_it_was_given_out() -> None:
    assert KEY.redeem(KEY.issue(TICKET), ANA, 999.9) == TICKET


def test_a_ticket_is_for_one_identity_one_key_and_some_time() -> None:
    data = KEY.issue(TICKET)
    assert "expired" in refusal(data, now=1000)
    assert refusal(data, identity=ANA + "x") == refusal(data, key=TicketKey(Secret(b"x" * 32)))


def test_no_byte_of_a_ticket_can_be_changed_left_out_or_added() -> None:
    data = KEY.issue(TICKET)
    for n in range(len(data)):
        refusal(data[:n])
        refusal(data[:n] + bytes([data[n] ^ 0x01]) + data[n + 1 :])
    refusal(data + b" ")


def test_fields_of_a_ticket_cannot_take_each_others_place() -> None:
    tickets = [
        dataclasses.replace(TICKET, columns=("a,b",)),
        dataclasses.replace(TICKET, filter=None),
        dataclasses.replace(TICKET, core="d" * 64, rule="c" * 64),
        dataclasses.replace(TICKET, start=7, stop=7),
        TICKET,
    ]
    assert len({KEY.issue(ticket) for ticket in tickets}) == len(tickets)


def test_the_mac_is_what_the_page_says() -> None:
    data = KEY.issue(TICKET)
    key = aead.derive(Secret(b"k" * 32), aead.Label.GATEWAY_TICKET, b"")
    body = data[33:]
    message = b"encpipe/1 gateway-ticket\0" + len(body).to_bytes(4, "big") + body
    assert data[:33] == b"\x01" + aead.mac(key, message)
    assert strictjson.loads(body, what="it")["identity"] == ANA


# Errors


def test_an_error_crosses_with_kind_code_and_hint() -> None:
    error = ShreddedError("gone", hint="nothing helps")
    text = f"Flight returned internal error, with message: {wire.error_text(error)}. gRPC client context: x"
    found = wire.read_error(text)
    assert isinstance(found, ShreddedError)
    assert (found.message, found.hint, found.code) == ("gone", "nothing helps", "shredded")


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        '{"encpipe":',
        '{"encpipe": 3}',
        '{"encpipe": {"kind": "Exception", "code": "ticket", "message": "", "hint": ""}}',
        '{"encpipe": {"kind": "CODES", "code": "ticket", "message": "", "hint": ""}}',
        '{"encpipe": {"kind": "StorageError", "code": "nope", "message": "", "hint": ""}}',
        '{"encpipe": {"kind": "StorageError", "code": [], "message": "", "hint": ""}}',
        '{"encpipe": ' + "[" * 100_000,
    ],
)
def test_what_a_server_says_that_is_no_error_of_ours_is_none(text: str) -> None:
    assert wire.read_error(text) is None


def test_an_error_of_a_server_cannot_steer_a_terminal() -> None:
    found = wire.read_error(wire.error_text(EncpipeError("a\x1b[2J", hint="b\n")))
    assert found is not None
    assert (found.message, found.hint) == ("a?[2J", "b?")
