"""gc beside writers, readers and other gcs, and killed at any step: the dataset stays whole, garbage goes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import steps
from gcscene import (
    DAY,
    MORE,
    NEW,
    NOW,
    OLD,
    age,
    assert_clean,
    collect,
    local,
    new_rows,
    stopped_write,
)
from scene import Scene, ended, forked, ids, people


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return local(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return new_rows(tmp_path)


def at_step(number: int, action: Callable[[], object]) -> steps.Log:
    """Calls `action` before step `number`; its own steps are not counted."""
    log, inside = steps.Log(), False

    def before(n: int, step: str) -> None:
        nonlocal inside
        in_check = step.startswith("size") and log.steps[n - 1].startswith("commit")  # holds the lock
        if not inside and n == number and not in_check:
            inside = True
            action()

    log.before = before
    return log


def interrupted(number: int, action: Callable[[], object], run: Callable[[], object]) -> str:
    """`run` with `action` before step `number`: which step that was, or "" when `run` has not so many."""
    log = at_step(number, action)
    with pytest.MonkeyPatch.context() as patched:
        steps.install(patched, log)
        run()
    return log.steps[number] if number < len(log.steps) else ""


WRITES: dict[str, tuple[Callable[[Scene, Path], object], list[int]]] = {
    "append": (lambda scene, source: scene.append(source, workers=1), OLD + NEW + MORE),
    "overwrite": (lambda scene, source: scene.write(source, workers=1, overwrite=True), NEW + MORE),
}


def old_and_gc(scene: Scene) -> None:
    """As in a week-long write: all there is is old."""
    age(scene, 30)
    collect(scene, keep=1, grace=NOW)


@pytest.mark.parametrize("kind", WRITES)
def test_a_gc_at_any_step_of_a_write_does_it_no_harm(scene: Scene, source: Path, kind: str) -> None:
    write, after = WRITES[kind]
    number, step = -1, "start"
    while step:
        number += 1
        here = scene.at(f"{scene.url}-{number}")
        here.write(people(50))
        here.write(people(0), overwrite=True)

        step = interrupted(number, partial(old_and_gc, here), partial(write, here, source))
        assert ids(here.table()) == after, step
        here.check_whole()
        collect(here, keep=1, grace=NOW)
        assert_clean(here, after, step)
    assert number > 15


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_at_any_step_of_a_gc_does_it_no_harm(scene: Scene, source: Path, kind: str) -> None:
    write, after = WRITES[kind]
    number, step = -1, "start"
    while step:
        number += 1
        here = scene.at(f"{scene.url}-{number}")
        here.write(people(50))
        here.write(people(0), overwrite=True)
        age(here, 30)
        step = interrupted(
            number,
            partial(write, here, source),
            partial(collect, here, keep=1, grace=NOW),
        )
        if step:
            assert ids(here.table()) == after, step
            here.check_whole()
            collect(here, keep=1, grace=NOW)
            assert_clean(here, after, step)
    assert number > 5


def test_a_write_that_is_stopped_at_any_step_of_a_gc_can_go_on(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, step = -1, "start"
    while step:
        number += 1
        here = scene.at(f"{scene.url}-{number}")
        here.write(people(50))
        here.write(people(0), overwrite=True)
        age(here, 30)
        write = partial(stopped_write, here, monkeypatch, source, "commit")
        step = interrupted(number, write, partial(collect, here, keep=1, grace=NOW))
        here.append(source)
        assert_rows(here, OLD + NEW + MORE)
    assert number > 5


def assert_rows(scene: Scene, rows: list[int]) -> None:
    assert ids(scene.table()) == rows
    scene.check_whole()


def reads(scene: Scene, rows: list[int]) -> None:
    assert ids(scene.table()) == rows


def test_readers_at_any_step_of_a_gc_read_on(scene: Scene) -> None:
    """One that opened a generation before it left, and one that opens the newest at this very step."""
    number, step = -1, "start"
    while step:
        number += 1
        here = scene.at(f"{scene.url}-{number}")
        here.write(people(0))
        here.write(people(10), overwrite=True)
        age(here, 30)
        with here.open(generation=1) as reader:
            step = interrupted(number, partial(reads, here, NEW), partial(collect, here, keep=1))
            assert ids(reader.to_table()) == OLD, step
    assert number > 5


def test_two_gcs_at_once(scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, step = -1, "start"
    while step:
        number += 1
        here = scene.at(f"{scene.url}-{number}")
        here.write(people(50))
        here.write(people(0), overwrite=True)
        stopped_write(here, monkeypatch, source, "publish", nth=2)
        age(here, 30)
        one_gc = partial(collect, here, keep=1, grace=NOW)
        step = interrupted(number, one_gc, one_gc)
        assert_clean(here, OLD, step)
    assert number > 10


@pytest.mark.parametrize("grace", [NOW, 7 * DAY])
def test_killed_at_any_step_the_next_gc_does_the_rest(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, grace: timedelta
) -> None:
    number, code = -1, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        here = scene.at(f"{scene.url}-{number}")
        here.write(people(50))
        here.write(people(0), overwrite=True)
        stopped_write(here, monkeypatch, source, "publish", nth=2)
        age(here, 30)
        with here.open(generation=1) as reader:
            log = steps.Log()
            log.before = steps.die_before(number)
            with monkeypatch.context() as patched:
                steps.install(patched, log)
                code = ended(forked(partial(collect, here, keep=1, grace=grace)))
            assert ids(here.table()) == OLD, number
            assert here.verify().problems == (), number
            collect(here, keep=1, grace=grace)
            if grace:
                assert ids(reader.to_table()) == list(range(50, 56)), number
        age(here, 8)
        collect(here, keep=1, grace=grace)
        assert_clean(here, OLD, str(number))
    assert code == 0
    assert number > 10
