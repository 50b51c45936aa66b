"""What a guard keeps in memory, seen from outside: the kernel's own view, and real core files.

Most of it happens in child processes, since it is about a whole process and how it dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from encpipe import guard, machine
from encpipe.guard import Guard, GuardWarning, SwapWarning
from encpipe.machine import Machine

PRELUDE = """
import ctypes, json, os, re, resource, sys, threading
from encpipe import machine
from encpipe.errors import ConfigError
from encpipe.guard import Guard, hold
from encpipe.keys import Secret

def unprivileged():
    "As any user: root may do more. Changing the user makes a process not dumpable."
    if os.geteuid() == 0:
        os.setgid(65534), os.setuid(65534)
        assert machine.libc().prctl(4, 1, 0, 0, 0) == 0

def view():
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return [machine.dumpable(), soft, int(open("/proc/self/coredump_filter").read(), 16)]

def flags(secret):
    "VmFlags of the memory that has this secret's bytes."
    data = secret._key
    where = ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))
    found = None
    for line in open("/proc/self/smaps"):
        span = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if span:
            found = int(span[1], 16) <= where < int(span[2], 16)
        elif found and line.startswith("VmFlags:"):
            return line.split()[1:]

hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (1 << 40 if hard == -1 else hard, hard))
FREE = view()
HELD = [0, 0, FREE[2] & 0x10]
"""


def child(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, cwd=cwd, check=False
    )


def told(code: str) -> Any:
    """What `code` leaves in the variable `out`."""
    done = child(code + "\nprint(json.dumps(out))")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


WHO = pytest.mark.parametrize("who", ["", "unprivileged()"], ids=["as we are", "as any user"])


@WHO
def test_while_held_the_kernel_dumps_nothing_and_afterwards_as_before(who: str) -> None:
    free, expected, held, after = told(f"""
{who}
with hold(Guard()):
    held = view()
out = [FREE, HELD, held, view()]
""")
    assert held == expected != free
    assert after == free


@WHO
def test_each_part_is_in_force_until_the_last_hold_that_wants_it_ends(who: str) -> None:
    """In an order that leaves the filter's file closed to us just when it is to be written back."""
    found = told(f"""
{who}
out = [FREE]
dumps, memory = hold(Guard(dont_dump=False)), hold(Guard(forbid_core_dumps=False))
memory.__enter__()
out.append(view())
dumps.__enter__()
out.append(view())
memory.__exit__(None, None, None)
with hold(Guard()):
    out.append(view())
out.append(view()[:2])
dumps.__exit__(None, None, None)
out.append(view())
""")
    free = found[0]
    headers = free[2] & 0x10
    assert found[1:] == [[1, free[1], headers], [0, 0, headers], [0, 0, headers], [0, 0], free]


def test_holds_of_many_threads_add_up() -> None:
    found = told("""
start, seen = threading.Barrier(8), []
def work():
    start.wait()
    for _ in range(20):
        with hold(Guard()):
            seen.append(view() == HELD)
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
out = [len(seen), all(seen), view() == FREE]
""")
    assert found == [160, True, True]


def test_a_hold_ends_when_its_block_fails() -> None:
    assert told("""
try:
    with hold(Guard()):
        raise KeyError
except KeyError:
    out = view() == FREE
""")


def test_a_process_that_was_not_dumpable_before_stays_so() -> None:
    assert told("""
machine.libc().prctl(4, 0, 0, 0, 0)
with hold(Guard()):
    pass
out = machine.dumpable()
""") == 0  # fmt: skip


def test_secrets_are_in_memory_that_is_not_dumped() -> None:
    before, during, later = told("""
old = Secret.random()
out = [flags(old)]
with hold(Guard()):
    new = Secret.random()
    out.append(flags(old))
out.append(flags(new))
""")
    assert "dd" not in before
    assert "dd" in during
    assert "dd" in later, "made while held, when the filter left it out"


