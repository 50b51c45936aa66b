"""What gc may remove, decided from what it found. No I/O and no clock here.

Rules enforced:

- what a generation in the manifest names stays;
- what was made since a write began that is under way, or was stopped and may go on, stays: it may be this
  write's. So no key of the write is needed to know its files;
- everything stays for the grace time after it was made, by the storage's clock;
- generations leave the manifest oldest first, and none that such a write builds upon or that came after it;
- list and files of a generation stay for the grace time after it left, for readers that have it open. A mark
  (`_encpipe/left/<generation>-<list id>.json`) tells since when it is out, and which files only it named;
- only what is called as encpipe calls its objects goes, and nothing that lies in another dataset.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from typing import Final

from encpipe.errors import StaleDatasetError
from encpipe.manifest import RETAINED_GENERATIONS
from encpipe.storage import ObjectInfo, UnfinishedUpload

LONGEST: Final = timedelta(days=365_000)
"""The longest time that can be asked for: no clock is so early that there is none before it."""
GRACE: Final = timedelta(days=7)
"""How long everything stays by default."""
CLOCK_SLACK: Final = timedelta(hours=1)
"""How far the clocks may be apart that date what one write made: those of servers, and the writer's."""
MIN_TEMP_AGE: Final = timedelta(hours=1)
"""Temp files of a commit live for seconds, and no journal protects them."""
MARKS: Final = "_encpipe/left/"

_ID: Final = "[0-9a-f]{32}"
_NUMBER: Final = "0|[1-9][0-9]{0,15}"
_FOLDERS: Final = "(?:data/|(?:[^/=]+=[^/]*/)+)"
_DATA: Final = re.compile(rf"{_FOLDERS}{_ID}\.parquet")
_LIST: Final = re.compile(rf"_encpipe/files-({_NUMBER})-({_ID})\.sealed")
_MARK: Final = re.compile(rf"{MARKS}({_NUMBER})-({_ID})\.json")
_TEMP: Final = re.compile(rf"(?:{_FOLDERS}|_encpipe/(?:[^/]+/)*)\.tmp-[^/]*|_encpipe/probe-{_ID}")
_OTHERS_OWN: Final = re.compile(rf"_encpipe/(?:manifest\.json|lock|pending/{_ID}/.*)")
_NESTED: Final = re.compile(r"(.+?/)_encpipe/.*", re.DOTALL)

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Rules:
    """What the caller asks for. A generation leaves when it is none of the `keep` newest and a newer one took
    its place `older_than` ago; without either, none does. A `grace` of 0 waits for nothing."""

    keep: int | None = None
    older_than: timedelta | None = None
    grace: timedelta = GRACE


@dataclass(frozen=True)
class Write:
    """A write that is under way, or stopped and may go on. `began` is the earliest time its journal knows of;
    `base_generation` is the one it builds upon: 0 when that cannot be told, None for a first write."""

    writer_id: str
    began: datetime
    base_generation: int | None


@dataclass(frozen=True)
class Mark:
    """Since when a list is out of the manifest, and which files only it named; None: not known."""

    since: datetime
    files: frozenset[str] | None


@dataclass(frozen=True)
class Found:
    """Everything that is there. `objects` were listed before `writes` were looked for, and these before the
    manifest was read: so each file among them is named, or of one of the writes, or nobody's.

    `lists` are the paths of the file lists that the manifest names, oldest first; `marks` are by list path.
    """

    now: datetime
    objects: Sequence[ObjectInfo]
    uploads: Sequence[UnfinishedUpload]
    writes: Sequence[Write]
    lists: Sequence[str]
    marks: Mapping[str, Mark]


@dataclass(frozen=True)
class Plan:
    """What gc does: it makes `marks` (list path -> files that only it named), then removes `uploads` and
    `files`, then `lists`, then `old_marks`. `waiting` may go later; `foreign` is not ours."""

    marks: Mapping[str, frozenset[str] | None]
    uploads: tuple[UnfinishedUpload, ...]
    files: tuple[ObjectInfo, ...]
    lists: tuple[ObjectInfo, ...]
    old_marks: tuple[ObjectInfo, ...]
    waiting: tuple[ObjectInfo, ...]
    foreign: tuple[str, ...]

    @property
    def removed(self) -> tuple[ObjectInfo, ...]:
        """All objects that go."""
        return (*self.files, *self.lists, *self.old_marks)


