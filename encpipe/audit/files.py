"""The file that many processes append to.

One chain. Each line is one write under `flock`, after a look at the last line there; one that a writer was
stopped in is closed by `recovered`. The file is opened anew when its path names another one (`logrotate`).
It is not synced: a power failure may take the last lines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from encpipe.audit import lines
from encpipe.audit.base import failed
from encpipe.perprocess import PerProcess

LOCK_WAIT_SECONDS: Final = 10.0
"""How long a line waits for those of other processes, which take microseconds each."""
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.0001, 0.01
_TAIL_BYTES: Final = 2048
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK

_open_fds: set[int] = set()


def _close_in_child() -> None:
    """A forked child must not keep its parent's lock alive. Closing a copy does not unlock."""
    for fd in _open_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open_fds.clear()


os.register_at_fork(after_in_child=_close_in_child)


class _OpenFile:
    """What one process has of the file."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fd = -1
        self._pid = os.getpid()

    def keep(self, fd: int) -> None:
        self.fd = fd
        _open_fds.add(fd)

    def close(self) -> None:
        if self.fd >= 0 and self._pid == os.getpid():
            _open_fds.discard(self.fd)
            os.close(self.fd)
        self.fd = -1

    def __del__(self) -> None:
        self.close()


class FileSink:
    """One file, shared by threads and processes; made with mode 0600 if it is not there, its folder not."""

    def __init__(self, path: Path) -> None:
        self._name = str(path)
        self._what = f"the audit log {str(path)!r}"
        self._process = PerProcess(_OpenFile(), lambda _: _OpenFile())

    def append(self, body: str) -> None:
        def write(fd: int, size: int) -> None:
            data = _following(fd, size, body, self._what)
            written = os.write(fd, data)
            if written != len(data):
                raise failed(self._what, f"only {written} of {len(data)} bytes were taken: the disk is full")

        self.locked(write)

    def check(self) -> None:
        self.locked(lambda fd, size: None)  # noqa: ARG005 - nothing is to be done with them

    def locked(self, work: Callable[[int, int], None]) -> None:
        """Call `work` with descriptor and size of the file that the path names now, while it is locked."""
        here = self._process.get()
        try:
            with here.lock:
                try:
                    work(*self._lock(here))
                finally:
                    if here.fd >= 0:
                        fcntl.flock(here.fd, fcntl.LOCK_UN)
        except OSError as error:
            raise failed(self._what, os.strerror(error.errno or 0)) from None

    def _lock(self, here: _OpenFile) -> tuple[int, int]:
        while True:
            if here.fd < 0:
                here.keep(os.open(self._name, _FLAGS, 0o600))
                if not stat.S_ISREG(os.fstat(here.fd).st_mode):
                    here.close()
                    raise failed(self._what, "it is not a regular file")
            if not wait_for_lock(here.fd, fcntl.LOCK_EX):
                raise failed(self._what, f"it stayed locked for {LOCK_WAIT_SECONDS:.0f} s (see `lslocks`)")
            try:
                status = os.fstat(here.fd)
                if os.path.samestat(status, os.stat(self._name)):  # noqa: PTH116 - once for every line
                    return here.fd, status.st_size
            except FileNotFoundError:
                pass
            here.close()


def wait_for_lock(fd: int, how: int) -> bool:
    """Lock an open file (`LOCK_EX` or `LOCK_SH`). False where others held it for `LOCK_WAIT_SECONDS`."""
    pause, deadline = _FIRST_PAUSE_SECONDS, 0.0
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            deadline = deadline or time.monotonic() + LOCK_WAIT_SECONDS
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
        else:
            return True


def _following(fd: int, size: int, body: str, what: str) -> bytes:
    """The line for the end of the file; before it, if the last one was cut short, what closes that."""
    tail = _tail(fd, size, _TAIL_BYTES)
    last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
    if lines.looks_whole(last) and (len(last) < len(tail) or len(tail) == size):
        return lines.line(lines.digest(last), body)
    if size == 0:
        return lines.line(lines.NOTHING, body)
    return _mended(_tail(fd, size, 3 * lines.MAX_LINE_BYTES), size, body, what)


def _tail(fd: int, size: int, length: int) -> bytes:
    start = max(0, size - length)
    return os.pread(fd, size - start, start)


def _mended(tail: bytes, size: int, body: str, what: str) -> bytes:
    """The line after one that is long or was cut short: that is ended, and closed if need be."""
    newline = b"" if tail.endswith(b"\n") else b"\n"
    pieces = (tail + newline).split(b"\n")[:-1]
    if len(tail) < size:
        del pieces[0]  # it may have begun before
    wholes = [n for n, piece in enumerate(pieces) if lines.is_record(piece)]
    if not pieces or (not wholes and len(tail) < size):
        raise failed(what, "it ends in something that is no audit log")
    last = lines.digest(pieces[-1] + b"\n")
    if wholes and wholes[-1] == len(pieces) - 1:
        return newline + lines.line(last, body)
    before = lines.digest(pieces[wholes[-1]] + b"\n") if wholes else lines.NOTHING
    closing = lines.line(last, lines.body("recovered", {"before": before}))
    return newline + closing + lines.line(lines.digest(closing), body)
