"""What the back ends do with the SDKs of their services: import them late, keep clients, map errors."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Generic, TypeVar

from encpipe.errors import EncpipeError, MissingExtraError
from encpipe.kms.deadline import call_within
from encpipe.kms.sdklogs import without_bodies
from encpipe.perprocess import PerProcess

Answer = TypeVar("Answer")
Client = TypeVar("Client")


def import_extra(module: str, *, extra: str, service: str) -> ModuleType:
    """A module of the SDK, or one of ours that needs it. Raises `MissingExtraError` with the pip command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{service} needs the package {error.name}", hint=f"pip install 'encpipe[{extra}]'"
        ) from None


def ask_sdk(
    seconds: float,
    service: str,
    ask: Callable[[], Answer],
    mapped: Callable[[BaseException], EncpipeError],
) -> Answer:
    """What `ask` returns, as `call_within` has it; the SDK's errors are `mapped`, and it logs no bodies."""

    def attempt() -> Answer:
        try:
            with without_bodies():
                return ask()
        except Exception as error:  # noqa: BLE001  # mapped whole: no SDK error may leave
            failed = mapped(error)
        raise failed  # outside the handler: the SDK's error may hold a key, so it is not even the context

    return call_within(seconds, service, attempt)


class Clients(Generic[Client]):
    """The clients of one process, made on first use. A forked child makes its own: sockets are not shared."""

    def __init__(self) -> None:
        self._process = PerProcess(_Made[Client](), lambda _: _Made[Client]())

    def get(self, which: Hashable, make: Callable[[], Client]) -> Client:
        """The client for `which`, made by `make` where there is none. One thread makes at a time: sessions of
        an SDK are not safe to share, clients are. Safe to call from several threads."""
        made = self._process.get()
        with made.lock:
            if which not in made.clients:
                made.clients[which] = make()
            return made.clients[which]


class _Made(Generic[Client]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clients: dict[Hashable, Client] = {}