def is_data(path: str) -> bool:
    """Whether an object is called as data files are."""
    return _DATA.fullmatch(path) is not None


def list_parts(path: str) -> tuple[int, str] | None:
    """Generation and id of a file list; None for any other object."""
    match = _LIST.fullmatch(path)
    return None if match is None else (int(match[1]), match[2])


def mark_path(list_path: str) -> str:
    """Where the mark of a list lies."""
    return _LIST.sub(rf"{MARKS}\1-\2.json", list_path)


def list_of_mark(path: str) -> str | None:
    """The path of the list that a mark is of; None for any other object."""
    match = _MARK.fullmatch(path)
    return None if match is None else f"_encpipe/files-{match[1]}-{match[2]}.sealed"


def is_given_up(journal: Iterable[ObjectInfo], now: datetime, grace: timedelta) -> bool:
    """Whether a write whose journal has these objects was stopped, and has lain still for the grace time: if
    nobody holds it. One that has no journal yet, or no more, is just beginning or ending."""
    infos = tuple(journal)
    has_begun = any(info.path.endswith("/journal.json") for info in infos)
    wait = grace if has_begun else max(grace, MIN_TEMP_AGE)
    return not wait or all(info.modified <= now - wait for info in infos)


def leaving(found: Found, rules: Rules) -> tuple[str, ...]:
    """The lists of the generations that leave the manifest now, oldest first; never the newest."""
    if rules.keep is None and rules.older_than is None:
        return ()
    made = {info.path: info.modified for info in found.objects}
    bases = [write.base_generation for write in found.writes if write.base_generation is not None]
    needed = min(bases, default=None)
    gone: list[str] = []
    for older, newer in pairwise(found.lists):
        kept = rules.keep is not None and len(found.lists) - len(gone) <= rules.keep
        replaced = made.get(newer, found.now)
        young = rules.older_than is not None and replaced > found.now - rules.older_than
        if kept or young or (needed is not None and _number(older) >= needed):
            break
        gone.append(older)
    return tuple(gone)


