"""The judge of what programs write: each way onto a disk, tried by a small program of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tracing
from markers import Finder
from scene import ended, forked
from tracing import Verdict

from encpipe.machine import libc

pytestmark = pytest.mark.system

PR_CAPBSET_DROP = 24
CAP_SYS_PTRACE = 19
MARKER = bytes(range(224, 256)) + b'0"\\\n'
FINDER = Finder({"it": (MARKER,)})
PRELUDE = """
import ctypes, mmap, os, socket, subprocess, sys
m = bytes(range(224, 256)) + b'0"' + bytes([92, 10])
def new(name="out"):
    return os.open(name, os.O_RDWR | os.O_CREAT)
"""
Judged = Callable[..., Verdict]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """What the judge says of a program; `shown` is how much of its data strace may show."""
    here = tmp_path / "here"
    here.mkdir()

    def judged(code: str, *, shared_memory: bool = False, shown: int = tracing.DATA_LIMIT) -> Verdict:
        log = tmp_path / "log"
        argv = [sys.executable, "-I", "-S", "-B", "-c", PRELUDE + code]
        done = tracing.run(argv, log=log, env={"PATH": os.environ["PATH"]}, cwd=here, shown=shown)
        assert done.returncode == 0, done.stderr
        return tracing.judge(log, FINDER, shared_memory=shared_memory)

    return judged


HARMLESS = {
    "other data": "os.write(new(), b'other' * 100_000)",
    "a pipe": "r, w = os.pipe(); os.write(w, m)",
    "a socket": "a, b = socket.socketpair(); os.write(a.fileno(), m); os.writev(b.fileno(), [m])",
    "a device": "os.write(os.open('/dev/null', os.O_WRONLY), m)",
    "a private map": "f = new(); os.write(f, b'x'); mmap.mmap(f, 1, mmap.MAP_PRIVATE)[:] = b'y'",
    "memory of one's own": "mmap.mmap(-1, 100)[:36] = m",
    "a map for reading": (
        "os.write(new(), b'x'); f = os.open(sys.executable, os.O_RDONLY); "
        "mmap.mmap(f, 100, prot=mmap.PROT_READ)"
    ),
    "nothing": "os.write(new(), b''); os.writev(new(), [])",
}


@pytest.mark.parametrize("code", HARMLESS.values(), ids=HARMLESS)
def test_what_leaks_nothing_is_let_through(judged: Judged, code: str) -> None:
    assert judged(code).leaks == []


LEAKS = {
    "write": "os.write(new(), b'x' + m)",
    "pwrite64": "os.pwrite(new(), m, 5)",
    "writev": "os.writev(new(), [b'x', m])",
    "writev in pieces": "os.writev(new(), [m[:9], m[9:]])",
    "pwritev2": "os.pwritev(new(), [m], 3)",
    "write in pieces": "f = new(); os.write(f, m[:20]); os.write(f, m[20:])",
    "write to a file without a name": "f = new(); os.unlink('out'); os.write(f, m)",
    "write by a child": (
        "subprocess.run([sys.executable, '-I', '-S', '-c', 'import sys; open(\"out\", \"wb\").write("
        "sys.stdin.buffer.read())'], input=m)"
    ),
    "write by a fork of a fork": "os.fork() or os.fork() or os.write(new(), m)",
    "write by a thread": (
        "import threading; t = threading.Thread(target=lambda: os.write(new(), m)); t.start(); t.join()"
    ),
    "mmap": "f = new(); os.truncate(f, 100); mmap.mmap(f, 100)[:36] = m",
    "mmap made writable later": "f = new(); os.truncate(f, 100); mmap.mmap(f, 100, prot=mmap.PROT_READ)",
    "splice": "f = new(); r, w = os.pipe(); os.write(w, m); os.splice(r, f, 36)",
    "sendfile": "f = new(); g = os.memfd_create('g'); os.write(g, m); os.sendfile(f, g, 0, 36)",
    "fsetxattr": "os.setxattr(new(), 'user.x', m)",
    "setxattr": "new('out'); os.setxattr('out', 'user.x', b'out' + m)",
    "mkdir": "os.mkdir(b'out' + m)",
    "openat": "os.open(b'out' + m, os.O_WRONLY | os.O_CREAT)",
    "rename": "new(); os.rename('out', b'out' + m)",
    "symlink": "os.symlink(b'out' + m, 'there')",
    "io_uring_setup": "ctypes.CDLL(None).syscall(425, 1, 0)",
}


@pytest.mark.parametrize("way", LEAKS)
def test_a_leak_is_caught(judged: Judged, way: str) -> None:
    leaks = judged(LEAKS[way], shared_memory=True).leaks
    assert {leak.call for leak in leaks} == {way.split()[0]}
    assert way == "io_uring_setup" or any(re.search("(^|/)out", leak.place) for leak in leaks)


@pytest.mark.parametrize(
    "code",
    [
        "f = os.memfd_create('x'); os.write(f, m)",
        "n = f'/dev/shm/encpipe-{os.getpid()}'; new(n); os.unlink(n)",
        "n = f'/dev/shm/{os.getpid()}'; f = new(n); os.unlink(n); os.ftruncate(f, 9); mmap.mmap(f, 9)",
    ],
    ids=["memfd", "file", "map"],
)
def test_shared_memory_is_for_several_processes_only(judged: Judged, code: str) -> None:
    assert {leak.call for leak in judged(code).leaks} == {"shared memory"}
    allowed = judged(code, shared_memory=True)
    assert allowed.leaks == []
    assert allowed.shared


def test_a_write_that_is_not_shown_in_full_is_a_leak(judged: Judged) -> None:
    (leak,) = judged("os.write(new(), b'other' * 10)", shown=20).leaks
    assert "not show all" in leak.why


def test_a_write_by_a_process_that_strace_may_not_read_is_a_leak(judged: Judged) -> None:
    def as_any_user() -> None:
        libc().prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)  # does nothing where we are not root
        code = "f = new(); ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); os.write(f, b'x')"
        assert {leak.call for leak in judged(code).leaks} == {"write"}

    assert ended(forked(as_any_user)) == 0


@pytest.mark.parametrize(
    "line",
    [
        "1 write(3, 0x7f72c995b020, 5) = 5\n",
        "1 write(3</tmp/x>, 0x7f72c995b020, 5) = 5\n",
        "1 writev(3</tmp/x>, 0x7f0, 2) = 5\n",
        '1 writev(3</tmp/x>, [{iov_base="a", iov_len=1}, 0x7f0], 2) = 5\n',
        "1 sendfile(3, 4, [0] => [1], 1) = 1\n",
        "1 sendfile(3</tmp/x>, 4</memfd:x>(deleted) <unfinished ...>\n",
        "1 mmap(NULL, 256, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f55d11bf000\n",
    ],
)
def test_a_line_without_its_data_is_a_leak(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(line)
    assert tracing.judge(tmp_path / "log", FINDER).leaks


def test_a_call_that_another_thread_interrupts_is_read_where_it_begins(tmp_path: Path) -> None:
    shown = "".join(f"\\{byte:o}" for byte in MARKER[:-1]) + "\\n"
    (tmp_path / "log").write_text(
        "7 sendfile(3</tmp/x>, 4</tmp/y>, [0] <unfinished ...>\n"
        f'12 write(3</tmp/x>, "{shown}", {len(MARKER)} <unfinished ...>\n'
        "7 <... sendfile resumed>) = 5\n"
        f"12 <... write resumed>) = {len(MARKER)}\n"
    )
    (leak,) = tracing.judge(tmp_path / "log", FINDER).leaks
    assert (leak.call, leak.place, leak.why) == ("write", "/tmp/x", "it")
