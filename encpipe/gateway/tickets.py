"""Tickets: what a gateway lets a client read, as bytes that it can check when they come back. No I/O.

    0x01 || HMAC-SHA256 (32) || JSON

The MAC's key is derived from one random key per server. A ticket is no right by itself: it names its
identity, so another certificate cannot use it, and each use is authorised again under the rules of that time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from encpipe import aead, strictjson
from encpipe.errors import IntegrityError, ManifestError, StorageError
from encpipe.gateway import wire
from encpipe.gateway.identity import IDENTITY
from encpipe.gateway.wire import Conditions
from encpipe.keys import Secret

MAX_TICKET_BYTES: Final = 2 * wire.MAX_REQUEST_BYTES
_VERSION: Final = b"\x01"
_TAG_BYTES: Final = 32
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Ticket:
    """Row groups `start` to before `stop` of a view, by whom, until when (Unix seconds).

    `core` names the state of the data, `rule` the rule (`Rule.digest`) under which the groups were numbered.
    """

    identity: str
    dataset: str
    core: str
    rule: str
    columns: tuple[str, ...]
    filter: Conditions | None
    start: int
    stop: int
    expires: int


class TicketKey:
    """Makes and checks tickets under one key."""

    def __init__(self, key: Secret) -> None:
        self._key = aead.derive(key, aead.Label.GATEWAY_TICKET, b"")

    def issue(self, ticket: Ticket) -> bytes:
        """The ticket's bytes."""
        body = strictjson.dumps(_as_json(ticket))
        return _VERSION + aead.mac(self._key, _message(body)) + body

    def redeem(self, data: bytes, identity: str, now: float) -> Ticket:
        """The ticket in foreign bytes. Nothing of them is parsed before the MAC is checked.

        Raises `StorageError` `ticket` unless this key made it, for this identity, and it has not expired.
        """
        body = data[1 + _TAG_BYTES :]
        try:
            if len(data) > MAX_TICKET_BYTES or data[:1] != _VERSION:
                raise ManifestError("not a ticket")
            aead.check_mac(self._key, _message(body), data[1 : 1 + _TAG_BYTES], what="a ticket")
            ticket = _from_json(strictjson.loads(body, what="a ticket"))
        except IntegrityError:
            raise _refusal("is not one that this gateway gave out") from None
        if ticket.identity != identity:
            raise _refusal("is not one that this gateway gave out")  # to whom it did is nobody's business
        if now >= ticket.expires:
            raise _refusal("has expired")
        return ticket


def _message(body: bytes) -> bytes:
    return aead.encode_aad(aead.Label.GATEWAY_TICKET, body)


def _refusal(why: str) -> StorageError:
    return StorageError(f"the ticket {why}", hint="ask the gateway for a new one", code="ticket")


def _as_json(ticket: Ticket) -> dict[str, Any]:
    return {
        "identity": ticket.identity,
        "dataset": ticket.dataset,
        "core": ticket.core,
        "rule": ticket.rule,
        "columns": list(ticket.columns),
        "filter": wire.as_wire(ticket.filter),
        "start": ticket.start,
        "stop": ticket.stop,
        "expires": ticket.expires,
    }


def _from_json(value: dict[str, Any]) -> Ticket:
    fields = strictjson.Fields(value, what="a ticket")
    return Ticket(
        fields.match("identity", IDENTITY),
        fields.match("dataset", wire.DATASET_NAME),
        fields.match("core", _DIGEST),
        fields.match("rule", _DIGEST),
        fields.texts("columns", limit=wire.MAX_COLUMNS),
        wire.from_wire(value.get("filter")),
        fields.integer("start"),
        fields.integer("stop"),
        fields.integer("expires"),
    )
