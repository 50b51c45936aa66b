"""When a gateway looks at a dataset anew, and what it gives out when it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from encpipe.errors import (
    EncpipeError,
    KeyAccessDeniedError,
    KmsUnavailableError,
    ShreddedError,
    StaleDatasetError,
    StorageError,
)
from encpipe.gateway.catalog import BRIDGED_SECONDS, KEPT_STATES, Catalog


@dataclass
class State:
    core_digest: str
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """Time, and what opening gives."""

    now: float = 100.0
    core: str = "a"
    error: EncpipeError | None = None
    opened: list[State] = field(default_factory=list)

    def open(self, url: str) -> Any:
        assert url == "s3://bucket/flights"
        if self.error is not None:
            raise self.error
        self.opened.append(State(self.core))
        return self.opened[-1]

    def catalog(self) -> Catalog:
        urls = {"flights": "s3://bucket/flights"}
        return Catalog(urls, self.open, refresh_seconds=60, clock=lambda: self.now)


def test_it_is_looked_at_once_in_a_while() -> None:
    world = World()
    catalog = world.catalog()
    first = catalog.get("flights")
    world.now, world.core = 159.9, "b"
    assert catalog.get("flights") is first
    world.now = 160
    assert catalog.get("flights").core_digest == "b"
    assert catalog.get("flights", "a") is first


def test_old_states_are_kept_so_many_at_a_time() -> None:
    world = World()
    catalog = world.catalog()
    for n in range(KEPT_STATES + 1):
        world.core = str(n)
        catalog.get("flights")
        world.now += 60
    with pytest.raises(StaleDatasetError):
        catalog.get("flights", "0")
    assert catalog.get("flights", "1").core_digest == "1"
    catalog.close()
    assert sum(state.closed for state in world.opened) == KEPT_STATES


@pytest.mark.parametrize(
    "error", [KmsUnavailableError("out"), StorageError("out", code="storage-unavailable")], ids=str
)
def test_an_outage_is_bridged_for_some_time(error: EncpipeError) -> None:
    world = World()
    catalog = world.catalog()
    first = catalog.get("flights")
    world.error, world.now = error, 100 + BRIDGED_SECONDS
    assert catalog.get("flights") is first
    world.now += 60
    with pytest.raises(type(error)):
        catalog.get("flights")


@pytest.mark.parametrize(
    "error",
    [KeyAccessDeniedError("no"), ShreddedError("gone"), StorageError("gone", code="not-found")],
    ids=lambda error: error.code,
)
def test_a_denial_is_no_outage(error: EncpipeError) -> None:
    world = World()
    catalog = world.catalog()
    catalog.get("flights")
    world.error, world.now = error, 160
    for core in (None, "a"):
        with pytest.raises(type(error)):
            catalog.get("flights", core)


def test_an_outage_at_the_first_look_is_an_error() -> None:
    world = World(error=KmsUnavailableError("out"))
    with pytest.raises(KmsUnavailableError):
        world.catalog().get("flights")
