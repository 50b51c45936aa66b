"""Lines to where nothing can be read back: standard error and Python loggers.

Each process writes a chain of its own, from `start` to `end`, whatever number of configurations name the
sink. A forked child begins one when it has something to tell. A process that is killed writes no `end`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from encpipe.audit import lines
from encpipe.audit.base import failed
from encpipe.errors import StorageError
from encpipe.keys import new_id
from encpipe.perprocess import PerProcess


class StderrText:
    """Standard error, as it is at the time."""

    def check(self) -> None:
        if sys.stderr is None or sys.stderr.closed:
            raise failed("the audit log on standard error", "it is closed")

    def put(self, line: str) -> None:
        self.check()
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is closed"
            raise failed("the audit log on standard error", why) from None


class LoggerText:
    """A Python logger, at level INFO. What a handler does with a line, or fails to do, it keeps to itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger = logging.getLogger(name)

    def check(self) -> None:
        if not self._logger.isEnabledFor(logging.INFO) or not _takes_info(self._logger):
            raise failed(
                f"the audit log through the logger {self._name!r}", "no handler of it takes level INFO"
            )

    def put(self, line: str) -> None:
        self.check()
        self._logger.info("%s", line.removesuffix("\n"))


def _takes_info(logger: logging.Logger | None) -> bool:
    while logger is not None:
        if any(_keeps_info(handler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _keeps_info(handler: logging.Handler) -> bool:
    return handler.level <= logging.INFO and not isinstance(handler, logging.NullHandler)


class _Text(Protocol):
    def check(self) -> None: ...

    def put(self, line: str) -> None: ...


class _Chain:
    """What one process has written: `id` is empty before `start`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.id = ""
        self.prev = lines.NOTHING


class ProcessChain:
    """One chain for each process, whatever number of configurations name this sink."""

    def __init__(self, text: _Text) -> None:
        self._text = text
        self._process = PerProcess(_Chain(), lambda _: _Chain())

    def append(self, body: str) -> None:
        chain = self._process.get()
        with chain.lock:
            if not chain.id:
                self._start(chain)
            self._put(chain, body)

    def check(self) -> None:
        self._text.check()

    def end(self) -> None:
        """Write `end`, if this process wrote anything. What fails now is told nobody: the process ends."""
        chain = self._process.get()
        with chain.lock:
            if chain.id:
                with contextlib.suppress(StorageError):
                    self._put(chain, lines.body("end", {}))
                chain.id = ""

    def _start(self, chain: _Chain) -> None:
        chain.id, chain.prev = new_id(), lines.NOTHING
        try:
            self._put(chain, lines.body("start", {}))
        except BaseException:
            chain.id = ""
            raise
        _at_exit(self.end)

    def _put(self, chain: _Chain, body: str) -> None:
        whole = lines.line(chain.prev, body, chain=chain.id)
        self._text.put(whole.decode())
        chain.prev = lines.digest(whole)


def _at_exit(end: Callable[[], None]) -> None:
    """Call `end` when this process ends by itself. Those that multiprocessing starts do not use `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, end, exitpriority=-1)
    else:
        atexit.register(end)
