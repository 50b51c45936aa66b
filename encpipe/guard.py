"""What keeps keys and decrypted rows in memory: no core dumps, nothing of it in dumps, no swap.

    from encpipe import guard, open_dataset

    with guard.hold(guard.Guard()), open_dataset("s3://bucket/flights") as dataset:
        ...

`encpipe.torch` holds one by default, as long as a loader is open and in its worker processes. What it does,
on Linux (elsewhere it warns and does nothing):

- `forbid_core_dumps`: the soft RLIMIT_CORE becomes 0, and the process *not dumpable* (PR_SET_DUMPABLE),
  since a limit does not hold where the kernel pipes dumps to a program, such as systemd-coredump. The
  price: other programs of the same user no longer get at the process. gdb, py-spy, `strace -p` and perf
  need root then, and so does reading /proc/PID/{environ,fd,maps}; MPI's and UCX's copies between processes
  (process_vm_readv) and what uses pidfd_getfd (PyTorch's sharing of CUDA memory with `expandable_segments`)
  are refused. Where that is needed: `Guard(forbid_core_dumps=False)`.
- `dont_dump`: should there be a dump all the same, it has no memory in it. All that is mapped writable is
  marked MADV_DONTDUMP when a hold begins and when the last one ends, and in between the process's
  coredump_filter leaves out new memory too. The marks stay: freed memory still has keys and rows in it.
- `lock_memory`: pages are not swapped out (mlockall). Needs a high limit, better none, or CAP_IPC_LOCK:
  with a limit that is reached later, allocations fail.
- `warn_swap`: a `SwapWarning`, once and not in worker processes, where memory can be swapped to a disk in
  clear.

Any number of holds may be open at once, in any threads: what one of them wants is in force. A forked child
stays as its parent was, but for locked memory, which the kernel does not hand down; a program that is
executed is dumpable again, and has the limit and the filter. So worker processes hold a guard of their own.

Not covered: root, the hypervisor, hibernation, devices that read memory, and code in the process itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Final

from encpipe.errors import ConfigError
from encpipe.machine import Machine, dumpable, libc, lock_limit, locked_bytes

__all__ = ["Guard", "GuardWarning", "SwapWarning", "hold"]

PR_SET_DUMPABLE: Final = 4
MADV_DONTDUMP: Final = 16
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4
"""Lock pages as they are touched, not the whole address space: that is tens of GB with torch."""

COREDUMP_FILTER: Final = Path("/proc/self/coredump_filter")
FILTER_HEADERS: Final = 0x10
"""The bit of coredump_filter that lets ELF headers be dumped; all others stand for kinds of memory."""

MACHINE: Final = Machine()


class GuardWarning(UserWarning):
    """Something that was asked for does not hold here."""


class SwapWarning(GuardWarning):
    """Memory can be swapped to a disk in clear."""


@dataclass(frozen=True)
class Guard:
    """What to hold; the module's docstring says what each part does and costs."""

    forbid_core_dumps: bool = True
    dont_dump: bool = True
    lock_memory: bool = False
    warn_swap: bool = True


@contextmanager
def hold(guard: Guard, *, machine: Machine = MACHINE) -> Iterator[None]:
    """Keep `guard` in force for the block. May be nested, and used by several threads at once.

    When the last block that wants a part ends, what it changed is put back: dumpable, the limit, the filter,
    the locks. Raises `ConfigError`: `memory-lock` where the system refuses to lock memory, `config` where it
    refuses another part; what is in force is as before then. Beginning and ending take milliseconds each.
    """
    if not isinstance(guard, Guard):
        raise ConfigError(
            f"guard is {guard!r}: it is an encpipe.guard.Guard",
            hint="Guard(forbid_core_dumps=False, dont_dump=False, warn_swap=False) holds nothing",
        )
    if sys.platform != "linux":
        _warn_once(GuardWarning, f"encpipe.guard does nothing on {sys.platform}: it knows Linux only")
        yield
        return
    if guard.warn_swap and not guard.lock_memory and parent_process() is None:  # else the parent has warned
        _warn_of_swap(machine)
    holder = object()
    _process.enter(holder, frozenset(part for part in _PARTS if getattr(guard, part)))
    try:
        yield
    finally:
        _process.leave(holder)


Undo = Callable[[], None]


