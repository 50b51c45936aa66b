"""gc beside writers, readers and other gcs, and stopped anywhere: the dataset stays whole, garbage goes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import KEYS, PII, Scene, ended, forked, ids, people, save

import encpipe
from encpipe import (
    Config,
    ConfigError,
    IntegrityError,
    KmsUnavailableError,
    ManifestError,
    StaleDatasetError,
    StorageError,
    UntrustedKeyError,
    strictjson,
)
from encpipe.audit import Audit, Event
from encpipe.config import AuditConfig, TrustConfig
from encpipe.lifecycle import gcplan
from encpipe.lifecycle.gc import Collected, gc
from encpipe.testing import InMemoryKms

OLD, NEW, MORE = list(range(6)), list(range(10, 16)), list(range(20, 26))
DAY = timedelta(days=1)
NOW = timedelta(0)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


def collect(scene: Scene, **more: Any) -> Collected:
    return gc(scene.url, **{**scene.access, **more})


def age(scene: Scene, days: float, what: str = "") -> None:
    """Let everything that is there (with `what` in its path) be older by `days`."""
    for path in scene.folder.rglob("*"):
        if path.is_file() and what in str(path):
            then = path.stat().st_mtime - days * 86_400
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (then, then))


def hashes(scene: Scene) -> dict[str, str]:
    return {path: hashlib.sha256((scene.folder / path).read_bytes()).hexdigest() for path in scene.objects()}


def assert_clean(scene: Scene, rows: list[int], when: str = "") -> None:
    """The rows are there, every byte is as committed, and nothing is there that no generation names."""
    assert ids(scene.table()) == rows, when
    found = scene.verify()
    assert (found.problems, found.unlisted, found.pending) == ((), (), ()), when


# generations


def test_a_generation_leaves_and_its_files_follow_after_the_grace_time(scene: Scene) -> None:
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    age(scene, 30)
    with scene.open(generation=1) as reader, scene.open() as newest:
        before, core = hashes(scene), newest.core_digest
        found = collect(scene, keep=1)
        assert (found.left, found.kept, found.generation) == ((1,), (2,), 2)
        assert (found.removed, found.waiting) == ((), 2)
        assert found.revision == scene.inspect().revision == 3
        with pytest.raises(StaleDatasetError, match="generation 1 is not in the manifest"):
            scene.open(generation=1)
        assert ids(reader.to_table()) == OLD
        after = hashes(scene)
        changed = {path for path in before if after[path] != before[path]}
        assert changed == {"_encpipe/manifest.json"}
        assert scene.open(expect_core=core, min_generation=2).core_digest == core
        assert collect(scene, keep=1).removed == ()
        assert len(scene.verify().unlisted) == 2, "the file and the list, not the mark"
        assert ids(reader.to_table()) == OLD
    age(scene, 8, "left")
    gone = collect(scene)
    assert len(gone.removed) == 3, "a file, a list and a mark"
    assert gone.revision == 4
    assert_clean(scene, NEW)
    assert collect(scene).revision == 4, "nothing to do, nothing written"


def test_a_reader_that_comes_too_late_is_told_so(scene: Scene) -> None:
    """Not that the dataset is damaged."""
    scene.write(people(0))
    with scene.open() as reader:
        scene.write(people(10), overwrite=True)
        collect(scene, keep=1, grace=NOW)
        with pytest.raises(StaleDatasetError, match=r"generation 1 of .* is gone: gc removed it") as refused:
            reader.to_table()
        assert "open the dataset again" in refused.value.hint
        scene.write(people(20), overwrite=True)
        (path,) = (entry.path for entry in scene.open().files)
        (scene.folder / path).unlink()
        with pytest.raises(IntegrityError) as missing:
            scene.table()
        assert missing.value.code == "file-missing"


def test_files_that_a_later_generation_keeps_stay(scene: Scene) -> None:
    scene.write(people(0))
    scene.append(people(10))
    scene.append(people(20))
    found = collect(scene, keep=2, grace=NOW)
    assert found.left == (1,)
    assert [path for path in found.removed if path.endswith(".parquet")] == []
    assert ids(scene.table(generation=2)) == OLD + NEW
    assert_clean(scene, OLD + NEW + MORE)


def test_without_being_asked_no_readable_generation_goes(scene: Scene) -> None:
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    age(scene, 400)
    found = collect(scene)
    assert (found.left, found.removed, found.kept) == ((), (), (1, 2))
    assert ids(scene.table(generation=1)) == OLD
    assert collect(scene, older_than=500 * DAY).left == ()
    assert collect(scene, older_than=300 * DAY).left == (1,)


def test_generations_that_commits_pushed_out_go_after_the_grace_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    reader = scene.open()
    monkeypatch.setattr("encpipe.manifest.RETAINED_GENERATIONS", 1)
    monkeypatch.setattr(gcplan, "RETAINED_GENERATIONS", 1)
    scene.write(people(10), overwrite=True)
    age(scene, 30)
    scene.write(people(20), overwrite=True)
    assert scene.inspect(use_keys=False).retained_generations == (2,)
    found = collect(scene)
    assert (found.removed, found.waiting) == ((), 2)
    assert ids(reader.to_table()) == OLD
    reader.close()
    age(scene, 8)
    assert collect(scene).waiting == 0
    assert_clean(scene, MORE)


def test_keks_go_with_the_last_generation_that_uses_them(scene: Scene) -> None:
    scene.write(people(0))
    scene.kms.create("second")
    both = replace(scene, config=Config(keys={**KEYS, "footer": ("memory:second", "memory:main")}))
    both.write(people(10), overwrite=True, policy=PII)
    old = [kek.id for kek in both.inspect().keks if kek.state == "retired"]
    assert len(old) == 1
    assert collect(both).keks == ()
    found = collect(both, keep=1)
    assert found.keks == tuple(old)
    assert [kek.wrappings for kek in both.inspect().keks if kek.id in old] == [()]
    both.append(people(20))
    age(scene, 8)
    collect(both)
    assert_clean(both, NEW + MORE)


# stopped writes


def stopped_write(scene: Scene, monkeypatch: pytest.MonkeyPatch, source: Path, at: str, nth: int = 1) -> None:
    """An append that was killed before the n-th step that begins with `at`."""
    log = steps.Log()

    def before(n: int, step: str) -> None:
        if step.startswith(at) and sum(s.startswith(at) for s in log.steps[: n + 1]) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(lambda: scene.append(source, workers=1))) == -signal.SIGKILL


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "new", people(10), people(20))


@pytest.mark.parametrize("at", ["create_file", "publish", "create _encpipe/files", "commit"])
def test_a_stopped_write_can_go_on_for_the_grace_time(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    scene.write(people(0))
    nth = 2 if at in ("create_file", "publish") else 1
    stopped_write(scene, monkeypatch, source, at, nth)
    age(scene, 20)
    age(scene, -14, ".sealed")  # the last file was recorded 6 days ago
    found = collect(scene, keep=1)
    assert (found.writes, len(found.writes_kept)) == ((), 1)
    report = scene.append(source, workers=1)
    assert report.resumed_files == (1 if nth == 2 else 2)
    for _ in range(2):  # the list that it did not get to commit may once have been read, for all gc knows
        age(scene, 90)
        collect(scene)
    assert_clean(scene, OLD + NEW + MORE)


def test_a_stopped_write_is_thrown_away_with_its_files(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    stopped_write(scene, monkeypatch, source, "publish", nth=2)
    left = [path for path in scene.objects() if path not in ("_encpipe/manifest.json",)]
    age(scene, 8)
    found = collect(scene)
    assert len(found.writes) == 1
    assert found.writes_kept == ()
    assert len(found.removed) == len(left) - 2 == 4, "journal, record, file and temp file"
    assert_clean(scene, OLD)
    assert scene.append(source).resumed_files == 0
    assert_clean(scene, OLD + NEW + MORE)


def test_no_stopped_write_is_thrown_away_before_the_audit_log_knows(
    scene: Scene, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    stopped_write(scene, monkeypatch, source, "publish", nth=2)
    age(scene, 8)
    log = tmp_path / "audit.jsonl"
    audited = replace(scene, config=replace(scene.config, audit=AuditConfig(f"file:{log}")))
    before = hashes(scene)

    def full(audit: Audit, event: Event, /, **facts: Any) -> None:
        if event == "gc":
            raise StorageError("the audit log is full", code="audit")

    with monkeypatch.context() as patched:
        patched.setattr(Audit, "record", full)
        with pytest.raises(StorageError, match="audit log is full"):
            collect(audited)
    assert hashes(scene) == before
    found = collect(audited)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    thrown, rest = (line["counts"] for line in lines if line["event"] == "gc")
    assert (len(found.writes), thrown["writes"], rest["writes"]) == (1, 1, 0)
    assert thrown["objects"] == 2, "journal and record"
    assert thrown["objects"] + rest["objects"] == len(found.removed) == 4
    assert thrown["bytes"] + rest["bytes"] == found.removed_bytes


def test_what_a_write_builds_upon_stays_while_it_may_go_on(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could not tell whether its own commit happened."""
    scene.write(people(0))
    stopped_write(scene, monkeypatch, source, "commit")
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    with scene.storage().hold(journal.replace("journal.json", "lock")):
        scene.append(people(50))
        scene.append(people(60))
    found = collect(scene, keep=1)
    assert found.left == ()
    assert scene.append(source).resumed_files == 2
    assert collect(scene, keep=1, grace=NOW).left == (1, 2, 3)
    assert_clean(scene, [*OLD, *range(50, 56), *range(60, 66), *NEW, *MORE])


