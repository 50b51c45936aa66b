"""Two writers at once: one wins, the other says so and leaves nothing; appends all go in, each row once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import steps
from scene import Scene, ended, forked, ids, on_s3, people, save

from encpipe import ConflictError, EncpipeError, Policy
from encpipe import journal as journals
from encpipe.writer import WriteReport

OLD = list(range(6))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    if request.param == "local":
        return Scene(str(tmp_path / "dataset"))
    bucket = request.getfixturevalue("bucket")
    return on_s3(request.getfixturevalue("seaweed"), f"s3://{bucket}/folder")


def meet(monkeypatch: pytest.MonkeyPatch, barrier: Barrier, at: str) -> None:
    """In every process from now on: wait for the others before the first step that starts with `at`."""
    log = steps.install(monkeypatch)
    waited = []

    def before(n: int, step: str) -> None:
        if step.startswith(at) and not waited:
            waited.append(n)
            barrier.wait(60)

    log.before = before


def together(monkeypatch: pytest.MonkeyPatch, at: str, *writers: Callable[[], object]) -> list[int]:
    """Run the writers in a process each; all are at the same step once. 0 for success, 3 for a conflict."""

    def coded(writer: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            try:
                writer()
            except ConflictError:
                os._exit(3)

        return run

    barrier = multiprocessing.get_context("fork").Barrier(len(writers))
    with monkeypatch.context() as patched:
        meet(patched, barrier, at)
        pids = [forked(coded(writer)) for writer in writers]
        return [ended(pid) for pid in pids]


@pytest.mark.parametrize("at", ["create _encpipe/pending", "commit"])
def test_of_two_that_create_one_wins_and_nothing_of_the_other_is_left(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    one, two = save(tmp_path / "one", people(0), people(6)), save(tmp_path / "two", people(100))
    codes = together(monkeypatch, at, lambda: scene.write(one), lambda: scene.write(two))
    assert sorted(codes) == [0, 3]
    assert ids(scene.table()) == (list(range(12)) if codes[0] == 0 else list(range(100, 106)))
    scene.check_whole()
    assert scene.verify().unlisted == ()


def test_appends_at_once_all_go_in(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.write(people(0))
    sources = [save(tmp_path / str(n), people(100 * n), people(100 * n + 6)) for n in range(1, 4)]
    codes = together(
        monkeypatch, "commit", *(lambda source=source: scene.append(source, workers=1) for source in sources)
    )
    assert codes == [0, 0, 0]
    expected = [*OLD, *(100 * n + i for n in range(1, 4) for i in range(12))]
    assert sorted(ids(scene.table())) == expected
    assert scene.inspect().generation == 4
    scene.check_whole()
    assert scene.verify().unlisted == ()


def test_appends_of_threads_in_memory_all_go_in() -> None:
    scene = Scene("memory://threads/dataset")
    scene.write(people(0), overwrite=True)
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(lambda n: scene.append(people(100 * n)), range(1, 9)))
    assert sorted(report.generation for report in reports) == list(range(2, 10))
    assert sorted(ids(scene.table())) == [*OLD, *(100 * n + i for n in range(1, 9) for i in range(6))]
    scene.check_whole()
    assert scene.verify().unlisted == ()


def while_committing(monkeypatch: pytest.MonkeyPatch, scene: Scene, other: Callable[[], object]) -> None:
    """Just before the next commit of this process, `other` happens."""
    log = steps.install(monkeypatch)
    busy = threading.Event()

    def before(n: int, step: str) -> None:
        if step.startswith("commit") and not busy.is_set():
            busy.set()
            other()

    log.before = before


def test_an_append_goes_on_top_of_an_overwrite(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.write(people(0))
    while_committing(monkeypatch, scene, lambda: scene.write(people(50), overwrite=True))
    assert scene.append(people(10)).generation == 3
    assert ids(scene.table()) == [*range(50, 56), *range(10, 16)]
    scene.check_whole()


@pytest.mark.parametrize(
    "other", [{"policy": Policy(columns={"pii": ("id", "name")})}, {"policy": Policy(footer_key="pii")}]
)
def test_an_append_does_not_go_on_top_of_another_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Policy]
) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.write(people(0))
    while_committing(monkeypatch, scene, lambda: scene.write(people(50), overwrite=True, **other))
    with pytest.raises(ConflictError, match="policy"):
        scene.append(people(10))
    assert ids(scene.table()) == list(range(50, 56))
    scene.check_whole()
    assert scene.verify().unlisted == ()


def test_an_append_that_looked_at_the_columns_before_they_changed_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    log = steps.install(monkeypatch)
    looks: list[int] = []

    def before(n: int, step: str) -> None:
        if step == "read _encpipe/manifest.json":
            looks.append(n)
            if len(looks) == 2:  # the first one told the columns, this one tells what to commit to
                scene.write(people(50).select(["name", "id"]), overwrite=True)

    log.before = before
    with pytest.raises(ConflictError, match="schema"):
        scene.append(people(10))
    assert ids(scene.table()) == list(range(50, 56))
    scene.check_whole()
    assert scene.verify().unlisted == ()


def test_an_overwrite_does_not_undo_an_append(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.write(people(0))
    while_committing(monkeypatch, scene, lambda: scene.append(people(10)))
    with pytest.raises(ConflictError) as refused:
        scene.write(people(50), overwrite=True)
    assert refused.value.code == "conflict"
    assert ids(scene.table()) == [*OLD, *range(10, 16)]
    scene.check_whole()
    assert scene.verify().unlisted == ()


@pytest.mark.parametrize("stopped", [False, True], ids=["ended", "stopped before its journal was removed"])
@pytest.mark.parametrize("kind", ["write", "overwrite", "append"])
def test_what_another_run_of_the_same_write_committed_counts_once_and_stays(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stopped: bool
) -> None:
    """This run slept so long that its lease ran out, and another one took its journal over."""
    source = save(tmp_path / "new", people(10), people(16))
    if kind != "write":
        scene.write(people(0))

    def run() -> WriteReport:
        return scene.append(source) if kind == "append" else scene.write(source, overwrite=kind != "write")

    def other_run() -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            if stopped:
                patched.setattr(journals, "remove", stop)
            run()

    monkeypatch.setattr(steps.Stepping, "hold", lambda *_: contextlib.nullcontext())
    while_committing(monkeypatch, scene, other_run)
    report = run()
    assert (report.generation, report.rows, report.files) == (1 if kind == "write" else 2, 12, 2)
    assert ids(scene.table()) == [*(OLD if kind == "append" else []), *range(10, 22)]
    scene.check_whole()
    assert scene.verify().unlisted == ()


@pytest.mark.parametrize("kind", ["write", "append"])
def test_a_writer_whose_journal_was_taken_away_does_not_commit(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "append":
        scene.write(people(0))

    def take_away() -> None:
        storage = scene.storage()
        for writer in journals.writers(storage):
            journals.remove(storage, writer)
        storage.close()

    while_committing(monkeypatch, scene, take_away)
    with pytest.raises(ConflictError, match="journal"):
        scene.append(people(10)) if kind == "append" else scene.write(people(10))
    left = [path for path in scene.objects() if path.startswith("_encpipe/")]
    if kind == "append":
        assert ids(scene.table()) == OLD
        assert len(left) == 2
    else:
        assert left == []
        with pytest.raises(EncpipeError, match="no encpipe dataset"):
            scene.open()