def test_a_forked_child_stays_guarded_whatever_it_unwinds() -> None:
    in_child, in_parent = told("""
read, write = os.pipe()
with hold(Guard()):
    if (pid := os.fork()) != 0:
        os.waitpid(pid, 0)
        parent = view() == HELD
if pid == 0:
    with hold(Guard()):
        inner = view() == HELD
    os.write(write, json.dumps([inner, view() == HELD]).encode())
    os._exit(0)
out = [json.loads(os.read(read, 100)), [parent, view() == FREE]]
""")
    assert in_child == [True, True]
    assert in_parent == [True, True]


DIES = """
marker = bytes(range(200, 232)) * 4  # found in memory only, not in this text
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
"""


def core_of(code: str, folder: Path) -> bytes | None:
    """The core file that a child leaves when it aborts after `code`."""
    folder.mkdir()
    done = child(DIES + code, cwd=folder)
    assert done.returncode == -signal.SIGABRT, done.stderr
    found = list(folder.iterdir())
    return found[0].read_bytes() if found else None


@pytest.fixture
def dump(tmp_path: Path) -> bytes:
    """The core file of a child without a guard; skips where this machine leaves none in the folder."""
    pattern = Machine().core_pattern()
    if pattern.startswith("|") or "/" in pattern or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip(f"no core files in the current folder here: pattern {pattern!r}")
    found = core_of("os.abort()", tmp_path / "unguarded")
    if found is None:
        pytest.skip("this system writes no core files")
    return found


MARKER = bytes(range(200, 232)) * 4


def test_a_guarded_process_that_aborts_leaves_no_core_file(dump: bytes, tmp_path: Path) -> None:
    assert MARKER in dump
    assert core_of("with hold(Guard()):\n    os.abort()", tmp_path / "guarded") is None


def test_a_limit_alone_would_not_do(dump: bytes, tmp_path: Path) -> None:
    """Where dumps go to a program the limit counts for nothing: here somebody lifts it again."""
    lifted = "with hold(Guard()):\n    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n    os.abort()"
    assert core_of(lifted, tmp_path / "guarded") is None


@pytest.mark.parametrize("made", ["before", "within"])
def test_a_dump_that_is_allowed_has_no_memory_in_it(dump: bytes, tmp_path: Path, made: str) -> None:
    code = """
with hold(Guard(forbid_core_dumps=False)):
    more = bytes(b ^ 255 for b in marker) * 100_000
    os.abort()
"""
    found = core_of(code, tmp_path / "guarded")
    assert found is not None
    assert {"before": MARKER, "within": bytes(b ^ 255 for b in MARKER)}[made] not in found


def test_memory_dumped_after_a_hold_lacks_what_was_there_during_it(dump: bytes, tmp_path: Path) -> None:
    code = """
with hold(Guard()):
    more = bytes(b ^ 255 for b in marker) * 100_000
later = bytes(b ^ 85 for b in marker) * 100_000
os.abort()
"""
    found = core_of(code, tmp_path / "guarded")
    assert found is not None
    assert bytes(b ^ 255 for b in MARKER) not in found
    assert bytes(b ^ 85 for b in MARKER) in found


def test_memory_is_locked_while_held() -> None:
    if machine.lock_limit() is not None:
        pytest.skip("only so much memory may be locked here")
    during, after = told("""
with hold(Guard(lock_memory=True)):
    during = machine.locked_bytes()
out = [during, machine.locked_bytes()]
""")
    assert during > 1 << 20
    assert after == 0


def test_what_others_locked_stays_locked() -> None:
    if machine.lock_limit() is not None:
        pytest.skip("only so much memory may be locked here")
    assert told("""
block = ctypes.create_string_buffer(1 << 20)
assert machine.libc().mlock(block, 1 << 20) == 0
with hold(Guard(lock_memory=True)):
    pass
free = machine.locked_bytes()
more = ctypes.create_string_buffer(64 << 20)
ctypes.memset(more, 1, 64 << 20)
out = free >= 1 << 20 and machine.locked_bytes() < free + (32 << 20)
""")


def test_memory_that_may_not_be_locked_is_an_error_and_changes_nothing() -> None:
    code, message, hint, unchanged = told("""
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
unprivileged()
try:
    with hold(Guard(lock_memory=True)):
        pass
except ConfigError as error:
    out = [error.code, error.message, error.hint, view() == FREE]
""")
    assert code == "memory-lock"
    assert "limit is 65536 bytes" in message
    assert all(word in hint for word in ("ulimit -l", "LimitMEMLOCK", "lock_memory=False"))
    assert unchanged


