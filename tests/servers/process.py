"""A server process: own group, own folder, a log, and a start that returns only when it really serves.

Guarantees: nothing outlives the owner process (see keeper.py); a server that exits or does not serve in time
raises `ServerStartError` with the tail of its log; `stop()` kills the whole group and removes the folder.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

HOST = "127.0.0.1"
# Below the kernel's ephemeral range, so that no outgoing connection takes one meanwhile.
PORTS = range(10_000, 32_000)
POLL_SECONDS = 0.05
KILL_SECONDS = 10
LOG_TAIL_BYTES = 4_000

# Popen warns when it is collected while its process still runs.
_LEFT_RUNNING: list[subprocess.Popen[bytes]] = []


class ServerStartError(RuntimeError):
    """The server exited or did not serve in time; the text ends with the tail of its log."""


def free_ports(count: int) -> list[int]:
    """Distinct ports that can be bound on loopback right now."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(PORTS)
            sock = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind((HOST, port))
                ports.append(port)
        return ports


def program(name: str) -> str:
    """The path of a program that comes with a package of the `dev` extra."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerStartError(f"{name} not found; run: pip install -e '.[dev]'")
    return found


class Server:
    """Base of the servers: subclasses give the command and the probe.

    `owner_pid` is the process whose end also ends the server; default: this one.
    """

    name = "server"
    start_seconds = 60.0

    def __init__(self, *, owner_pid: int | None = None, parent: Path | None = None) -> None:
        self.owner_pid = owner_pid or os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix=f"encpipe-{self.name}-", dir=parent))
        self.log = self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Variables on top of this process's environment."""
        return {}

    def serves(self) -> bool:
        """One probe; False or an exception of `not_yet` means: not yet."""
        raise NotImplementedError

    not_yet: tuple[type[Exception], ...] = (OSError,)

    @property
    def pid(self) -> int:
        """The process group, led by the keeper."""
        assert self._process is not None, "start() first"
        return self._process.pid

    def start(self) -> Self:
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))]
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*keeper, str(self.owner_pid), str(self.folder), *self.command()],
                    env={**os.environ, **self.environment()},
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._wait_until_it_serves()
        except BaseException:
            self.stop()
            raise
        return self

    def leave_running(self) -> None:
        """Let the server live on when this object is collected; its owner ends it."""
        assert self._process is not None, "start() first"
        _LEFT_RUNNING.append(self._process)

    def _wait_until_it_serves(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(POLL_SECONDS)
                raise ServerStartError(f"{self.name} exited with {code} while starting\n{self.log_tail()}")
            with contextlib.suppress(*self.not_yet):
                if self.serves():
                    return
        raise ServerStartError(f"{self.name} did not serve in {self.start_seconds} s\n{self.log_tail()}")

    def log_tail(self) -> str:
        return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def kill(self) -> None:
        """`kill -9`; the folder stays, so that `start()` can bring the server back on the same ports."""
        if self._process is not None and self._process.poll() is None:
            end_group(self._process.pid)
            self._process.wait()

    def wait(self, timeout: float) -> None:
        """Until the server is gone by itself."""
        assert self._process is not None, "start() first"
        self._process.wait(timeout)

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def end_group(keeper: int) -> None:
    """Kill a keeper's server and all of its group, and return when they are gone. No parentage needed."""
    with contextlib.suppress(ProcessLookupError):
        gone = os.pidfd_open(keeper)
        try:
            signal.pidfd_send_signal(gone, signal.SIGTERM)  # it kills the server with SIGKILL and waits
            select.select([gone], [], [], KILL_SECONDS)
        finally:
            os.close(gone)
        os.killpg(keeper, signal.SIGKILL)
