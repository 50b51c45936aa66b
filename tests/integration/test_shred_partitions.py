"""Partitions under KEKs of their own are shredded one by one; every list that had those KEKs goes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import steps
from scene import KEYS, PII, Scene, ended, forked, ids, on_s3, people, save
from test_shred import manifest_of, shred
from test_shred_races import at_commit, writers

import encpipe
from encpipe import (
    Config,
    ConfigError,
    ConflictError,
    MasterKeys,
    Policy,
    SignatureError,
    StaleDatasetError,
)
from encpipe import journal as journals
from encpipe.config import KeyringConfig, SigningConfig
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.unlock import create_key_file
from encpipe.lifecycle import ShredReport
from encpipe.signing import create_key_file as create_signer

POLICY = Policy(columns={"pii": ("name",)}, partition_keys=("year", "country"))
MANIFEST = "_encpipe/manifest.json"


def tree(folder: Path, years: tuple[int, ...] = (2020, 2021), first: int = 0) -> Path:
    """Six rows for each year and country (`de`, `fr`); ids count up from `first`."""
    for n, year in enumerate(years):
        for m, country in enumerate(("de", "fr")):
            save(folder / f"year={year}" / f"country={country}", people(first + n * 12 + m * 6))
    return folder


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """2020 and 2021, and then 2022."""
    if request.param == "local":
        made = Scene(str(tmp_path / "dataset"))
    else:
        seaweed, bucket = request.getfixturevalue("seaweed"), request.getfixturevalue("bucket")
        client = seaweed.client()
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        client.close()
        made = on_s3(seaweed, f"s3://{bucket}/folder")
    made.write(tree(tmp_path / "in"), policy=POLICY)
    made.append(tree(tmp_path / "more", (2022,), first=24))
    return made


@pytest.fixture
def local(tmp_path: Path) -> Scene:
    made = Scene(str(tmp_path / "dataset"))
    made.write(tree(tmp_path / "in"), policy=POLICY)
    return made


def cut(scene: Scene, *partitions: dict[str, str | None], **more: object) -> ShredReport:
    return shred(scene, partitions=partitions, **more)


def lists(scene: Scene) -> list[str]:
    return [path for path in scene.objects("_encpipe/") if "/files-" in path]


def rows(scene: Scene) -> list[int]:
    return sorted(ids(scene.table()))


def test_a_year_goes_and_the_rest_stays(scene: Scene) -> None:
    report = cut(scene, {"year": "2020"})
    assert (report.scope, report.verdict, report.remaining) == ("partitions", "removed", ())
    assert (len(report.keks), report.key_names) == (4, ("footer", "pii"))
    assert report.partitions == ({"year": "2020"},)
    assert rows(scene) == list(range(12, 36))
    found = manifest_of(scene)
    assert (found.core.generation, found.retained) == (3, ())
    assert lists(scene) == [found.core.list_name]
    with pytest.raises(StaleDatasetError):
        scene.open(generation=2)
    assert len(scene.objects("data/")) == 6
    removed = encpipe.gc(scene.url, grace=timedelta(0), **scene.access)
    assert len([path for path in removed.removed if path.startswith("data/")]) == 2
    scene.check_whole()


def test_no_version_of_a_list_is_left(scene: Scene) -> None:
    cut(scene, {"year": "2020"})
    storage = scene.storage()
    try:
        old = [found.path for found in storage.old_versions("_encpipe/")]
    finally:
        storage.close()
    assert not [path for path in old if "/files-" in path or "/0.sealed" in path]


def test_one_country_of_one_year(local: Scene) -> None:
    cut(local, {"year": "2020", "country": "fr"}, {"year": "2021", "country": "de"})
    assert rows(local) == [*range(6), *range(18, 24)]
    cut(local, {"country": "de"})
    assert rows(local) == list(range(18, 24))


def test_generations_without_it_stay(local: Scene, tmp_path: Path) -> None:
    local.append(tree(tmp_path / "more", (2022,), first=24))
    report = cut(local, {"year": "2022"})
    assert report.generation == 3
    assert [tagged.core.generation for tagged in manifest_of(local).retained] == [1]
    with local.open(generation=1) as dataset:
        assert dataset.num_rows == 24
    assert rows(local) == list(range(24))


def test_the_partition_can_be_written_anew(local: Scene, tmp_path: Path) -> None:
    before = cut(local, {"year": "2020"}).keks
    local.append(tree(tmp_path / "again", (2020,), first=50))
    assert rows(local) == [*range(12, 24), *range(50, 62)]
    assert not set(before) & set(cut(local, {"year": "2020"}).keks)


def test_a_list_that_left_the_manifest_goes_too(local: Scene) -> None:
    local.write(tree(local.folder.parent / "new", (2021,), first=40), overwrite=True, policy=POLICY)
    encpipe.gc(local.url, keep=1, **local.access)
    assert len(lists(local)) == 2
    report = cut(local, {"year": "2020"})
    assert report.verdict == "removed"
    assert len(lists(local)) == 1
    assert rows(local) == list(range(40, 52))


def test_a_list_under_a_footer_kek_that_is_gone_goes_too(local: Scene) -> None:
    old = manifest_of(local).core.list_name
    encpipe.rekey(local.url, **local.access)
    encpipe.gc(local.url, keep=1, **local.access)
    assert old in lists(local)
    report = cut(local, {"year": "2020"})
    assert (report.verdict, report.remaining) == ("removed", ())
    assert old in report.removed
    assert lists(local) == [manifest_of(local).core.list_name]
    assert rows(local) == list(range(12, 24))
    local.check_whole()


def test_temp_files_go_and_copies_of_lists_are_told(local: Scene) -> None:
    old = local.folder / manifest_of(local).core.list_name
    copies = (".tmp-whole", old.name + ".bak", "kept")
    for name in copies:
        (old.parent / name).write_bytes(old.read_bytes())
    (old.parent / ".tmp-torn").write_bytes(old.read_bytes()[:100])
    (old.parent / ".tmp-manifest").write_bytes((local.folder / MANIFEST).read_bytes())
    (old.parent / "notes.txt").write_text("of no interest, and long enough to be sealed")
    report = cut(local, {"year": "2020"})
    assert {"_encpipe/.tmp-whole", "_encpipe/.tmp-torn"} <= set(report.removed)
    assert report.verdict == "incomplete"
    assert {left.place for left in report.remaining} == {f"_encpipe/{old.name}.bak", "_encpipe/kept"}
    assert {path.name for path in old.parent.glob(".tmp-*")} == {".tmp-manifest"}
    for name in copies[1:]:
        (old.parent / name).write_bytes((local.folder / manifest_of(local).core.list_name).read_bytes())
    with pytest.raises(ConfigError, match="no such partition"):
        cut(local, {"year": "2020"})
    assert rows(local) == list(range(12, 24))


def test_a_younger_temp_file_is_told_and_stays(local: Scene) -> None:
    temp = local.folder / "_encpipe/.tmp-live"
    temp.write_bytes(os.urandom(100))
    soon = time.time() + 3600
    os.utime(temp, (soon, soon))
    report = cut(local, {"year": "2020"})
    assert [left.place for left in report.remaining] == ["_encpipe/.tmp-live"]
    assert temp.exists()


@pytest.mark.parametrize(
    "partitions", [(), ({},), ({"year": "1999"},), ({"id": "1"},), ({"year": "2020", "month": "1"},)]
)
def test_what_names_no_partition_is_refused(
    local: Scene, partitions: tuple[dict[str, str | None], ...]
) -> None:
    before = (local.folder / MANIFEST).read_bytes()
    with pytest.raises(ConfigError):
        cut(local, *partitions)
    assert (local.folder / MANIFEST).read_bytes() == before


def test_it_needs_the_confirmation_and_goes_with_nothing_else(local: Scene) -> None:
    for more in ({"confirm": "no"}, {"key_names": ["pii"]}, {"retire_master": {"memory:pii": ""}}):
        with pytest.raises(ConfigError):
            cut(local, {"year": "2020"}, **more)


def test_without_partition_keys_it_is_refused(tmp_path: Path) -> None:
    made = Scene(str(tmp_path / "dataset"))
    made.write(tree(tmp_path / "in"), policy=PII)
    with pytest.raises(ConfigError, match="no KEKs of their partitions"):
        cut(made, {"year": "2020"})


def test_what_others_wrote_unsigned_is_not_signed_by_it(tmp_path: Path) -> None:
    other = Scene(str(tmp_path / "dataset"))
    create_signer(tmp_path / "ann.pem")
    ann = replace(other, config=replace(other.config, signing=SigningConfig(tmp_path / "ann.pem")))
    ann.write(tree(tmp_path / "signed"), policy=POLICY)
    assert cut(ann, {"year": "2021"}).verdict == "removed"
    other.write(tree(tmp_path / "forged", first=50), overwrite=True, policy=POLICY)
    before = (other.folder / MANIFEST).read_bytes()
    with pytest.raises(SignatureError):
        cut(ann, {"year": "2020"})
    assert (other.folder / MANIFEST).read_bytes() == before


def test_a_dry_run_changes_nothing(local: Scene) -> None:
    before = {path: (local.folder / path).read_bytes() for path in local.objects()}
    report = cut(local, {"year": "2020"}, dry_run=True, confirm=None)
    assert (report.verdict, len(report.keks), report.removed) == ("", 4, tuple(lists(local)))
    assert {path: (local.folder / path).read_bytes() for path in local.objects()} == before


def test_an_append_to_it_in_flight_loses(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_commit(monkeypatch, lambda: cut(scene, {"year": "2020"}))
    with pytest.raises(ConflictError):
        scene.append(tree(tmp_path / "again", (2020, 2023), first=50))
    assert writers(scene) == []
    assert rows(scene) == list(range(12, 36))


@pytest.mark.parametrize("step", [f"create {journals.FOLDER}ID/journal.json", "create_file data/ID.parquet"])
def test_an_append_that_it_overtakes_leaves_no_new_keks(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Its base is two generations older then, and out of the manifest."""
    log = steps.install(monkeypatch)

    def before(n: int, now: str) -> None:
        if now == step:
            log.before = lambda n, step: None
            local.append(tree(tmp_path / "other", (2022,), first=50))
            assert cut(local, {"year": "2020"}).verdict == "removed"
            log.steps.clear()

    log.before = before
    with pytest.raises(ConflictError):
        local.append(tree(tmp_path / "more", (2023,), first=80), workers=1)
    assert log.count("create", ".sealed") == 0
    assert local.objects(journals.FOLDER) == []
    assert rows(local) == [*range(12, 24), *range(50, 62)]
    assert len(local.objects("data/")) == 6


