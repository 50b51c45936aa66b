"""One line of an audit log: JSON, chained to the line before it. Pure but for the name of this process.

    {"prev":"<SHA-256 of the line before>",["chain":"<id>",]"v":1,"time":...,"event":...,<who>,<facts>}

The SHA-256 is over the line's bytes with its newline, as `tail -n 1 FILE | sha256sum` has it; the first line
of a chain names 64 zeros.

No fact can hold key bytes or data: texts, numbers and wrapped keys (of which URI and version are shown) are
all that is taken. Error messages are not among them, since they may name columns; codes are.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal, TypedDict

from encpipe.keys import WrappedKey

NOTHING: Final = "0" * 64
"""What the first line of a chain names as the line before it."""
VERSION: Final = 1
MAX_LINE_BYTES: Final = 1 << 20
"""No line is longer; what is, is no audit log."""
MAX_TEXT: Final = 1000
"""Characters of a text that are kept; the rest is cut off, and "..." stands for it."""
MAX_ITEMS: Final = 50
"""Key names or master keys that are listed in one line; then it says how many more there are."""

Event = Literal[
    "open",
    "unwrap",
    "encrypt",
    "decrypt",
    "rewrap",
    "rekey",
    "grant",
    "revoke",
    "sign",
    "gc",
    "shred",
    "serve",
    "served",
    "plain-http",
    "refusal",
    "start",
    "end",
    "recovered",
]
"""What a line tells of. `start`, `end` and `recovered` are about the log itself."""

RECORD: Final = re.compile(r'\{"prev":"(?P<prev>[0-9a-f]{64})",(?:"chain":"(?P<chain>[0-9a-f]{32})",)?"v":')
"""How every line begins."""
_BEGIN: Final = re.compile(RECORD.pattern.encode())
_LISTS: Final = (list, tuple)
_JSON: Final = json.JSONDecoder()
_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Facts(TypedDict, total=False):
    """What a line may tell. `of` and `code` belong to a refusal: of which event, and why."""

    of: Event
    code: str
    how: str
    dataset: str
    dataset_id: str
    identity: str
    generation: int
    revision: int
    key_names: Sequence[str]
    kek_id: str
    master_keys: Sequence[WrappedKey]
    target: str
    counts: Mapping[str, int]
    before: str
    lost: int


def body(event: Event, facts: Facts) -> str:
    """The line without `prev` and `chain`: what happened, when, and who did it where."""
    told = {name: _shown(name, value) for name, value in facts.items()}
    rest = f",{_encode(told)[1:-1]}" if told else ""
    return f'"v":{VERSION},"time":"{_now()}","event":"{event}",{_who(os.getpid())}{rest}'


def line(prev: str, told: str, *, chain: str = "") -> bytes:
    """The bytes of a line, with its newline. `told` is what `body` gives."""
    named = f'"chain":"{chain}",' if chain else ""
    return f'{{"prev":"{prev}",{named}{told}}}\n'.encode()


def digest(whole: bytes) -> str:
    """What the next line names as `prev`. `whole` ends with the newline."""
    return hashlib.sha256(whole).hexdigest()


def looks_whole(whole: bytes) -> bool:
    """Whether these bytes begin and end as a line does. Quick; `is_record` is sure."""
    return whole.endswith(b"}\n") and _BEGIN.match(whole) is not None


def is_record(piece: bytes) -> bool:
    """Whether these bytes are a line, but for its newline."""
    text = piece.decode("utf-8", "replace")
    found = parsed(text, 0) if RECORD.match(text) else None
    return found is not None and found[1] == len(text)


def parsed(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The line that begins at `start`, and where it ends; None where there is none."""
    try:
        record, end = _JSON.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return (record, end) if record.get("v") == VERSION else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@lru_cache(maxsize=2)
def _who(pid: int) -> str:
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # as in many containers
        user = str(uid)
    return _encode({"user": user, "uid": uid, "host": socket.gethostname(), "pid": pid})[1:-1]


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "..."
    if isinstance(value, int):
        return value
    if isinstance(value, WrappedKey):
        return {"uri": _shown(name, value.master_key), "version": _shown(name, value.version)}
    if isinstance(value, _LISTS):
        more = [f"and {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else []
        return [_shown(name, item) for item in value[:MAX_ITEMS]] + more
    if isinstance(value, Mapping):
        return {_shown(name, key): int(count) for key, count in value.items()}
    raise TypeError(f"{name} of an audit line is a {type(value).__name__}")
