"""A write that was stopped, at any step, goes on where it stopped: nothing is lost, done twice or mixed."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import steps
from scene import Scene, ended, forked, ids, on_s3, people, save
from servers.seaweed import Seaweed

from encpipe import (
    Config,
    ConfigError,
    ConflictError,
    EncpipeError,
    KeyNotFoundError,
    ManifestError,
    Policy,
    StorageError,
)
from encpipe.config import TrustConfig
from encpipe.storage import posix, s3_lease

OLD, NEW = list(range(6)), list(range(10, 22))
Run = Callable[..., object]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "new", people(10), people(16))


def runs(scene: Scene, source: Path) -> dict[str, tuple[Run, list[int], list[int]]]:
    """Kind of write -> how to run it, the ids before it and after it."""
    return {
        "write": (lambda **more: scene.write(source, workers=1, **more), [], NEW),
        "append": (lambda **more: scene.append(source, workers=1, **more), OLD, OLD + NEW),
        "overwrite": (lambda **more: scene.write(source, workers=1, overwrite=True, **more), OLD, NEW),
    }


def stop(monkeypatch: pytest.MonkeyPatch, run: Run, at: int | str, nth: int = 1) -> None:
    """Kill `run` before step `at` (its number, or the n-th step that starts with this text)."""
    log = steps.Log()

    def before(n: int, step: str) -> None:
        seen = sum(s.startswith(at) for s in log.steps[: n + 1]) if isinstance(at, str) else 0
        if n == at or (isinstance(at, str) and step.startswith(at) and seen == nth):
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(run)) == -signal.SIGKILL, f"it never came to {at}"


def recorded(run: Run) -> list[str]:
    with pytest.MonkeyPatch.context() as patched:
        log = steps.install(patched)
        run()
    return log.steps


@pytest.mark.parametrize("kind", ["write", "append", "overwrite"])
def test_killed_at_any_step_it_goes_on(
    scene: Scene, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    old = save(tmp_path / "old", people(0))

    def fresh(n: int) -> tuple[Scene, Run, list[int], list[int]]:
        here = scene.at(f"{scene.url}-{n}")
        run, before, after = runs(here, source)[kind]
        if before:
            here.write(old)
        return here, run, before, after

    all_steps = recorded(fresh(-1)[1])
    names = {step.split()[0] for step in all_steps}
    assert names >= {"hold", "create", "create_file", "publish", "commit", "delete", "release"}, all_steps
    for n, step in enumerate(all_steps):
        here, run, before, after = fresh(n)
        stop(monkeypatch, run, n)
        assert_goes_on(here, run, before, after, f"killed before step {n}, {step}")


def assert_goes_on(here: Scene, run: Run, before: list[int], after: list[int], when: str) -> None:
    generation = 1 if before else 0
    pending = here.objects("_encpipe/pending/")
    manifest = "_encpipe/manifest.json" in here.objects()
    committed = manifest and here.inspect().generation > generation
    if committed:
        assert ids(here.table()) == after, when
        if not any(path.endswith("journal.json") for path in pending):
            assert_finished_write_is_swept(here, after, when)
            return
    elif before:
        assert ids(here.table()) == before, when
    else:
        assert not manifest, when
    with pytest.MonkeyPatch.context() as patched:
        log = steps.install(patched)
        report = run()
    finished = sum(path.endswith(".sealed") for path in pending)
    assert report.resumed_files == finished, when
    assert log.count("create_file") == 2 - finished, f"{when}: a finished file was encrypted again"
    assert (report.generation, report.rows, report.files) == (generation + 1, 12, 2), when
    assert ids(here.table()) == after, when
    if before:
        assert ids(here.table(generation=1)) == before, when
    here.check_whole()


def assert_finished_write_is_swept(here: Scene, after: list[int], when: str) -> None:
    """Only its journal's records were still being removed: the next write removes them."""
    here.append(people(50))
    assert ids(here.table()) == after + list(range(50, 56)), when
    here.check_whole()