def test_an_append_that_it_overtakes_removes_its_records(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records without new KEKs, made after the shred looked, go too."""
    log = steps.install(monkeypatch)

    def before(n: int, step: str) -> None:
        if step == "create_file data/ID.parquet":
            log.before = lambda n, step: None
            local.append(tree(tmp_path / "other", (2022,), first=50))
            cut(local, {"year": "2020"})

    log.before = before
    with pytest.raises(ConflictError):
        local.append(tree(tmp_path / "more", (2021,), first=80), workers=1)
    assert local.objects(journals.FOLDER) == []
    assert rows(local) == [*range(12, 24), *range(50, 62)]


def test_it_goes_on_top_of_an_append(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_commit(monkeypatch, lambda: scene.append(tree(tmp_path / "again", (2020, 2023), first=50)))
    report = cut(scene, {"year": "2020"})
    assert (report.verdict, report.generation) == ("removed", 4)
    assert rows(scene) == [*range(12, 36), *range(62, 74)]
    assert lists(scene) == [manifest_of(scene).core.list_name]


@pytest.mark.parametrize("when", ["list _encpipe/", "delete _encpipe/files-1-ID.sealed"])
def test_what_others_commit_on_top_of_it_stays(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    log = steps.install(monkeypatch)
    done: list[int] = []

    def before(n: int, step: str) -> None:
        committed = f"commit {MANIFEST}" in log.steps[:n]
        if step == when and committed and not done:
            done.append(n)
            local.append(tree(tmp_path / "again", (2020,), first=50))

    log.before = before
    report = cut(local, {"year": "2020"})
    assert done != []
    assert report.verdict == "removed"
    assert rows(local) == [*range(12, 24), *range(50, 62)]
    local.check_whole()


def test_a_stopped_append_goes_with_its_records(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tree(tmp_path / "again", (2020,), first=50)
    stop(partial(local.append, source, workers=1), monkeypatch)
    (writer,) = writers(local)
    assert f"{journals.FOLDER}{writer}/" in cut(local, {"year": "2021"}).removed
    assert local.objects(journals.FOLDER) == []
    local.append(source)
    assert rows(local) == [*range(12), *range(50, 62)]


def stop(write: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is killed before its commit."""
    log = steps.Log()

    def before(n: int, step: str) -> None:
        if step == f"commit {MANIFEST}":
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(write)) == -signal.SIGKILL