def test_the_files_of_a_write_stay_whose_journal_a_rewrap_made_anew(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object of the journal is as old as they are then."""
    began = (datetime.now(UTC) - 22 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    monkeypatch.setattr("encpipe.writesession.utc_now", lambda: began)
    scene.write(people(0))
    stopped_write(scene, monkeypatch, source, "create_file", nth=2)
    age(scene, 20)
    age(scene, 1, "data/")
    encpipe.rewrap(scene.url, to={"footer": "memory:pii"}, **trusting(scene).access)
    found = collect(trusting(scene))
    assert (found.removed, len(found.writes_kept)) == ((), 1)
    assert trusting(scene).append(source, workers=1).resumed_files == 1


def trusting(scene: Scene) -> Scene:
    """Every key of the test for every key name."""
    return replace(scene, config=replace(scene.config, trust=TrustConfig(("memory:main", "memory:pii"))))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": "encpipe/9"}'])
def test_a_journal_that_cannot_be_read_keeps_everything(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    scene.write(people(0))
    scene.write(people(0), overwrite=True)
    age(scene, 30)
    stopped_write(scene, monkeypatch, source, "publish", nth=2)
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    (scene.folder / journal).write_bytes(data)
    found = collect(scene, keep=1)
    assert (found.left, found.removed, len(found.writes_kept)) == ((), (), 1)
    age(scene, 8)
    assert len(collect(scene).writes) == 1
    assert_clean(scene, OLD)


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z"])
def test_what_a_journal_says_of_its_time_stops_nothing(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, created: str
) -> None:
    """It is not authenticated: whoever can write there can edit it."""
    scene.write(people(50))
    scene.write(people(0), overwrite=True)
    age(scene, 30)
    stopped_write(scene, monkeypatch, source, "publish", nth=2)
    (path,) = [scene.folder / path for path in scene.objects() if path.endswith("/journal.json")]
    path.write_bytes(strictjson.dumps({**strictjson.loads(path.read_bytes(), what="it"), "created": created}))
    garbage = scene.folder / f"data/{'a' * 32}.parquet"
    garbage.write_bytes(b"PARE")
    os.utime(garbage, (10**9, 10**9))
    found = collect(scene)
    assert len(found.writes_kept) == 1
    assert found.removed == (f"data/{'a' * 32}.parquet",)


# races


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


# what stops it


def test_dry_run_tells_what_would_go_and_changes_nothing(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(50))
    scene.write(people(0), overwrite=True)
    stopped_write(scene, monkeypatch, source, "publish", nth=2)
    age(scene, 30)
    before = {path: path.stat().st_mtime_ns for path in scene.folder.rglob("*") if path.is_file()}
    told = collect(scene, keep=1, grace=NOW, dry_run=True)
    assert before == {path: path.stat().st_mtime_ns for path in scene.folder.rglob("*") if path.is_file()}
    done = collect(scene, keep=1, grace=NOW)
    assert told.dry_run
    assert replace(told, dry_run=False, revision=done.revision) == done
    assert_clean(scene, OLD)


def test_dry_run_sees_a_live_writer(scene: Scene, source: Path) -> None:
    scene.write(people(0))
    told: list[Collected] = []

    def look() -> None:
        age(scene, 30)
        told.append(collect(scene, grace=NOW, dry_run=True))

    log = steps.Log()
    log.before = lambda n, step: look() if step.startswith("commit") else None
    with pytest.MonkeyPatch.context() as patched:
        steps.install(patched, log)
        scene.append(source)
    (found,) = told
    assert (len(found.writes_kept), found.writes, found.removed) == (1, (), ())


@pytest.mark.parametrize("what", ["files-1", "files-2"])
def test_a_list_that_is_gone_stops_it(scene: Scene, what: str) -> None:
    """Nobody can tell then which files are named."""
    scene.write(people(0))
    scene.append(people(10))
    age(scene, 30)
    for path in scene.folder.glob(f"_encpipe/{what}*"):
        path.unlink()
    before = hashes(scene)
    with pytest.raises(ManifestError) as refused:
        collect(scene)
    assert refused.value.code == "file-missing"
    assert hashes(scene) == before


def test_a_generation_whose_list_is_damaged_can_leave(scene: Scene) -> None:
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    age(scene, 30)
    (damaged,) = scene.folder.glob("_encpipe/files-1*")
    damaged.write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        collect(scene)
    found = collect(scene, keep=1)
    assert (found.left, found.removed) == ((1,), ())
    age(scene, 8)
    collect(scene)
    assert_clean(scene, NEW)


def test_an_older_manifest_removes_nothing(scene: Scene) -> None:
    scene.write(people(0))
    older = (scene.folder / "_encpipe/manifest.json").read_bytes()
    scene.append(people(10))
    scene.append(people(20))
    (scene.folder / "_encpipe/manifest.json").write_bytes(older)
    age(scene, 30)
    before = hashes(scene)
    for more in ({}, {"min_generation": 3}):
        with pytest.raises(StaleDatasetError):
            collect(scene, **more)
    assert hashes(scene) == before


TIMES = [{name: time} for name in ("grace", "older_than") for time in (-DAY, 365_001 * DAY, timedelta.max)]


def test_wrong_settings_and_missing_keys_are_refused_before_anything_happens(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="no encpipe dataset"):
        collect(scene)
    scene.write(people(0))
    stopped_write(scene, monkeypatch, source, "publish", nth=2)
    age(scene, 30)
    before = hashes(scene)
    for more in ({"keep": 0}, *TIMES):
        with pytest.raises(ConfigError) as refused:
            collect(scene, **more)
        assert refused.value.code == "usage"
    with pytest.raises(UntrustedKeyError):
        collect(scene.knowing("pii"))
    with pytest.raises(StaleDatasetError):
        collect(scene, expect_dataset="0" * 32)
    assert hashes(scene) == before


def test_an_outage_of_the_key_service_removes_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.write(people(0))
    before = hashes(scene)

    def down(*_: object, **__: object) -> None:
        raise KmsUnavailableError("no answer")

    monkeypatch.setattr(InMemoryKms, "master_key", down)
    with pytest.raises(KmsUnavailableError):
        collect(scene, keep=1, grace=NOW)
    assert hashes(scene) == before


def test_what_is_not_ours_is_left_alone(scene: Scene) -> None:
    scene.write(people(0))
    inner = scene.at(f"{scene.url}/data/inner")
    inner.write(people(10))
    (scene.folder / "README.md").write_text("mine")
    age(scene, 100)
    found = collect(scene, grace=NOW)
    assert found.removed == ()
    assert "README.md" in found.foreign
    assert_clean(inner, NEW)
    assert ids(scene.table()) == OLD


@pytest.mark.parametrize("folder", ["data", "year=2024"])
def test_parquet_that_is_not_encrypted_is_left_alone_whatever_it_is_called(
    scene: Scene, tmp_path: Path, folder: str
) -> None:
    """Nobody but its owner has another copy of it."""
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    mine, empty = (scene.folder / folder / f"{letter * 32}.parquet" for letter in "ab")
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(next(save(tmp_path / "plain", people(50)).iterdir()).read_bytes())
    empty.write_bytes(b"")
    theirs = [str(path.relative_to(scene.folder)) for path in (mine, empty)]
    age(scene, 100)
    for dry_run in (True, False):
        found = collect(scene, keep=1, grace=NOW, dry_run=dry_run)
        assert list(found.foreign) == theirs
        assert len([path for path in found.removed if path.endswith(".parquet")]) == 1
    assert mine.exists()
    assert empty.exists()
    assert ids(scene.table()) == NEW


def test_in_memory_too(tmp_path: Path) -> None:
    scene = Scene(f"memory://{tmp_path.name}-{os.getpid()}-gc")
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    assert collect(scene, keep=1).waiting == 2
    assert collect(scene, keep=1, grace=NOW).waiting == 0
    assert_clean(scene, NEW)


def test_where_no_file_can_be_made_the_clock_is_this_machine_s(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not stop what makes room, nor a read-only one a look."""
    scene.write(people(0))
    scene.write(people(10), overwrite=True)

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("encpipe.storage.posix.tempfile.TemporaryFile", full)
    age(scene, 10)
    assert collect(scene, older_than=9 * DAY, dry_run=True).left == (1,)
    assert collect(scene, older_than=11 * DAY, dry_run=True).left == ()