def test_a_stop_after_the_commit_is_reported_as_done(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    stop(monkeypatch, lambda: scene.append(source), "delete")
    report = scene.append(source)
    assert (report.generation, report.files, report.resumed_files, report.rows) == (2, 2, 2, 12)
    assert ids(scene.table()) == OLD + NEW
    scene.check_whole()


def test_restart_does_not_append_committed_rows_again(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    stop(monkeypatch, lambda: scene.append(source), "delete")
    assert scene.append(source, restart=True).generation == 2
    assert ids(scene.table()) == OLD + NEW
    scene.check_whole()


def test_another_write_is_not_stopped_by_what_a_committed_one_left(
    scene: Scene, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    stop(monkeypatch, lambda: scene.append(source), "delete")
    assert scene.append(save(tmp_path / "other", people(30, 1))).generation == 3
    assert ids(scene.table()) == [*OLD, *NEW, 30]
    scene.check_whole()


def test_rows_of_a_stream_are_not_taken_for_those_of_another(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(monkeypatch, lambda: scene.write(people(0)), "create _encpipe/files")
    with pytest.raises(EncpipeError) as refused:
        scene.write(people(30))
    assert refused.value.code == "source-changed"
    scene.write(people(30), restart=True)
    assert ids(scene.table()) == list(range(30, 36))
    scene.check_whole()


def test_a_stream_after_one_whose_commit_nobody_saw_asks_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the same rows again, and nobody can tell."""
    scene.write(people(0))
    stop(monkeypatch, lambda: scene.append(people(10)), "delete")
    with pytest.raises(EncpipeError, match="committed as generation 2") as refused:
        scene.append(people(20))
    assert refused.value.code == "source-changed"
    scene.append(people(20))
    assert ids(scene.table()) == [*OLD, *range(10, 16), *range(20, 26)]
    scene.check_whole()


CHANGES: dict[str, Callable[[Scene, Path], object]] = {
    "policy": lambda scene, source: scene.write(source, policy=Policy(columns={"pii": ("id",)})),
    "compression": lambda scene, source: scene.write(source, compression="zstd"),
    "content": lambda scene, source: scene.write(save(source, people(90))),
    "another file": lambda scene, source: scene.write(save(source, people(10), people(16), people(22))),
    "master keys": lambda scene, source: replace(scene, config=Config(keys=MORE_KEYS)).write(source),
}
MORE_KEYS = {"footer": ("memory:main",), "pii": ("memory:pii", "memory:main")}


@pytest.mark.parametrize("change", CHANGES)
def test_another_source_or_setting_is_refused_until_restart(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    stop(monkeypatch, lambda: scene.write(source, workers=1), "create_file", nth=2)
    left = scene.objects()
    with pytest.raises(EncpipeError) as refused:
        CHANGES[change](scene, source)
    assert refused.value.code == "source-changed"
    assert "--restart" in refused.value.hint
    assert scene.objects() == left, "nothing was thrown away unasked"
    with monkeypatch.context() as patched:
        log = steps.install(patched)
        report = scene.write(source, restart=True)
    assert report.resumed_files == 0
    assert log.count("create_file") == report.files
    assert scene.verify().unlisted == (), "the finished file of the first run is gone, too"
    scene.check_whole()


def test_an_append_does_not_go_on_when_the_dataset_got_other_columns(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same policy, same KEKs, and files of the one order are no files of the other."""
    scene.write(people(0))
    stop(monkeypatch, lambda: scene.append(source), "create _encpipe/files")
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    with scene.storage().hold(journal.replace("journal.json", "lock")):
        scene.write(people(50).select(["name", "id"]), overwrite=True)
    with pytest.raises(EncpipeError) as refused:
        scene.append(source)
    assert refused.value.code == "source-changed"
    assert "--restart" in refused.value.hint
    scene.append(source, restart=True)
    assert ids(scene.table()) == [*range(50, 56), *NEW]
    scene.check_whole()


def test_the_same_write_is_not_done_twice_at_once(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On S3 this is also what a second run meets until the lease of a killed one has run out."""
    stop(monkeypatch, lambda: scene.write(source, workers=1), "create_file", nth=2)
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    before = set(scene.objects())
    with scene.storage().hold(journal.replace("journal.json", "lock")):
        with pytest.raises(ConflictError, match="the same write is under way") as refused:
            scene.write(source)
        assert refused.value.code == "locked"
    assert set(scene.objects()) == before
    assert scene.write(source).resumed_files == 1


def test_a_live_owner_is_left_alone(scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(monkeypatch, lambda: scene.write(source, workers=1), "create_file", nth=2)
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    storage = scene.storage()
    with storage.hold(journal.replace("journal.json", "lock")):
        before = set(scene.objects())
        assert journal in before
        assert scene.write(source, restart=True).resumed_files == 0
        assert before <= set(scene.objects())
    assert ids(scene.table()) == NEW


@pytest.mark.parametrize("why", ["untrusted", "forgotten"])
def test_a_live_owner_under_keys_that_are_not_ours_is_left_alone(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    scene.kms.create("theirs")
    theirs = replace(scene, config=Config(keys={**MORE_KEYS, "footer": ("memory:theirs",)}))
    stop(monkeypatch, lambda: theirs.write(source, workers=1), "create_file", nth=2)
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    if why == "forgotten":
        scene.kms.forget("theirs")
        scene.config = replace(scene.config, trust=TrustConfig(("memory:theirs",)))
    with scene.storage().hold(journal.replace("journal.json", "lock")):
        before = set(scene.objects())
        assert scene.write(source).resumed_files == 0
        assert before <= set(scene.objects())
    assert ids(scene.table()) == NEW


@pytest.mark.parametrize("what", ["journal cut", "journal edited", "record", "data file", "data file gone"])
def test_what_was_edited_meanwhile_is_refused(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    stop(monkeypatch, lambda: scene.write(source, workers=1), "create_file", nth=2)
    name = {"j": "journal.json", "r": "0.sealed", "d": ".parquet"}[what[0]]
    [path] = [scene.folder / path for path in scene.objects() if path.endswith(name) and ".tmp-" not in path]
    data = path.read_bytes()
    if what == "journal cut":
        path.write_bytes(data[:-1])
    elif what == "journal edited":
        assert b'"created":"2' in data
        path.write_bytes(data.replace(b'"created":"2', b'"created":"3'))
    elif what == "data file gone":
        path.unlink()
    else:
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    with pytest.raises(ManifestError) as refused:
        scene.write(source)
    assert refused.value.code == "journal"
    assert "--restart" in refused.value.hint
    assert scene.write(source, restart=True).resumed_files == 0
    assert ids(scene.table()) == NEW
    scene.check_whole()


def test_a_journal_of_a_key_that_is_gone_is_refused_and_can_be_thrown_away(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(monkeypatch, lambda: scene.write(source, workers=1), "create_file", nth=2)
    scene.kms.forget("pii")
    with pytest.raises(KeyNotFoundError):
        scene.write(source)
    scene.kms.create("pii")
    assert scene.write(source, restart=True).resumed_files == 0
    assert ids(scene.table()) == NEW
    scene.check_whole()


def test_an_outage_at_the_commit_loses_nothing(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit may have happened: the files must stay, of a stream, too."""
    scene.write(people(0))

    def after_commit(*args: object, **kwargs: object) -> None:
        commit(*args, **kwargs)
        raise StorageError("no answer", code="storage-unavailable")

    commit = steps.Stepping.commit
    for rows in (people(10), source):
        with monkeypatch.context() as patched:
            steps.install(patched)
            patched.setattr(steps.Stepping, "commit", after_commit)
            with pytest.raises(StorageError, match="no answer"):
                scene.append(rows)
        scene.verify().check()
    assert ids(scene.table()) == [*OLD, *range(10, 16), *NEW]


@pytest.mark.parametrize("code", ["storage", "storage-full", "storage-denied", "untrusted-certificate"])
def test_what_was_committed_stays_whatever_error_the_commit_ended_in(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    scene.write(people(0))
    commit = steps.Stepping.commit

    def after_commit(*args: object, **kwargs: object) -> None:
        commit(*args, **kwargs)
        raise (ConfigError if code.startswith("untrusted") else StorageError)("wrong", code=code)

    for rows in (people(10), source):
        with monkeypatch.context() as patched, contextlib.suppress(StorageError, ConfigError):
            steps.install(patched)
            patched.setattr(steps.Stepping, "commit", after_commit)
            scene.append(rows)
        scene.verify().check()
    assert ids(scene.table()) == [*OLD, *range(10, 16), *NEW]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EACCES])
def test_a_manifest_that_has_its_name_and_may_not_be_durable_is_an_outage(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    scene.write(people(0))
    replace = posix.TempFile.replace

    def fail(_: Path) -> None:
        raise OSError(number, "failed")

    def named(temp: posix.TempFile) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(posix, "fsync_folder", fail)
            replace(temp)

    with monkeypatch.context() as patched:
        patched.setattr(posix.TempFile, "replace", named)
        with pytest.raises(StorageError, match="not known") as failed:
            scene.append(source)
    assert failed.value.code == "storage-unavailable"
    scene.verify().check()
    assert scene.append(source).generation == 2
    assert ids(scene.table()) == OLD + NEW
    scene.check_whole()


@pytest.mark.parametrize("at", ["create _encpipe/files", "commit", "create _encpipe/pending"])
def test_a_stream_that_fails_leaves_nothing_behind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    log = steps.install(monkeypatch)

    def full(n: int, step: str) -> None:
        if step.startswith(at) and "journal" not in step:
            raise StorageError("full", code="storage-full")

    log.before = full
    with pytest.raises(StorageError) as failed:
        scene.write(people(0))
    assert failed.value.code == "storage-full"
    assert scene.objects() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB."""
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "CI runs as root"
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        assert not os.environ.get("CI"), done.stderr
        pytest.skip(f"mounting a small tmpfs failed: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_is_resumed_from(
    scene: Scene, small_disk: Path, tmp_path: Path
) -> None:
    noise = [pa.table({"id": range(n, n + 1), "name": [os.urandom(1 << 19).hex()]}) for n in range(3)]
    source = save(tmp_path / "large", *noise)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    here = scene.at(str(small_disk / "dataset"))
    with pytest.raises(StorageError) as full:
        here.write(source, workers=1, compression="none")
    assert full.value.code == "storage-full"
    assert "free" in full.value.hint
    assert [path for path in here.objects() if ".tmp-" in path] == []
    ballast.unlink()
    with pytest.raises(StorageError):
        here.write(source, workers=1, compression="none")
    left = here.objects("_encpipe/pending/")
    with pytest.raises(StorageError):
        here.write(source, workers=1, compression="none")
    assert here.objects("_encpipe/pending/") == left
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    report = here.write(source, workers=1, compression="none")
    assert report.resumed_files == 2
    assert here.table().equals(pa.concat_tables(noise))
    here.check_whole()


@pytest.mark.server
def test_a_write_to_s3_goes_on(
    seaweed: Seaweed, bucket: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 0.0)  # the killed owner's lease is over at once
    for n, at in enumerate(["create_file", "create _encpipe/files", "commit", "delete"]):
        scene = on_s3(seaweed, f"s3://{bucket}/folder/{n}")
        stop(monkeypatch, lambda scene=scene: scene.write(source, workers=1), at, nth=2 if n == 0 else 1)
        report = scene.write(source)
        assert (report.files, report.resumed_files) == (2, 1 if n == 0 else 2)
        assert ids(scene.table()) == NEW
        scene.check_whole()
