"""Whether an audit log is as it was written: what `encpipe audit verify` does.

A *file* is one chain: every line names the one right before it. Text that is no line may stand there only
where a line was cut short and `recovered` says so; a whole JSON object never may, as no part of a line is
one. What standard error or a logger wrote is *collected*: chains of several processes, each from its `start`,
with other text around and between the lines.

What a chain does not show, as nothing is signed: an end that is missing, unless one knows a later head; and
lines made by somebody who may write the log, from the first line he touched to the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from encpipe import strictjson
from encpipe.audit.files import wait_for_lock
from encpipe.audit.lines import MAX_LINE_BYTES, NOTHING, RECORD, digest, parsed
from encpipe.errors import ConfigError, IntegrityError, ManifestError, StorageError

MAX_PROBLEMS: Final = 100
"""Problems that are listed; all are counted."""
NO_LINE: Final = "it is no line of an audit log: it was edited or put there"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong at a line, counted from 1."""

    line: int
    message: str


@dataclass
class Chain:
    """One chain: a whole file, or what one process wrote. `head` is the digest of its last line."""

    id: str = ""
    host: str = ""
    pid: int = 0
    lines: int = 0
    head: str = NOTHING
    ended: bool = False


@dataclass
class AuditCheck:
    """What was found. `problem_count` may exceed `problems`; `lost` counts events whose line was not taken
    while `audit.required` was off; `recovered` counts lines that were cut short and closed."""

    path: str
    collected: bool = False
    chains: list[Chain] = field(default_factory=list)
    recovered: int = 0
    lost: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def lines(self) -> int:
        """Lines of all chains."""
        return sum(chain.lines for chain in self.chains)

    @property
    def unended(self) -> int:
        """Chains of processes without an `end`: they run still, were killed, or their end was cut off."""
        return sum(not chain.ended for chain in self.chains) if self.collected else 0

    def check(self) -> None:
        """Raise `IntegrityError` `audit-chain` when there is a problem."""
        if self.problem_count:
            first = self.problems[0]
            more = f" (and {self.problem_count - 1} more)" if self.problem_count > 1 else ""
            raise IntegrityError(
                f"{self.path}, line {first.line}: {first.message}{more}",
                hint="compare it with a copy; nothing after the first problem is proven",
                code="audit-chain",
            )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"lines": self.lines, "unended": self.unended}

    def add(self, line: int, message: str) -> None:
        """Note a problem."""
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(line, message))

    def count(self, chain: Chain, record: dict[str, Any], head: str) -> None:
        """Note a line."""
        chain.lines, chain.head = chain.lines + 1, head
        self.recovered += record.get("event") == "recovered"
        self.lost += _number(record.get("lost"))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def verify_audit(path: Path, *, head: str | None = None) -> AuditCheck:
    """Check the audit log in the file `path`, and that the line with the digest `head` is in it.

    Takes a file that is being written. Raises `ConfigError` for a `head` that is none, `StorageError` when
    the file cannot be read; what is wrong with the log is in the result.
    """
    if head is not None and not _SHA256.fullmatch(head):
        raise ConfigError(
            "a head is 64 lower-case hex digits", hint="as encpipe audit verify prints it", code="usage"
        )
    found, number, seen = AuditCheck(str(path)), 0, head is None
    with _opened(path) as stream:
        found.collected = _is_collected(stream)
        checker = _Collected(found) if found.collected else _File(found)
        for number, whole in enumerate(_lines(stream), 1):
            seen = head in checker.take(number, whole) or seen
    checker.finish()
    if not seen:
        found.add(number, f"no line has the digest {head}: the end was cut off, or lines were replaced")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise StorageError(
            f"the audit log {str(path)!r} cannot be read: {os.strerror(error.errno or 0)}",
            hint="check the path",
            code="not-found" if isinstance(error, FileNotFoundError) else "storage",
        ) from None


