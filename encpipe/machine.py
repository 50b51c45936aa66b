"""What this machine and this process do with memory: core dumps, swap, locked pages. Changes nothing.

Sources: proc(5), core(5), prctl(2), mlock(2), and the kernel's documentation of cgroup v2 and zram.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

PR_GET_DUMPABLE: Final = 3
CAP_IPC_LOCK: Final = 14
"""The capability that lifts the limit on locked memory."""

_CRYPT: Final = "CRYPT-"
"""What device mapper's identifiers of dm-crypt devices begin with."""


@dataclass(frozen=True)
class Machine:
    """The machine as its files tell; `root` is where they are looked for, so that a test can write its own.

    Where a file is missing or cannot be read, the answer is the empty one.
    """

    root: Path = Path("/")

    def core_pattern(self) -> str:
        """Where the kernel puts core dumps: a file name, or `|` and a program. Empty where unknown."""
        return self._read("proc/sys/kernel/core_pattern").strip()

    def ptrace_scope(self) -> int | None:
        """Yama's rule (0: any process of the user may attach); None without Yama, which is as 0."""
        text = self._read("proc/sys/kernel/yama/ptrace_scope").strip()
        return int(text) if text.isdecimal() else None

    def swaps(self) -> list[str]:
        """The areas that memory is swapped to, as `/proc/swaps` names them."""
        lines = self._read("proc/swaps").splitlines()[1:]
        return [_unescape(line.split()[0]) for line in lines if line.strip()]

    def swaps_in_clear(self) -> list[str]:
        """The swap areas that would put this process's memory on a disk in clear, as far as can be told.

        Not zram (memory), not dm-crypt devices, and none at all where a control group forbids us to swap.
        """
        if not self._may_swap():
            return []
        return [area for area in self.swaps() if not self._is_harmless(Path(area).name)]

    def cpu_flags(self) -> frozenset[str]:
        """What the first processor can do (`aes`, ...), on x86 and ARM."""
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", self._read("proc/cpuinfo"), re.M)
        return frozenset(found[1].split()) if found else frozenset()

    def file_system(self, path: Path) -> str:
        """The type of the file system that an absolute path is on (`tmpfs`, `ext4`, ...)."""
        found, where = "", Path()
        for line in self._read("proc/mounts").splitlines():
            _, mounted, kind, *_ = line.split()
            folder = Path(_unescape(mounted))
            if path.is_relative_to(folder) and len(folder.parts) >= len(where.parts):
                found, where = kind, folder
        return found

    def _is_harmless(self, device: str) -> bool:
        return device.startswith("zram") or self._read(f"sys/block/{device}/dm/uuid").startswith(_CRYPT)

    def _may_swap(self) -> bool:
        return all(self._read(f"{group}/memory.swap.max").strip() != "0" for group in self._control_groups())

    def _control_groups(self) -> Iterator[str]:
        """The folders of our control group (version 2) and of those around it."""
        found = re.search(r"^0::/(.*)$", self._read("proc/self/cgroup"), re.M)
        group = Path(found[1] if found else "")
        for folder in (group, *group.parents):
            yield f"sys/fs/cgroup/{folder}"

    def _read(self, path: str) -> str:
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return ""


def _unescape(text: str) -> str:
    """Blanks in a path are written as octal escapes there."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


@cache
def libc() -> ctypes.CDLL:
    """The C library of this process, with the types of what is called of it."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.mlockall.argtypes = [ctypes.c_int]
    return library


def dumpable() -> int:
    """This process's attribute: 1 as usual, 0 where neither core dumps nor debuggers get at its memory."""
    return int(libc().prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))


def core_limit() -> int | None:
    """Bytes that a core file may have (RLIMIT_CORE); None for no limit."""
    return _limit(resource.RLIMIT_CORE)


def lock_limit() -> int | None:
    """Bytes that this process may lock in memory; None for no limit, or where it has CAP_IPC_LOCK."""
    capabilities = int(_status("CapEff") or "0", 16)
    return None if capabilities >> CAP_IPC_LOCK & 1 else _limit(resource.RLIMIT_MEMLOCK)


def locked_bytes() -> int:
    """Bytes of this process that are locked in memory."""
    return int((_status("VmLck") or "0").split()[0]) * 1024


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _status(name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", Path("/proc/self/status").read_text(), re.M)
    return found[1] if found else ""