def test_beginning_and_ending_take_milliseconds() -> None:
    """With the mappings that torch, Arrow and threads with stacks bring."""
    assert told("""
import time, torch, pyarrow.dataset
done = threading.Event()
for _ in range(16):
    threading.Thread(target=done.wait).start()
def once():
    start = time.perf_counter()
    with hold(Guard()):
        pass
    return time.perf_counter() - start
out = min(once() for _ in range(9))
done.set()
""") < 0.05  # fmt: skip


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def swapping(root: Path, *areas: str) -> Machine:
    lines = "".join(f"{area:<40}partition\t8388604\t\t0\t\t-2\n" for area in areas)
    write(root, "proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" + lines)
    return Machine(root)


def warned(found: Machine, wanted: Guard = Guard(False, False)) -> list[str]:  # noqa: B008 - frozen
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with guard.hold(wanted, machine=found):
            pass
    assert all(issubclass(one.category, SwapWarning) for one in caught)
    return [str(one.message) for one in caught]


@pytest.fixture(autouse=True)
def _never_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_warned", set())


def test_swap_is_warned_of_once_per_process(tmp_path: Path) -> None:
    found = swapping(tmp_path, "/dev/sda2", "/swap\\040file")
    (text,) = warned(found)
    assert "/dev/sda2, /swap file" in text
    assert "lock_memory=True" in text
    assert warned(found) == []


def test_worker_processes_leave_the_warning_to_their_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "parent_process", object)
    assert warned(swapping(tmp_path, "/dev/sda2")) == []


def test_swap_is_no_matter_where_it_cannot_hurt(tmp_path: Path) -> None:
    assert warned(swapping(tmp_path)) == []
    assert warned(Machine(tmp_path / "nothing")) == []
    assert warned(swapping(tmp_path, "/dev/sda2"), Guard(False, False, warn_swap=False)) == []


def test_compressed_memory_and_encrypted_devices_are_not_swap_in_clear(tmp_path: Path) -> None:
    write(tmp_path, "sys/block/dm-0/dm/uuid", "CRYPT-PLAIN-swap\n")
    write(tmp_path, "sys/block/dm-1/dm/uuid", "LVM-abc\n")
    found = swapping(tmp_path, "/dev/zram0", "/dev/dm-0", "/dev/dm-1")
    assert found.swaps_in_clear() == ["/dev/dm-1"]
    assert found.swaps() == ["/dev/zram0", "/dev/dm-0", "/dev/dm-1"]


@pytest.mark.parametrize("forbids", ["", "pods.slice", "pods.slice/pod1"])
def test_a_control_group_that_may_not_swap_counts(tmp_path: Path, forbids: str) -> None:
    found = swapping(tmp_path, "/dev/sda2")
    write(tmp_path, "proc/self/cgroup", "0::/pods.slice/pod1\n")
    write(tmp_path, "sys/fs/cgroup/pods.slice/pod1/memory.swap.max", "max\n")
    assert found.swaps_in_clear() == ["/dev/sda2"]
    write(tmp_path, f"sys/fs/cgroup/{forbids}/memory.swap.max", "0\n")
    assert found.swaps_in_clear() == []


def test_elsewhere_than_on_linux_a_guard_warns_and_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.dumpable()
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.warns(GuardWarning, match="nothing on plan9"), guard.hold(Guard()):
        assert machine.dumpable() == before


def test_a_refusal_by_the_system_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sandbox:
        def prctl(self, *_: int) -> int:
            ctypes.set_errno(1)
            return -1

    limit = resource.getrlimit(resource.RLIMIT_CORE)
    monkeypatch.setattr(guard, "libc", Sandbox)
    with pytest.raises(guard.ConfigError) as refused, guard.hold(Guard(dont_dump=False, warn_swap=False)):
        raise AssertionError("not reached")
    assert "forbid_core_dumps=False" in refused.value.hint
    assert resource.getrlimit(resource.RLIMIT_CORE) == limit
    assert os.strerror(1) in refused.value.message