def _is_collected(stream: BinaryIO) -> bool:
    """Whether the first line that is one belongs to the chain of a process."""
    for whole in _lines(stream):
        match = RECORD.search(_text(whole))
        if match is not None:
            return match["chain"] is not None
    return False


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines as they were a moment ago, when nobody was in the middle of one."""
    fd = stream.fileno()
    with contextlib.suppress(OSError):  # no locks on this disk: then nobody writes a log here, either
        wait_for_lock(fd, fcntl.LOCK_SH)
    left = os.fstat(fd).st_size
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    stream.seek(0)
    while left > 0:
        whole = stream.readline(min(left, MAX_LINE_BYTES))
        if not whole:
            return
        left -= len(whole)
        yield whole


def _text(whole: bytes) -> str:
    return whole.decode("utf-8", "replace")


def _is_object(text: str) -> bool:
    try:
        strictjson.loads(text.encode("utf-8", "replace"), what="a line")
    except ManifestError:
        return False
    return True


class _File:
    """Goes through the lines of a file that is one chain."""

    def __init__(self, found: AuditCheck) -> None:
        self._found = found
        self._chain = Chain()
        found.chains.append(self._chain)
        self._last = self._prev = NOTHING
        self._torn = self._number = 0
        self._ended = True

    def take(self, number: int, whole: bytes) -> tuple[str, ...]:
        """Check the next line. Its digest."""
        this = digest(whole.removesuffix(b"\n") + b"\n")
        record = self._record(_text(whole))
        if record is None and _is_object(_text(whole)):
            self._found.add(number, NO_LINE)
        elif record is None:
            self._torn = self._torn or number
        else:
            self._check(number, record)
            self._found.count(self._chain, record, this)
            self._last = this
        self._prev, self._number, self._ended = this, number, whole.endswith(b"\n")
        return (this,)

    def _record(self, text: str) -> dict[str, Any] | None:
        match = RECORD.match(text)
        told = None if match is None or match["chain"] is not None else parsed(text, 0)
        return None if told is None or text[told[1] :] not in ("", "\n") else told[0]

    def _check(self, number: int, record: dict[str, Any]) -> None:
        closes = record.get("event") == "recovered"
        if not closes:
            self._unclosed()
        self._torn = 0
        if record["prev"] != self._prev or (closes and record.get("before") != self._last):
            self._found.add(
                number,
                "it does not follow what stands before it: that, or this line, was edited, removed or moved"
                if number > 1
                else "it is not the first line of its log: what stood before it is missing",
            )

    def _unclosed(self) -> None:
        if self._torn:
            self._found.add(self._torn, NO_LINE)

    def finish(self) -> None:
        """Check the end."""
        if not self._ended:
            message = "the log ends within a line: a writer was stopped in it, or the end was cut off"
            self._found.add(self._number, message)
        else:
            self._unclosed()


class _Collected:
    """Goes through text with the lines of several processes in it."""

    def __init__(self, found: AuditCheck) -> None:
        self._found = found
        self._chains: dict[str, Chain] = {}

    def take(self, number: int, whole: bytes) -> tuple[str, ...]:
        """Check what stands in a line of text. The digests of the audit lines in it: mostly one or none."""
        text, end, taken = _text(whole), 0, []
        while (match := RECORD.search(text, end)) is not None:
            told = parsed(text, match.start())
            if told is None or match["chain"] is None:
                self._found.add(
                    number, "it is no whole line of a process's chain: it was edited or cut short"
                )
                break
            record, end = told
            this = digest(text[match.start() : end].encode() + b"\n")
            self._check(number, match["chain"], record, this)
            taken.append(this)
        return tuple(taken)

    def finish(self) -> None:
        """Nothing to do: a chain without its end is none of the problems."""

    def _check(self, number: int, chain_id: str, record: dict[str, Any], this: str) -> None:
        chain = self._chains.get(chain_id)
        if chain is None:
            chain = Chain(chain_id, str(record.get("host")), _number(record.get("pid")))
            self._chains[chain_id] = chain
            self._found.chains.append(chain)
            if record.get("event") != "start":
                self._found.add(number, f"the chain of process {chain.pid} does not begin with its start")
        if chain.ended or record["prev"] != chain.head:
            self._found.add(
                number,
                f"it does not follow the line of process {chain.pid} before it: that, or this line, was "
                "edited, removed or moved",
            )
        chain.ended = record.get("event") == "end"
        self._found.count(chain, record, this)