class _Process:
    """Who holds what in this process, and how to put it back."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a hold left to the garbage collector may end inside of `enter`
        self._holders: dict[object, frozenset[str]] = {}
        self._undo: dict[str, Undo] = {}

    def enter(self, holder: object, parts: frozenset[str]) -> None:
        with self._lock:
            self._holders[holder] = parts
            try:
                self._settle()
                if "dont_dump" in parts:
                    _mark_memory()
            except BaseException:
                self.leave(holder)
                raise

    def leave(self, holder: object) -> None:
        """Does nothing for a hold of the parent process that a fork copied."""
        with self._lock:
            if self._holders.pop(holder, None) is not None:
                self._settle()

    def _settle(self) -> None:
        for part, apply in _PARTS.items():
            if self._wants(part) and part not in self._undo:
                with suppress(_NotNowError):
                    self._undo[part] = apply()
        for part in reversed(list(_PARTS)):
            if part in self._undo and not self._wants(part):
                with suppress(_NotNowError):
                    self._undo[part]()
                    del self._undo[part]

    def _wants(self, part: str) -> bool:
        return any(part in parts for parts in self._holders.values())


class _NotNowError(Exception):
    """Not possible while the process is not dumpable, and tried again when it is."""


def _forbid_core_dumps() -> Undo:
    found, limit = dumpable(), resource.getrlimit(resource.RLIMIT_CORE)
    forbidden = (0, limit[1])
    _set_dumpable(0)
    resource.setrlimit(resource.RLIMIT_CORE, forbidden)

    def undo() -> None:
        if found == 1:  # the kernel lets no process ask for the third value, 2
            _set_dumpable(1)
        if resource.getrlimit(resource.RLIMIT_CORE) == forbidden:  # else somebody else has changed it
            resource.setrlimit(resource.RLIMIT_CORE, limit)

    return undo


def _set_dumpable(value: int) -> None:
    if libc().prctl(PR_SET_DUMPABLE, value, 0, 0, 0) != 0:
        raise _refused("to make the process not dumpable", "forbid_core_dumps", ctypes.get_errno())


def _leave_out_of_dumps() -> Undo:
    try:
        found = int(COREDUMP_FILTER.read_text(), 16)
    except FileNotFoundError:  # a kernel without core dumps
        return lambda: None
    _set_filter(found & FILTER_HEADERS)

    def undo() -> None:
        _mark_memory()
        _set_filter(found)

    return undo


def _set_filter(bits: int) -> None:
    try:
        COREDUMP_FILTER.write_text(f"{bits:#x}")
    except OSError as error:
        if isinstance(error, PermissionError) and dumpable() != 1:
            raise _NotNowError from None  # the file is root's now; and there are no dumps
        raise _refused(f"to write {COREDUMP_FILTER}", "dont_dump", error.errno or 0) from None


def _mark_memory() -> None:
    """Mark all that is mapped writable now as not to be dumped."""
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        span, access, _ = line.split(" ", 2)
        if access[1] != "w":
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        if libc().madvise(start, end - start, MADV_DONTDUMP) != 0:
            number = ctypes.get_errno()
            if number != errno.ENOMEM:  # another thread has unmapped it meanwhile
                raise _refused("to leave memory out of core dumps", "dont_dump", number)


def _lock_memory() -> Undo:
    others = locked_bytes() > 0
    if libc().mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        number, limit = ctypes.get_errno(), lock_limit()
        allowed = "there is no limit on it" if limit is None else f"the limit is {limit} bytes"
        raise ConfigError(
            f"the system refuses to lock this process's memory: {os.strerror(number)}; {allowed}",
            hint="lift it with `ulimit -l unlimited`, LimitMEMLOCK=infinity (systemd) or "
            "--ulimit memlock=-1 (docker), or use guard=Guard(lock_memory=False)",
            code="memory-lock",
        )

    def undo() -> None:
        if others:  # all stays locked that is, as theirs cannot be told from ours; new memory is free
            libc().mlockall(MCL_CURRENT | MCL_ONFAULT)
        else:
            libc().munlockall()

    return undo


_PARTS: Final[Mapping[str, Callable[[], Undo]]] = {
    "dont_dump": _leave_out_of_dumps,  # first, and undone last: its file is closed to a process not dumpable
    "forbid_core_dumps": _forbid_core_dumps,
    "lock_memory": _lock_memory,
}


def _refused(what: str, part: str, number: int) -> ConfigError:
    return ConfigError(
        f"the system refuses {what}: {os.strerror(number)}",
        hint=f"a sandbox may forbid it; to do without: guard=Guard({part}=False)",
    )


def _warn_of_swap(machine: Machine) -> None:
    areas = machine.swaps_in_clear()
    if areas:
        _warn_once(
            SwapWarning,
            f"swap is on ({', '.join(areas)}): keys and decrypted rows may be written to disk. Switch it "
            "off, put it on dm-crypt, or use Guard(lock_memory=True); Guard(warn_swap=False) silences this",
        )


_warned: set[type[Warning]] = set()


def _warn_once(kind: type[Warning], text: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(text, kind, stacklevel=4)


_process = _Process()


def _start_afresh() -> None:
    """In a forked child: what the kernel handed down stays in force, and is what the child's holds find."""
    global _process
    _process = _Process()


os.register_at_fork(after_in_child=_start_afresh)
