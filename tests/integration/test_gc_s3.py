"""gc in a bucket: the server's clock, unfinished uploads, leases, and a kill at each kind of step."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import steps
from gcscene import MORE, NEW, NOW, OLD, assert_clean, collect, new_rows
from scene import Scene, ended, forked, ids, on_s3, people
from servers.seaweed import Seaweed

from encpipe import ConflictError, StorageError
from encpipe.lifecycle.gc import Collected
from encpipe.storage import s3_lease, s3_stale

pytestmark = pytest.mark.server

FILE = f"data/{'a' * 32}.parquet"


@pytest.fixture
def scene(seaweed: Seaweed, bucket: str) -> Scene:
    return on_s3(seaweed, f"s3://{bucket}/team/flights")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return new_rows(tmp_path)


def begin_upload(seaweed: Seaweed, bucket: str, key: str) -> str:
    """An upload with one part that its writer never finished."""
    client = seaweed.client()
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"part")
    client.close()
    return upload


def uploads(seaweed: Seaweed, bucket: str) -> list[str]:
    client = seaweed.client()
    found = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    client.close()
    return sorted(upload["Key"] for upload in found)


def test_a_generation_leaves_and_its_files_follow(scene: Scene) -> None:
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    with scene.open(generation=1) as reader:
        found = collect(scene, keep=1)
        assert (found.left, found.removed, found.waiting) == ((1,), (), 2)
        assert ids(reader.to_table()) == OLD
    assert len(collect(scene, grace=NOW).removed) == 3
    assert_clean(scene, NEW)


def test_unfinished_uploads_of_the_dataset_go(scene: Scene, seaweed: Seaweed, bucket: str) -> None:
    scene.write(people(0))
    others = ["team/flights2/" + FILE, "team/flights/other.bin", FILE]
    for key in ["team/flights/" + FILE, *others]:
        begin_upload(seaweed, bucket, key)
    assert collect(scene).uploads == 0
    assert collect(scene, grace=NOW, dry_run=True).uploads == 1
    assert len(uploads(seaweed, bucket)) == 4
    assert collect(scene, grace=NOW).uploads == 1
    assert uploads(seaweed, bucket) == sorted(others)
    assert_clean(scene, OLD)


def test_an_upload_of_a_live_writer_stays(
    scene: Scene, seaweed: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    seen: list[Collected] = []

    def while_writing(_: int, step: str) -> None:
        if step.startswith("publish") and not seen:
            begin_upload(seaweed, bucket, "team/flights/" + FILE)
            seen.append(collect(scene, keep=1, grace=NOW))

    log = steps.install(monkeypatch)
    log.before = while_writing
    scene.append(people(10))
    (found,) = seen
    assert (found.uploads, len(found.writes_kept), found.writes, found.removed) == (0, 1, (), ())
    assert ids(scene.table()) == OLD + NEW
    assert collect(scene, grace=NOW).uploads == 1


def test_a_killed_writer_is_waited_for_as_long_as_its_lease(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    log = steps.Log()
    log.before = lambda _, step: steps.die_before(0)(0, "") if step.startswith("commit") else None
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(lambda: scene.append(source))) == -signal.SIGKILL
    for dry_run in (True, False):
        found = collect(scene, grace=NOW, dry_run=dry_run)
        assert (found.writes, len(found.writes_kept), found.removed) == ((), 1, ())
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 0.0)
    found = collect(scene, grace=NOW)
    assert len(found.writes) == 1
    assert_clean(scene, OLD)


def test_a_writer_whose_journal_was_thrown_away_commits_nothing(
    scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ran out in an outage; gc comes after it looked for its journal, and before it commits."""
    scene.write(people(0))
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 0.0)
    commit, seen = steps.Stepping.commit, []

    def gc_in_between(self: Any, path: str, data: bytes, *, check: Any, is_ours: Any) -> None:
        def checked(current: bytes | None) -> None:
            check(current)
            if not seen:
                seen.append(None)
                assert len(collect(scene, grace=NOW).writes) == 1

        commit(self, path, data, check=checked, is_ours=is_ours)

    with monkeypatch.context() as patched:
        steps.install(patched)
        patched.setattr(steps.Stepping, "commit", gc_in_between)
        with pytest.raises(ConflictError):
            scene.append(source)
    assert_clean(scene, OLD)


def garbage(scene: Scene) -> Scene:
    scene.write(people(50))
    scene.write(people(0), overwrite=True)
    return scene


@pytest.mark.parametrize("at", ["commit", "delete"])
def test_killed_at_a_step_the_next_gc_does_the_rest(
    scene: Scene, seaweed: Seaweed, bucket: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    garbage(scene)
    begin_upload(seaweed, bucket, f"team/flights/{FILE}")
    log = steps.Log()
    log.before = lambda _, step: steps.die_before(0)(0, "") if step.startswith(at) else None
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(partial(collect, scene, keep=1, grace=NOW))) == -signal.SIGKILL
    assert ids(scene.table()) == OLD
    assert scene.inspect(use_keys=False).retained_generations == ((1,) if at == "commit" else ())
    collect(scene, keep=1, grace=NOW)
    assert_clean(scene, OLD, at)
    assert uploads(seaweed, bucket) == []


@pytest.mark.parametrize(
    ("kind", "at"),
    [("append", "publish"), ("append", "commit"), ("overwrite", "create_file"), ("overwrite", "delete")],
)
def test_a_gc_at_a_step_of_a_write_does_it_no_harm(scene: Scene, source: Path, kind: str, at: str) -> None:
    def write(here: Scene) -> None:
        here.append(source) if kind == "append" else here.write(source, overwrite=True)

    after = OLD + NEW + MORE if kind == "append" else NEW + MORE
    garbage(scene)
    log = steps.Log()
    seen: list[Collected] = []

    def before(_: int, step: str) -> None:
        if step.split()[0] == at and not seen:
            seen.append(collect(scene, keep=1, grace=NOW, dry_run=True))
            seen.append(collect(scene, keep=1, grace=NOW))

    log.before = before
    with pytest.MonkeyPatch.context() as patched:
        steps.install(patched, log)
        write(scene)
    assert seen[1].left == (1,)
    assert ids(scene.table()) == after
    scene.check_whole()


def test_an_upload_that_is_gone_is_dropped_all_the_same(scene: Scene, seaweed: Seaweed, bucket: str) -> None:
    begin_upload(seaweed, bucket, f"team/flights/{FILE}")
    storage = scene.storage()
    (found,) = storage.unfinished_uploads()
    for _ in range(2):
        storage.drop_upload(found)
    assert list(storage.unfinished_uploads()) == []
    storage.close()


def test_a_server_that_does_not_tell_its_time_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of this machine everything might seem old."""
    scene.write(people(0))
    monkeypatch.setattr(s3_stale, "server_date", lambda _: None)
    with pytest.raises(StorageError, match="does not tell its time"):
        collect(scene)
