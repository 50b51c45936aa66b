"""Runs a program under strace, with all its threads and children, and judges what it put on disk.

`judge` takes each way that bytes get into a file: the data of write and its relatives is searched for
markers; what a trace cannot show (shared maps, io_uring, data moved from a pipe) is a leak as such. So is a
write whose data or file strace could not read, as of a process that is not dumpable where strace is not root.
"""

from __future__ import annotations

import codecs
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import Final

import pytest
from markers import Finder

WRITES: Final = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
MOVES: Final = {"sendfile": (0, 1), "copy_file_range": (1, 0), "splice": (1, 0)}
"""Call -> which of its descriptors is written to, and which is read from."""
UNSEEN: Final = ("io_uring_setup", "io_setup", "io_submit")
TRACED: Final = ("%file", *WRITES, *MOVES, "ftruncate", "mmap", "memfd_create", "fsetxattr", *UNSEEN)
SECONDS: Final = 200
"""How long a program may run."""
DATA_LIMIT: Final = 1 << 20
"""Bytes of data that strace shows of a call."""
NAMES: Final = re.compile(r"mkdir|rename|link|symlink|mknod|creat|[fl]?setxattr")
"""Calls that put a name, or an attribute, on disk; beside those that open with O_CREAT."""

CALL: Final = re.compile(r"\d+ +(\w+)\((.*)")
STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?')
DESCRIPTOR: Final = re.compile(r"(?:AT_FDCWD|\d+)<(.*?)>(?:\(deleted\))?(?=[,) ]|$)")
MEMORY: Final = ("/dev/shm/", "/memfd:")


@dataclass(frozen=True)
class Leak:
    """Something on disk, or on its way there: `call` at `place` (a path, or what stands for it)."""

    call: str
    place: str
    why: str


@dataclass
class Verdict:
    """What a trace shows. `files` are those that were written to, as proof that something was seen."""

    leaks: list[Leak] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    "Files of /dev/shm and memfds that were made or written to."

    def at(self, name: str) -> set[str]:
        """The calls that leaked into files of this name."""
        return {leak.call for leak in self.leaks if Path(leak.place).name == name}


