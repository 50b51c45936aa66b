"""What gc leaves alone, what stops it, and that a dry run changes nothing."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import steps
from gcscene import (
    DAY,
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
from scene import Scene, ids, people, save

from encpipe import (
    ConfigError,
    IntegrityError,
    KmsUnavailableError,
    ManifestError,
    StaleDatasetError,
    StorageError,
    UntrustedKeyError,
)
from encpipe.lifecycle.gc import Collected
from encpipe.testing import InMemoryKms


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return local(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return new_rows(tmp_path)


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
