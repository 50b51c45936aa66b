"""What gc decides to remove: nothing that a generation names, a write may need, or a reader may have open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from encpipe.errors import StaleDatasetError
from encpipe.lifecycle.gcplan import (
    CLOCK_SLACK,
    Found,
    Mark,
    Plan,
    Rules,
    Survey,
    Write,
    is_given_up,
    leaving,
    list_of_mark,
    mark_path,
)
from encpipe.manifest import RETAINED_GENERATIONS
from encpipe.storage import ObjectInfo, UnfinishedUpload

NOW = datetime(2026, 1, 31, tzinfo=UTC)
NO_GRACE = Rules(grace=timedelta(0))
OWN = ("_encpipe/manifest.json", "_encpipe/lock", f"_encpipe/pending/{'a' * 32}/journal.json")


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def lists(*numbers: int) -> tuple[str, ...]:
    return tuple(f"_encpipe/files-{n}-{n:032x}.sealed" for n in numbers)


def file(n: int, folder: str = "data") -> str:
    return f"{folder}/{n:032x}.parquet"


def found(
    objects: Mapping[str, float],
    named: Iterable[str] = lists(1, 2, 3),
    *,
    writes: Iterable[Write] = (),
    marks: Mapping[str, Mark] | None = None,
    uploads: Iterable[tuple[str, float]] = (),
) -> Found:
    """`objects` and `uploads` are path and age in days."""
    return Found(
        NOW,
        [ObjectInfo(path, 1, ago(days)) for path, days in sorted(objects.items())],
        [UnfinishedUpload(path, ago(days), "id") for path, days in uploads],
        tuple(writes),
        tuple(named),
        marks or {},
    )


def plan(
    seen: Found,
    rules: Rules = Rules(),  # noqa: B008 - it is frozen
    *,
    left: tuple[str, ...] = (),
    named: Iterable[str] = (),
    opened: Mapping[str, Iterable[str] | None] | None = None,
) -> Plan:
    survey = Survey(seen, rules, left)
    files = {path: None if some is None else frozenset(some) for path, some in (opened or {}).items()}
    assert set(survey.unmarked()) == set(files)
    return survey.plan(frozenset(named), files)


def removed(made: Plan) -> list[str]:
    return [info.path for info in made.removed]


def waiting(made: Plan) -> list[str]:
    return [info.path for info in made.waiting]


# generations

FOUR = dict(zip(lists(1, 2, 3, 4), (40.0, 30.0, 20.0, 10.0), strict=True))


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        (Rules(), 0),
        (Rules(keep=1), 3),
        (Rules(keep=2), 2),
        (Rules(keep=4), 0),
        (Rules(keep=9), 0),
        (Rules(older_than=timedelta(days=25)), 1),
        (Rules(older_than=timedelta(days=20)), 2),
        (Rules(older_than=timedelta(0)), 3),
        (Rules(keep=3, older_than=timedelta(days=15)), 1),
        (Rules(keep=1, older_than=timedelta(days=15)), 2),
    ],
)
def test_generations_leave_oldest_first_and_never_the_newest(rules: Rules, gone: int) -> None:
    """A generation counts as old from the time that a newer one took its place."""
    assert leaving(found(FOUR, lists(1, 2, 3, 4)), rules) == lists(1, 2, 3, 4)[:gone]


@pytest.mark.parametrize(("base", "gone"), [(1, 0), (3, 2), (4, 3), (0, 0), (None, 3)])
def test_generations_stay_that_a_write_builds_upon(base: int | None, gone: int) -> None:
    """By them the writer finds out whether its commit happened."""
    writes = [Write("w", ago(1), base), Write("v", ago(1), None)]
    seen = found(FOUR, lists(1, 2, 3, 4), writes=writes)
    assert leaving(seen, Rules(keep=1)) == lists(1, 2, 3, 4)[:gone]


def test_a_generation_whose_successor_was_not_listed_is_young() -> None:
    seen = found({}, lists(1, 2))
    assert leaving(seen, Rules(older_than=timedelta(days=1))) == ()


# files

NAMED = dict.fromkeys(lists(1, 2, 3), 100.0)


def test_what_nothing_names_goes_after_the_grace_time() -> None:
    objects = {**NAMED, file(1): 8.0, file(2): 6.0, file(3): 100.0, file(4, "a=1/b=%2F"): 8.0}
    made = plan(found(objects), named=[file(3)])
    assert removed(made) == [file(4, "a=1/b=%2F"), file(1)]
    assert waiting(made) == [file(2)]
    assert made.foreign == ()


def test_what_was_made_since_a_write_began_stays() -> None:
    began = ago(20)
    objects = {**NAMED, file(1): 19.0, file(2): 20.03, file(3): 20.05}
    made = plan(found(objects, writes=[Write("w", began, 3)]))
    assert timedelta(days=0.03) < CLOCK_SLACK < timedelta(days=0.05)
    assert removed(made) == [file(3)]
    assert removed(plan(found(objects, writes=[Write("w", began, 3)]), NO_GRACE)) == [file(3)]


def test_nothing_else_is_touched() -> None:
    others = ["README.md", "data/x.parquet", f"other/{1:032x}.parquet", "_encpipe/notes", f"{1:032x}.parquet"]
    inner = ["data2/_encpipe/manifest.json", f"data2/data/{1:032x}.parquet", "k=v/_encpipe/x", file(1, "k=v")]
    objects = dict.fromkeys([*others, *inner, *OWN, *lists(1, 2, 3), file(9)], 100.0)
    made = plan(found(objects))
    assert removed(made) == [file(9)]
    assert sorted(made.foreign) == sorted([*others, *inner])


@pytest.mark.parametrize(
    "path",
    [
        "data/.tmp-1",
        "a=1/.tmp-1",
        "_encpipe/.tmp-1",
        "_encpipe/left/.tmp-1",
        f"_encpipe/pending/{'a' * 32}/.tmp-1",
        f"_encpipe/probe-{'a' * 32}",
    ],
)
def test_temp_files_go_but_not_those_of_a_commit_under_way(path: str) -> None:
    """Nothing tells whose they are, so without a grace time they have an hour."""
    assert removed(plan(found({**NAMED, path: 8.0}))) == [path]
    assert removed(plan(found({**NAMED, path: 6.0}))) == []
    assert removed(plan(found({**NAMED, path: 0.05}), NO_GRACE)) == [path]
    assert removed(plan(found({**NAMED, path: 0.03}), NO_GRACE)) == []
    assert removed(plan(found({**NAMED, path: 8.0}, writes=[Write("w", ago(9), 3)]))) == []


def test_uploads_go_like_files() -> None:
    uploads = [(file(1), 8.0), (file(2), 6.0), ("dump.bin", 8.0), (lists(7)[0], 8.0)]
    uploads.append((file(3, "k=v"), 8.0))
    seen = found({**NAMED, "k=v/_encpipe/lock": 1}, uploads=uploads)
    assert [upload.path for upload in plan(seen).uploads] == [file(1), lists(7)[0]]
    seen = found(NAMED, uploads=uploads, writes=[Write("w", ago(9), 3)])
    assert plan(seen).uploads == ()


# lists

LEFT = lists(1)[0]


def test_a_generation_that_leaves_is_marked_and_waits_for_its_readers() -> None:
    objects = {**NAMED, file(1): 100.0, file(2): 100.0, file(3): 100.0}
    made = plan(found(objects), left=lists(1), named=[file(2)], opened={LEFT: [file(1), file(2)]})
    assert made.marks == {LEFT: {file(1)}}
    assert removed(made) == [file(3)]
    assert waiting(made) == [file(1), LEFT]


def test_without_a_grace_time_it_goes_at_once() -> None:
    made = plan(found({**NAMED, file(1): 0.0}), NO_GRACE, left=lists(1))
    assert made.marks == {}
    assert removed(made) == [file(1), LEFT]


@pytest.mark.parametrize("days", [6.9, 7.1])
def test_a_marked_list_goes_with_its_files_and_its_mark(days: float) -> None:
    mark = mark_path(LEFT)
    objects = {**NAMED, mark: days, file(1): 100.0, file(2): 100.0}
    seen = found(objects, lists(2, 3), marks={LEFT: Mark(ago(days), frozenset([file(1)]))})
    gone = [file(1), file(2), LEFT, mark] if days > 7 else [file(2)]
    assert removed(plan(seen)) == gone


def test_the_mark_protects_although_its_list_is_gone() -> None:
    mark = mark_path(LEFT)
    for days, files in ((6.0, frozenset([file(1)])), (6.0, None), (8.0, None)):
        objects = {**dict.fromkeys(lists(2, 3), 100.0), mark: days, file(1): 100.0}
        seen = found(objects, lists(2, 3), marks={LEFT: Mark(ago(days), files)})
        assert removed(plan(seen)) == ([file(1), mark] if days == 8 else [])


def test_of_a_list_that_does_not_open_all_older_files_wait() -> None:
    objects = {**NAMED, LEFT: 50.0, file(1): 100.0, file(2): 51.0, file(3): 49.0}
    made = plan(found(objects, lists(2, 3)), opened={LEFT: None})
    assert made.marks == {LEFT: None}
    assert removed(made) == [file(3)]


def test_the_mark_of_a_list_that_is_back_in_the_manifest_does_not_count() -> None:
    """Someone restored an older manifest: when the generation leaves again, its readers have all the time."""
    mark = mark_path(LEFT)
    marks = {LEFT: Mark(ago(100), frozenset())}
    objects = {**NAMED, mark: 100.0, file(1): 100.0}
    assert removed(plan(found(objects, marks=marks), named=[file(1)])) == [mark]
    made = plan(found(objects, marks=marks), left=lists(1), opened={LEFT: [file(1)]})
    assert removed(made) == []
    assert made.marks == {LEFT: {file(1)}}


def test_a_list_pushed_out_by_commits_long_ago_needs_no_mark() -> None:
    """It was out, at the latest, when a list was made on top of the commit that pushed it out."""
    last = RETAINED_GENERATIONS + 3
    numbers = range(1, last + 1)
    named = lists(*numbers)[2:]
    objects = {path: 100.0 - n for n, path in enumerate(lists(*numbers))}
    opened: dict[str, list[str]] = {lists(2)[0]: []}
    assert removed(plan(found(objects, named), opened=opened)) == [LEFT]
    objects[named[-1]] = 6.0
    assert removed(plan(found(objects, named), opened={**opened, LEFT: []})) == []


def test_the_list_of_a_commit_under_way_is_none_that_is_out() -> None:
    (next_one,) = lists(4)
    objects = {**NAMED, next_one: 8.0}
    writes = [Write("w", ago(9), 3)]
    assert waiting(plan(found(objects, writes=writes))) == [next_one]
    assert removed(plan(found(objects, writes=writes), NO_GRACE)) == []
    assert removed(plan(found(objects), NO_GRACE)) == [next_one]
    made = plan(found(objects, writes=[Write("w", ago(1), 3)]), opened={next_one: [file(1)]})
    assert made.marks == {next_one: {file(1)}}
    lost = f"_encpipe/files-3-{'f' * 32}.sealed"  # another writer was first: it can never be committed
    assert plan(found({**NAMED, lost: 8.0}, writes=writes), opened={lost: []}).marks == {lost: frozenset()}


def test_an_older_manifest_in_the_place_of_a_newer_one_is_refused() -> None:
    Survey(found({**NAMED, lists(4)[0]: 1.0}), Rules(), ()).check_newest()
    with pytest.raises(StaleDatasetError, match=r"manifest is 3, .* generation 5") as refused:
        Survey(found({**NAMED, lists(5)[0]: 1.0}), Rules(), ()).check_newest()
    assert "restore the newest manifest" in refused.value.hint


# stopped writes and names


def test_a_stopped_write_is_given_up_when_it_has_lain_still() -> None:
    folder = f"_encpipe/pending/{'a' * 32}"
    journal = [ObjectInfo(f"{folder}/{name}", 1, ago(8)) for name in ("journal.json", "0.sealed")]
    week = timedelta(days=7)
    assert is_given_up(journal, NOW, week)
    assert not is_given_up([*journal, ObjectInfo(f"{folder}/lock", 1, ago(6))], NOW, week)
    assert is_given_up([ObjectInfo(f"{folder}/journal.json", 1, NOW)], NOW, timedelta(0))
    assert not is_given_up([ObjectInfo(f"{folder}/lock", 1, ago(0.03))], NOW, timedelta(0))
    assert is_given_up([ObjectInfo(f"{folder}/lock", 1, ago(0.05))], NOW, timedelta(0))


def test_a_mark_is_named_for_its_list() -> None:
    assert list_of_mark(mark_path(LEFT)) == LEFT
    assert list_of_mark(LEFT) is None
    assert list_of_mark("_encpipe/left/1-x.json") is None
