"""The audit log on standard error and in Python loggers: a chain for each process, from start to end."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from encpipe.audit import AuditCheck, audit_of, verify_audit
from encpipe.audit.chains import LoggerText, ProcessChain
from encpipe.config import AuditConfig
from encpipe.errors import StorageError

PROGRAM = """
import logging, multiprocessing, os, sys
from encpipe.audit import audit_of
from encpipe.config import AuditConfig

logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level="INFO")

def tell(n):
    for _ in range(n):
        audit_of(AuditConfig(SINK)).record("open", dataset="d")

if __name__ == "__main__":
    print("a line of the program", file=sys.stderr)
    tell(2)
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=tell, args=(3,))
        child.start()
        child.join()
    tell(1)
    if "killed" in sys.argv:
        os._exit(0)
"""


def run(tmp_path: Path, sink: str, *arguments: str) -> Path:
    """What the program wrote on standard error, as a file."""
    program = tmp_path / "program.py"
    program.write_text(f"SINK = {sink!r}\n{PROGRAM}")
    done = subprocess.run([sys.executable, program, *arguments], capture_output=True, check=True)
    collected = tmp_path / "collected.txt"
    collected.write_bytes(done.stderr)
    return collected


def events(collected: Path) -> list[str]:
    lines = collected.read_text().splitlines()
    return [json.loads(line[line.index("{") :])["event"] for line in lines if '{"prev"' in line]


@pytest.mark.parametrize("sink", ["stderr", "logger:audit.encpipe"])
def test_every_process_writes_a_chain_with_start_and_end(tmp_path: Path, sink: str) -> None:
    collected = run(tmp_path, sink)
    child = ["start", "open", "open", "open", "end"]
    assert events(collected) == ["start", "open", "open", *child, *child, "open", "end"]
    found = verify_audit(collected)
    found.check()
    assert (found.collected, len(found.chains), found.unended, found.lines) == (True, 3, 0, 15)
    verify_audit(collected, head=found.chains[1].head).check()


def test_a_killed_process_leaves_a_chain_without_end(tmp_path: Path) -> None:
    found = verify_audit(run(tmp_path, "stderr", "killed"))
    found.check()
    assert [chain.ended for chain in found.chains] == [False, True, True]
    assert found.unended == 1


class Sheet:
    """A sink of its own for a test."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken = False

    def check(self) -> None:
        if self.broken:
            raise StorageError("broken", code="audit")

    def put(self, line: str) -> None:
        self.check()
        self.lines.append(line)


def checked(tmp_path: Path, lines: list[str]) -> AuditCheck:
    path = tmp_path / "collected.txt"
    path.write_text("".join(lines))
    return verify_audit(path)


@pytest.fixture
def lines() -> list[str]:
    """Start, four lines, end."""
    sheet = Sheet()
    chain = ProcessChain(sheet)
    for n in range(4):
        chain.append(f'"v":1,"event":"open","pid":7,"dataset":"{n}"')
    chain.end()
    chain.end()
    assert len(sheet.lines) == 6
    return sheet.lines


def test_edited_removed_and_moved_lines_are_found(tmp_path: Path, lines: list[str]) -> None:
    checked(tmp_path, ["text\n", *lines[:3], "text\n", *lines[3:], "text\n"]).check()
    for wrong in (
        [*lines[:2], lines[2].replace('"1"', '"9"'), *lines[3:]],
        [*lines[:2], *lines[3:]],
        lines[1:],
        [lines[1], lines[0], *lines[2:]],
        [*lines, lines[-1]],
        [*lines[:2], lines[2].replace("}", ""), *lines[3:]],
        [*lines[:2], '{"prev":"' + "0" * 64 + '","v":1}\n', *lines[2:]],
    ):
        assert checked(tmp_path, wrong).problem_count > 0


def test_a_cut_end_is_a_chain_without_end(tmp_path: Path, lines: list[str]) -> None:
    head = checked(tmp_path, lines).chains[0].head
    found = checked(tmp_path, lines[:-2])
    found.check()
    assert found.unended == 1
    (tmp_path / "cut").write_text("".join(lines[:-2]))
    assert verify_audit(tmp_path / "cut", head=head).problem_count == 1


def test_two_lines_may_end_up_on_one(tmp_path: Path, lines: list[str]) -> None:
    assert checked(tmp_path, [lines[0].strip(), *lines[1:]]).lines == 6


def test_a_line_that_fails_is_not_part_of_the_chain(tmp_path: Path) -> None:
    sheet = Sheet()
    chain = ProcessChain(sheet)
    for broken in (True, False, True, False):
        sheet.broken = broken
        if broken:
            with pytest.raises(StorageError):
                chain.append('"v":1,"event":"open"')
        else:
            chain.append('"v":1,"event":"open"')
    chain.end()
    found = checked(tmp_path, sheet.lines)
    found.check()
    assert (found.lines, found.unended) == (4, 0)


# What keeps a line from arriving


def test_closed_standard_error_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(StorageError, match="standard error"):
        audit_of(AuditConfig("stderr")).check()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("test_audit_chains")
    made.propagate = False
    yield made
    made.handlers.clear()
    made.setLevel(logging.NOTSET)


class Kept(logging.Handler):
    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: Any) -> None:
        self.messages.append(record.getMessage())


def test_a_logger_gets_whole_lines(logger: logging.Logger) -> None:
    handler = Kept()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    LoggerText(logger.name).put("100 %s\n")
    assert handler.messages == ["100 %s"]


def test_a_logger_that_drops_lines_refuses(logger: logging.Logger) -> None:
    text = LoggerText(logger.name)
    logger.handlers.clear()  # pytest has put its own there
    logger.setLevel(logging.INFO)
    with pytest.raises(StorageError, match="no handler"):
        text.put("x\n")
    logger.addHandler(logging.NullHandler())
    with pytest.raises(StorageError, match="no handler"):
        text.check()
    logger.addHandler(Kept(logging.ERROR))
    with pytest.raises(StorageError, match="no handler"):
        text.check()
    logger.addHandler(Kept())
    text.check()
    logger.setLevel(logging.WARNING)
    with pytest.raises(StorageError, match="no handler"):
        text.check()
