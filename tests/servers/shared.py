"""One server of a kind for a whole test run, however many pytest-xdist workers take part.

The first process that asks starts it under a file lock and leaves its address as JSON in the run's folder;
the run's owner (the xdist controller, or the only process) ends them all. If the owner dies, the keepers do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from servers.ca import CertificateAuthority
from servers.process import Server, end_group

Address = TypeVar("Address")
StartServer = Callable[[int, Path], Server]  # owner pid, parent folder -> not yet started


@dataclasses.dataclass(frozen=True)
class Run:
    """A test run: its folder and the process that owns its servers."""

    folder: Path
    owner_pid: int

    def server(self, name: str, address_type: type[Address], create: StartServer) -> Address:
        state = self.folder / f"{name}.json"
        with self._lock(name):
            if not state.exists():
                self._start(state, create)
            return address_type(**json.loads(state.read_bytes())["address"])

    def _start(self, state: Path, create: StartServer) -> None:
        server: Any = create(self.owner_pid, self.folder).start()
        server.leave_running()
        state.write_text(json.dumps({"group": server.pid, "address": dataclasses.asdict(server.address)}))

    def authority(self) -> CertificateAuthority:
        folder = self.folder / "ca"
        with self._lock("ca"):
            if not (folder / "ca.pem").exists():
                return CertificateAuthority.create(folder)
            return CertificateAuthority.load(folder)

    def end(self) -> None:
        """Kill all servers of the run and remove its folder. Only for the owner."""
        for state in self.folder.glob("*.json"):
            end_group(json.loads(state.read_bytes())["group"])
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.folder / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