def run(
    argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str], cwd: Path, shown: int = DATA_LIMIT
) -> subprocess.CompletedProcess[str]:
    """Run a program with everything it starts under strace. Skips without strace, but fails where CI=true."""
    if shutil.which("strace") is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("needs strace: make system-deps")
    options = ["-f", "--seccomp-bpf", "-qq", "-yy", "-s", str(shown)]
    options += ["-e", f"trace={','.join(TRACED)}", "-o", str(log)]
    command = ["strace", *options, *argv]
    with subprocess.Popen(
        command, env=env, cwd=cwd, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what strace follows would run on without it
            pytest.fail(f"still running after {SECONDS} s: {process.communicate()}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def judge(log: Path, finder: Finder, *, shared_memory: bool = False) -> Verdict:
    """`shared_memory` allows /dev/shm and memfds, which torch's worker processes hand tensors over in."""
    verdict, opened, tails = Verdict(), set[str](), dict[str, bytes]()
    with log.open(encoding="latin-1") as lines:
        for line in lines:
            call = CALL.match(line)
            if call is None:  # the end of a call whose beginning showed all, a signal, an exit
                continue
            name, rest = call.groups()
            if name in WRITES:
                _judge_write(verdict, finder, name, rest, tails)
            elif name in MOVES:
                _judge_move(verdict, name, rest)
            elif name == "mmap":
                _judge_map(verdict, rest, opened)
            elif name in UNSEEN:
                verdict.leaks.append(Leak(name, "", "writes that a trace does not show"))
            elif name == "memfd_create":
                verdict.shared.add(f"memfd {_text(rest)}")
            else:
                _judge_name(verdict, finder, name, rest, opened)
    if not shared_memory:
        verdict.leaks += [Leak("shared memory", path, "not for one process") for path in verdict.shared]
    return verdict


def _judge_write(verdict: Verdict, finder: Finder, name: str, rest: str, tails: dict[str, bytes]) -> None:
    place = _first_file(rest)
    if place == "":
        return
    if place is None:
        verdict.leaks.append(Leak(name, rest[:40], "it does not show what is written to"))
        return
    (verdict.shared if place.startswith(MEMORY) else verdict.files).add(place)
    data = b"".join(_bytes(found[1]) for found in STRING.finditer(rest))
    if len(data) != _declared(name, STRING.sub('""', rest)):
        verdict.leaks.append(Leak(name, place, "it does not show all that is written"))
    data = tails.get(place, b"") + data
    marker = finder.found(data)
    if marker and not place.startswith(MEMORY):
        verdict.leaks.append(Leak(name, place, marker))
    tails[place] = b"" if marker else data[-finder.longest :]  # a marker may lie across two writes


def _declared(name: str, bare: str) -> int:
    """How many bytes a call says it writes, -1 where that is not shown. `bare` has nothing in its strings."""
    if name in ("write", "pwrite64"):
        length = re.search(r'"", (\d+)', bare)
        return int(length[1]) if length else -1
    lengths = [int(length) for length in re.findall(r'\{iov_base="", iov_len=(\d+)\}', bare)]
    count = re.search(r"\], (\d+)", bare)
    return sum(lengths) if count and int(count[1]) == len(lengths) else -1


def _judge_move(verdict: Verdict, name: str, rest: str) -> None:
    found = list(_descriptors(rest))
    if len(found) < 2:
        verdict.leaks.append(Leak(name, rest[:40], "it does not show what moves where"))
        return
    to, source = (found[which] for which in MOVES[name])
    if not _is_file(to):
        return
    (verdict.shared if to.startswith(MEMORY) else verdict.files).add(to)
    if not _is_file(source) or source.startswith(MEMORY):
        verdict.leaks.append(Leak(name, to, f"data that a trace does not show, of {source}"))


def _judge_map(verdict: Verdict, rest: str, opened: set[str]) -> None:
    if "MAP_SHARED" not in rest or "MAP_ANONYMOUS" in rest:
        return
    place = _first_file(rest)
    if place is None:
        verdict.leaks.append(Leak("mmap", rest[:60], "it does not show what is mapped"))
    elif place.startswith(MEMORY):
        verdict.shared.add(place)
    elif place and ("PROT_WRITE" in rest or place in opened):  # the right to write can be added later
        verdict.leaks.append(Leak("mmap", place, "a shared map that can be written to"))


def _judge_name(verdict: Verdict, finder: Finder, name: str, rest: str, opened: set[str]) -> None:
    creates = "O_CREAT" in rest or NAMES.match(name) is not None
    if not creates and "O_WRONLY" not in rest and "O_RDWR" not in rest:
        return
    folder = next(_descriptors(rest), "") if rest.startswith("AT_FDCWD") or rest[:1].isdigit() else ""
    for found in STRING.finditer(rest):
        path = str(Path(folder, found[1]))
        opened.add(path)
        if creates and path.startswith(MEMORY):
            verdict.shared.add(path)
        marker = finder.found(_bytes(found[1]))
        if marker:
            verdict.leaks.append(Leak(name, path, f"in a name or an attribute: {marker}"))


def _descriptors(rest: str) -> Iterator[str]:
    for found in DESCRIPTOR.finditer(rest):
        yield found[1]


def _first_file(rest: str) -> str | None:
    """The path of the first descriptor; empty where it is no file but a pipe, a socket or a terminal."""
    place = next(_descriptors(rest.partition(', "')[0].partition(", [{")[0]), None)
    return place if place is None or _is_file(place) else ""


def _is_file(place: str) -> bool:
    return place.startswith("/") and "<char " not in place


def _text(rest: str) -> str:
    found = STRING.search(rest)
    return found[1] if found else ""


def _bytes(shown: str) -> bytes:
    """What a string in a trace stands for: C escapes."""
    return codecs.escape_decode(shown.encode("latin-1"))[0] if "\\" in shown else shown.encode("latin-1")  # type: ignore[attr-defined,no-any-return] # not in typeshed