def test_killed_at_any_step_the_next_run_does_the_rest(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(partial(local.append, tree(tmp_path / "more", (2020,), first=50), workers=1), monkeypatch)
    whole = {path: (local.folder / path).read_bytes() for path in local.objects()}
    n, seen = 0, set()
    while True:
        local = local.at(str(tmp_path / f"copy-{n}"))
        for path, data in whole.items():
            (local.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (local.folder / path).write_bytes(data)
        with monkeypatch.context() as patched:
            log = steps.install(patched)
            log.before = steps.die_before(n)
            died = ended(forked(partial(cut, local, {"year": "2020"}))) == -signal.SIGKILL
        seen.add(len(rows(local)))
        try:
            assert cut(local, {"year": "2020"}).verdict == "removed"
        except ConfigError:  # it had done it all
            assert rows(local) == list(range(12, 24))
        assert rows(local) == list(range(12, 24))
        assert not whole.keys() & set(lists(local))
        assert local.objects(journals.FOLDER) == []
        if not died:
            break
        n += 1
    assert seen == {12, 24}


class Local(Scene):
    """A dataset under the keys of a local keyring, which another process can open, too."""

    @property
    def keys(self) -> MasterKeys:
        return MasterKeys(self.config)


def test_a_fresh_process_finds_none_of_its_keks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key_file(tmp_path / "key")
    keyring = KeyringConfig(tmp_path / "keyring.json", f"key-file:{tmp_path / 'key'}")
    KeyringFile.from_config(keyring).create("main", "pii")
    keys = {name: (uri.replace("memory", "local"),) for name, (uri,) in KEYS.items()}
    made = Local(str(tmp_path / "dataset"), config=Config(keys=keys, keyring=keyring))
    made.write(tree(tmp_path / "in"), policy=POLICY)
    report = cut(made, {"year": "2020"})
    assert [one.code for one in report.tried] == ["shredded"] * 4
    assert all(one.what.startswith("partition KEK ") for one in report.tried)
    with monkeypatch.context() as patched:
        patched.setattr("encpipe.lifecycle.shredpartitions.PartitionShred._is_done", lambda *_: True)
        report = cut(replace(made), {"year": "2021"})
    assert report.verdict == "incomplete"
    assert {left.why for left in report.remaining} == {"a fresh process opens it"}
