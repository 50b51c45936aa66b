"""What a gateway answers to an identity. Knows nothing of gRPC.

Every call begins with the rules of now.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from encpipe.audit import Audit, Facts
from encpipe.errors import StorageError
from encpipe.gateway import wire
from encpipe.gateway.catalog import Catalog
from encpipe.gateway.limits import RowBudget, Streams
from encpipe.gateway.rules import Rule, Rules
from encpipe.gateway.settings import GatewaySettings
from encpipe.gateway.telling import RefusedError, telling, ticket_error
from encpipe.gateway.tickets import Ticket, TicketKey
from encpipe.gateway.views import FilterError, Selected, View
from encpipe.keys import KEY_BYTES, Secret

KEPT_VIEWS: Final = 64
"""Views whose row groups are counted; each is a list of numbers."""


@dataclass(frozen=True)
class Part:
    """One ticket, and the row groups that it is for."""

    ticket: bytes
    start: int
    stop: int
    expires: int


@dataclass(frozen=True)
class Info:
    """An answer to a request. `rows` is None where it would have to be counted."""

    schema: pa.Schema
    parts: tuple[Part, ...]
    rows: int | None
    facts: bytes


class Service:
    """Answers requests of identities that TLS and `identity_of` have made certain. Thread-safe."""

    def __init__(
        self,
        settings: GatewaySettings,
        catalog: Catalog,
        audit: Audit,
        *,
        key: Secret | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._catalog, self._audit, self._clock = settings, catalog, audit, clock
        self._rules = settings.rules
        self._tickets = TicketKey(key or Secret(os.urandom(KEY_BYTES)))
        self._budget = RowBudget()
        self.streams = Streams(settings.max_streams, settings.max_streams_per_identity)
        self._reading = ThreadPoolExecutor(settings.max_streams, thread_name_prefix="encpipe-gateway-read")
        self._lock = threading.Lock()
        self._views: dict[tuple[str, str, str], View] = {}
        self.draining = False

    def use(self, rules: Rules) -> None:
        """Take other rules from the next request, ticket and batch on."""
        self._rules = rules

    def admit(self, identity: str) -> None:
        """Raise `RefusedError` `gateway-denied` for an identity that no rule names."""
        if not self._rules.knows(identity):
            raise RefusedError(
                StorageError(
                    "the gateway knows no rule for this identity",
                    hint="ask who runs the gateway for one",
                    code="gateway-denied",
                )
            )

    def datasets(self, identity: str) -> list[str]:
        """The names of what an identity may read."""
        return self._rules.datasets(identity)

    def info(self, identity: str, request: bytes) -> Info:
        """The schema of what is asked for, and tickets for it."""
        with telling():
            asked = wire.read_request(request)
        with self._selected(identity, asked) as (rule, selected):
            core = selected.view.dataset.core_digest
            count = len(selected.view.groups)
            spans = _spans(asked.groups, count, self._settings.parallel)
            expires = int(self._clock()) + self._settings.ticket_seconds
            parts = []
            for start, stop in spans:
                ticket = Ticket(
                    identity,
                    asked.dataset,
                    core,
                    rule.digest,
                    tuple(selected.schema.names),
                    asked.filter,
                    start,
                    stop,
                    expires,
                )
                parts.append(Part(self._tickets.issue(ticket), start, stop, expires))
            whole = asked.groups is None and asked.filter is None
            rows = sum(selected.view.rows) if whole else None
            return Info(selected.schema, tuple(parts), rows, _facts(selected))

    def rows(self, identity: str, request: bytes) -> bytes:
        """How many rows each row group of the view gives, as JSON."""
        with telling():
            asked = wire.read_request(request)
        with self._selected(identity, asked) as (_, selected), self.streams_of(identity):
            counts = [self._told(selected.count, n) for n in range(len(selected.view.groups))]
            return json.dumps({"core": selected.view.dataset.core_digest, "rows": counts}).encode()

    def stream(self, identity: str, ticket: bytes) -> Iterator[pa.Schema | pa.RecordBatch]:
        """The schema, then the batches that a ticket is for, read one row group ahead of the client.

        Raises `RefusedError`, or an `EncpipeError` that is not for the client.
        """
        with telling():
            redeemed = self._tickets.redeem(ticket, identity, self._clock())
        asked = wire.Request(redeemed.dataset, redeemed.columns, redeemed.filter, redeemed.core)
        with telling():
            self._still(self._rules.rule(identity, redeemed.dataset), redeemed)
        with self.streams_of(identity), self._selected(identity, asked) as (rule, selected):
            self._still(rule, redeemed)
            if not 0 <= redeemed.start <= redeemed.stop <= len(selected.view.groups):
                raise RefusedError(ticket_error("is for row groups that are not there"))
            yield from self._audited(identity, redeemed, selected)

    def _audited(
        self, identity: str, ticket: Ticket, selected: Selected
    ) -> Iterator[pa.Schema | pa.RecordBatch]:
        dataset, sent = selected.view.dataset, 0
        size = {"columns": len(ticket.columns), "row_groups": ticket.stop - ticket.start}
        about = Facts(identity=identity, dataset=dataset.url, dataset_id=dataset.dataset_id)
        about["generation"] = dataset.generation
        begun: Facts = {**about, "counts": size}
        self._audit.record("serve", **begun)
        try:
            yield selected.schema
            for batch in self._batches(ticket, selected):
                sent += len(batch)
                yield batch
        except Exception as error:
            self._audit.refuse("serve", error.error if isinstance(error, RefusedError) else error, **about)
            raise
        finally:
            ended: Facts = {**about, "counts": {"rows": sent}}
            self._audit.record("served", **ended)

    def _batches(self, ticket: Ticket, selected: Selected) -> Iterator[pa.RecordBatch]:
        numbers = range(ticket.start, ticket.stop)
        ahead = self._reading.submit(selected.read, numbers[0]) if numbers else None
        while ahead is not None:
            table = self._told(ahead.result)
            numbers = numbers[1:]
            ahead = self._reading.submit(selected.read, numbers[0]) if numbers else None
            most = max(1, self._settings.batch_bytes * len(table) // max(table.nbytes, 1))
            for batch in table.to_batches(max_chunksize=most):
                yield from self._granted(ticket, batch)

    def _granted(self, ticket: Ticket, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """As much of a batch as the rule of now allows."""
        with telling():
            rule = self._rules.rule(ticket.identity, ticket.dataset)
        self._still(rule, ticket)
        granted = self._budget.take(
            rule.identity,
            rule.dataset,
            len(batch),
            most=rule.max_rows,
            period=rule.period_seconds,
            now=self._clock(),
        )
        if granted:
            yield batch.slice(0, granted)
        if granted < len(batch):
            raise RefusedError(
                StorageError(
                    f"this identity gets {rule.max_rows} rows of it in {rule.period_seconds} seconds",
                    hint="wait for the next period, or choose fewer rows",
                    code="row-limit",
                )
            )

    def _still(self, rule: Rule, ticket: Ticket) -> None:
        if rule.digest != ticket.rule:
            raise RefusedError(ticket_error("was given out under another rule"))

    @contextlib.contextmanager
    def streams_of(self, identity: str) -> Iterator[None]:
        """One of the streams that an identity may have at a time."""
        if self.draining:
            raise RefusedError(StorageError("the gateway is ending", code="gateway-busy"))
        with contextlib.ExitStack() as stack:
            with telling():
                stack.enter_context(self.streams.one(identity))
            yield

    @contextlib.contextmanager
    def _selected(self, identity: str, asked: wire.Request) -> Iterator[tuple[Rule, Selected]]:
        with telling():
            rule = self._rules.rule(identity, asked.dataset)
        view = self._view(rule, asked.core)
        with telling():
            choice = view.check(asked.columns, asked.filter)
        selected = Selected(view, choice)
        try:
            yield rule, selected
        finally:
            selected.close()

    def _view(self, rule: Rule, core: str | None) -> View:
        dataset = self._catalog.get(rule.dataset, core)
        key = rule.dataset, dataset.core_digest, rule.digest
        with self._lock:
            view = self._views.pop(key, None)
            if view is None or view.dataset is not dataset:
                view = View(dataset, rule, threads=2)
            self._views[key] = view
            while len(self._views) > KEPT_VIEWS:
                del self._views[next(iter(self._views))]
        return view

    def _told(self, work: Callable[..., pa.Table], *args: int) -> pa.Table:
        try:
            return work(*args)
        except FilterError as error:
            raise RefusedError(error.error) from None

    def close(self) -> None:
        """End reading ahead and close the datasets."""
        self._reading.shutdown(wait=True, cancel_futures=True)
        self._catalog.close()


def _spans(asked: tuple[int, int] | None, count: int, parallel: int) -> list[tuple[int, int]]:
    """Row groups from the first to before the second, in about equal parts."""
    if asked is not None:
        if not 0 <= asked[0] < asked[1] <= count:
            error = StorageError(f"row groups {asked[0]} to {asked[1]} of {count}", code="not-found")
            raise RefusedError(error)
        return [asked]
    parts = min(parallel, count) or 1
    cuts = [count * n // parts for n in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def _facts(selected: Selected) -> bytes:
    dataset = selected.view.dataset
    told = {
        "v": 1,
        "dataset_id": dataset.dataset_id,
        "generation": dataset.generation,
        "core": dataset.core_digest,
        "row_groups": len(selected.view.groups),
    }
    return json.dumps(told).encode()