class Survey:
    """What was found, seen with the lists `left` out of the manifest."""

    def __init__(self, found: Found, rules: Rules, left: Sequence[str]) -> None:
        self._found, self._rules = found, rules
        self._left, self._staying = frozenset(left), frozenset(found.lists) - frozenset(left)
        self._begun = min((write.began - CLOCK_SLACK for write in found.writes), default=_NEVER)
        nested = {match[1] for info in found.objects if (match := _NESTED.fullmatch(info.path))}
        self._nested = tuple(sorted(nested))
        self._ours = [info for info in found.objects if not info.path.startswith(self._nested)]
        self._lists = {info.path: info for info in self._ours if _LIST.fullmatch(info.path)}
        by_number = sorted((_number(path), info.modified) for path, info in self._lists.items())
        self._numbers = [number for number, _ in by_number]
        self._first_made = list(accumulate((made for _, made in reversed(by_number)), min))[::-1]
        self._marks = {path: mark for path, mark in found.marks.items() if path not in set(found.lists)}

    def check_newest(self) -> None:
        """Raise `StaleDatasetError` when lists show that there was a newer manifest: what only that one names
        would be removed."""
        newest = _number(self._found.lists[-1])
        for path in self._lists:
            if _number(path) > newest + 1:
                raise StaleDatasetError(
                    f"the newest generation of the manifest is {newest}, and there is a list of generation "
                    f"{_number(path)}: an older manifest stands in the place of a newer one",
                    hint="restore the newest manifest; if the older one is to stay, delete the newer lists",
                )

    def unmarked(self) -> tuple[str, ...]:
        """The lists that are to be marked: somebody has to look which files they name."""
        return tuple(
            path
            for path, info in self._lists.items()
            if self._is_out(info) and path not in self._marks and not self._is_over(info)
        )

    def plan(self, named: frozenset[str], opened: Mapping[str, frozenset[str] | None]) -> Plan:
        """What is to be done. `named` are the files of the generations that stay; `opened` those of the
        `unmarked` lists, None for one that does not open: then every file that it may name waits."""
        marks = {path: None if files is None else files - named for path, files in opened.items()}
        held, unknown = self._held(marks)
        files: list[ObjectInfo] = []
        waiting: list[ObjectInfo] = []
        for info in self._ours:
            if _DATA.fullmatch(info.path) and info.path not in named:
                stays = info.path in held or info.modified <= unknown
                (files if self._is_past(info.modified) and not stays else waiting).append(info)
            elif _TEMP.fullmatch(info.path):
                old = info.modified <= self._found.now - MIN_TEMP_AGE
                (files if self._is_past(info.modified) and old else waiting).append(info)
        out = [info for path, info in self._lists.items() if path not in self._staying]
        lists = [info for info in out if self._is_out(info) and self._is_over(info)]
        waiting += [info for info in out if info not in lists]
        old_marks = [info for info in self._ours if self._is_old_mark(info.path)]
        return Plan(
            marks=marks,
            uploads=tuple(filter(self._is_stale, self._found.uploads)),
            files=tuple(files),
            lists=tuple(lists),
            old_marks=tuple(old_marks),
            waiting=tuple(waiting),
            foreign=tuple(info.path for info in self._found.objects if self._is_foreign(info.path)),
        )

    def _held(self, marks: Mapping[str, frozenset[str] | None]) -> tuple[set[str], datetime]:
        """The files that wait for readers of a generation that left; and a time: all made until then do."""
        held: set[str] = set()
        unknown = datetime.min.replace(tzinfo=UTC)
        young = {
            path: mark.files for path, mark in self._marks.items() if not self._is_old_mark(mark_path(path))
        }
        for path, files in {**young, **marks}.items():
            if files is not None:
                held |= files
            elif path in self._lists:
                unknown = max(unknown, self._lists[path].modified + CLOCK_SLACK)
            else:
                unknown = _NEVER
        return held, unknown

    def _is_past(self, modified: datetime) -> bool:
        """Whether the grace time is over, and no write has begun since that may need it."""
        return self._has_waited(modified) and modified < self._begun

    def _has_waited(self, since: datetime) -> bool:
        return not self._rules.grace or since <= self._found.now - self._rules.grace

    def _is_out(self, info: ObjectInfo) -> bool:
        """Whether a list is out of the manifest for good: not one whose write may commit it any moment."""
        next_one = _number(info.path) > _number(self._found.lists[-1])
        return info.path not in self._staying and not (next_one and info.modified >= self._begun)

    def _is_over(self, info: ObjectInfo) -> bool:
        """Whether a list has been out of the manifest for the grace time."""
        if not self._rules.grace:
            return True
        times = [self._marks[info.path].since] if info.path in self._marks else []
        if info.path not in self._left:
            times += self._left_by(_number(info.path))
        return any(map(self._has_waited, times))

    def _left_by(self, number: int) -> list[datetime]:
        """When a generation was out at the latest: a list of generation n is made on top of n - 1, and a
        commit of that one has let go of all before n - 1 - `RETAINED_GENERATIONS`."""
        first = bisect_left(self._numbers, number + RETAINED_GENERATIONS + 2)
        return self._first_made[first : first + 1]

    def _is_old_mark(self, path: str) -> bool:
        """Whether a mark has served: its list goes or is gone, or is back in the manifest."""
        listed = list_of_mark(path)
        if listed is None or listed in self._left:
            return False
        if listed in self._lists:
            return listed in self._staying or self._is_over(self._lists[listed])
        return listed not in self._marks or self._has_waited(self._marks[listed].since)

    def _is_stale(self, upload: UnfinishedUpload) -> bool:
        ours = _DATA.fullmatch(upload.path) or _LIST.fullmatch(upload.path)
        return bool(ours) and not upload.path.startswith(self._nested) and self._is_past(upload.started)

    def _is_foreign(self, path: str) -> bool:
        ours = any(kind.fullmatch(path) for kind in (_DATA, _LIST, _MARK, _TEMP, _OTHERS_OWN))
        return path.startswith(self._nested) or not ours


def _number(list_path: str) -> int:
    """The generation of a file list."""
    parts = list_parts(list_path)
    assert parts is not None
    return parts[0]
