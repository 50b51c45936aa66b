"""What operations tell the audit log, and what happens to them when it does not take it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Final, Unpack

from encpipe.audit import lines
from encpipe.audit.base import Sink
from encpipe.audit.lines import Event, Facts
from encpipe.audit.sinks import make_sink
from encpipe.config import AuditConfig
from encpipe.errors import EncpipeError, StorageError


class Audit:
    """The audit log of one configuration; `MasterKeys.audit` is the one to use.

    Guarantee, unless `required` is off: what an operation gives out or changes happens after its line was
    taken, and not at all when it was not (`StorageError` `audit`). With `required` off it happens all the
    same, with a `RuntimeWarning`, and the next line that is taken says how many were `lost`.

    Safe to use from several threads, and in a forked child. Does nothing where no sink is configured.
    """

    def __init__(self, sink: Sink | None, *, required: bool = True) -> None:
        self._sink = sink
        self._required = required
        self._lost = 0

    @property
    def enabled(self) -> bool:
        """Whether lines go anywhere."""
        return self._sink is not None

    def record(self, event: Event, /, **facts: Unpack[Facts]) -> None:
        """Write one line. Raises `StorageError` `audit` when it was not taken and has to be."""
        if self._sink is None:
            return
        lost, self._lost = self._lost, 0
        if lost:
            facts["lost"] = lost
        try:
            self._sink.append(lines.body(event, facts))
        except StorageError as error:
            self._lost += lost + 1
            self._failed(error)

    def check(self) -> None:
        """Raise `StorageError` `audit` when no line could be written now: before work that would be lost."""
        if self._sink is not None:
            try:
                self._sink.check()
            except StorageError as error:
                self._failed(error)

    def _failed(self, error: StorageError) -> None:
        if self._required:
            raise error
        warnings.warn(
            f"{error.message}; going on without (audit.required is off)", RuntimeWarning, stacklevel=3
        )

    def refuse(self, of: Event, error: BaseException, /, **facts: Unpack[Facts]) -> None:
        """Write that an operation ends with `error`: its code, not its message, which may name columns.

        Never raises for a line that was not taken: `error` is what the caller raises; its hint says so then.
        """
        code = error.code if isinstance(error, EncpipeError) else _codes(error)
        if code == "audit":
            return
        facts |= {"of": of, "code": code}
        try:
            self.record("refusal", **facts)
        except StorageError as failure:
            if isinstance(error, EncpipeError):
                error.hint = f"{error.hint}; also, {failure.message}".removeprefix("; ")

    @contextlib.contextmanager
    def refusals(self, of: Event, /, **facts: Unpack[Facts]) -> Iterator[None]:
        """Write a refusal when the block raises."""
        try:
            yield
        except BaseException as error:
            self.refuse(of, error, **facts)
            raise

    @contextlib.contextmanager
    def attempt(self, event: Event, /, **facts: Unpack[Facts]) -> Iterator[None]:
        """Write a line before the block, which is not entered without, and a refusal when the block raises.

        So a line without a refusal after it tells of what was done, or of a process that was killed at it.
        """
        self.record(event, **facts)
        with self.refusals(event, **facts):
            yield


def _codes(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "internal"


OFF: Final = Audit(None)
"""No audit log."""


def audit_of(config: AuditConfig) -> Audit:
    """The audit log that a configuration names. No I/O. Raises `ConfigError`."""
    if config.sink is None:
        return OFF
    return Audit(make_sink(config.sink), required=config.required)
