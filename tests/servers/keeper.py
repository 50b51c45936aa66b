"""Runs one server and ends it when the owner process ends, however that happens (`kill -9` included).

    python keeper.py OWNER_PID FOLDER COMMAND...

SIGTERM ends the server too, but leaves the folder to whoever sent it. The server is gone, not just signalled,
when this process ends.

Waits on both processes through pidfds, so it neither polls nor depends on being the owner's child: with
pytest-xdist a worker starts the server, but the controller owns it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys


def main(owner_pid: int, folder: str, command: list[str]) -> int:
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        with contextlib.suppress(ProcessLookupError):
            owner = os.pidfd_open(owner_pid)
            select.select([owner, os.pidfd_open(server.pid)], [], [])
        if server.poll() is not None:
            return server.returncode
    finally:
        server.kill()
        server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
