"""gc and stopped writes: they may go on for the grace time, then they are thrown away."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from gcscene import (
    DAY,
    MORE,
    NEW,
    NOW,
    OLD,
    age,
    assert_clean,
    collect,
    hashes,
    local,
    new_rows,
    stopped_write,
)
from scene import Scene, people

import encpipe
from encpipe import (
    StorageError,
    strictjson,
)
from encpipe.audit import Audit, Event
from encpipe.config import AuditConfig, TrustConfig


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return local(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return new_rows(tmp_path)


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
