"""A change of wrappings that is killed, raced or met by readers: the old state or the new one, no other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import KEYS, PII, Scene, ended, forked, ids, on_s3, people, save

import encpipe
from encpipe import Config, ConflictError, KeyNotFoundError, UntrustedKeyError
from encpipe import journal as journals
from encpipe.config import TrustConfig
from encpipe.lifecycle import KeysReport
from encpipe.state import read_manifest

MANIFEST = "_encpipe/manifest.json"
OLD = list(range(6))
BOTH = Config(
    keys={"footer": ("memory:main", "memory:new"), "pii": ("memory:pii",)}, trust=TrustConfig(("memory:new",))
)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """Six rows, wrapped by `memory:main` and `memory:pii`; everybody trusts `memory:new`, too."""
    if request.param == "local":
        made = Scene(str(tmp_path / "dataset"))
    else:
        bucket = request.getfixturevalue("bucket")
        made = on_s3(request.getfixturevalue("seaweed"), f"s3://{bucket}/folder")
    made.kms.create("new")
    made.config = replace(made.config, keys=BOTH.keys, trust=BOTH.trust)
    replace(made, config=replace(made.config, keys=KEYS)).write(people(0))
    return made


def rewrap(scene: Scene, **more: Any) -> KeysReport:
    return encpipe.rewrap(scene.url, to={"footer": ["memory:new"]}, **{**scene.access, **more})


def opening(scene: Scene) -> list[str]:
    """The master keys of the footer KEK."""
    storage = scene.storage()
    try:
        found = read_manifest(storage)[1]
    finally:
        storage.close()
    return sorted(w.master_key for w in found.wrappings[found.core.footer_kek.id])


def whole(scene: Scene) -> bytes:
    storage = scene.storage()
    try:
        return storage.read(MANIFEST, limit=1 << 24)
    finally:
        storage.close()


def test_killed_at_any_step_it_is_the_old_state_or_the_new(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        log = steps.install(patched)
        rewrap(scene, dry_run=True)
        dry = len(log.steps)
        rewrap(scene)
        count = len(log.steps) - dry
    assert opening(scene) == ["memory:new"]
    encpipe.rewrap(scene.url, to={"footer": ["memory:main"]}, **scene.access)
    seen = set()
    for n in range(count):
        before = whole(scene)
        with monkeypatch.context() as patched:
            log = steps.install(patched)
            log.before = steps.die_before(n)
            assert ended(forked(lambda: rewrap(scene))) == -signal.SIGKILL
        state = opening(scene)
        assert state in (["memory:main"], ["memory:new"])
        assert (state == ["memory:main"]) == (whole(scene) == before)
        seen.add(state[0])
        assert ids(scene.table()) == OLD
        rewrap(scene)
        assert opening(scene) == ["memory:new"]
        encpipe.rewrap(scene.url, to={"footer": ["memory:main"]}, **scene.access)
    assert seen == {"memory:main", "memory:new"}
    scene.check_whole()


def while_committing(monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
    """Just before the next commit of this process, `other` happens."""
    log = steps.install(monkeypatch)
    busy: list[int] = []

    def before(n: int, step: str) -> None:
        if step.startswith("commit") and not busy:
            busy.append(n)
            other()

    log.before = before


def test_a_rewrap_goes_on_top_of_an_append(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    while_committing(monkeypatch, lambda: scene.append(people(10)))
    report = rewrap(scene)
    assert report.kms_calls == 3  # the footer key once more, to check what the other committed; wrapped once
    assert (report.generation, report.revision) == (2, 3)
    assert opening(scene) == ["memory:new"]
    assert ids(scene.table()) == [*OLD, *range(10, 16)]
    scene.check_whole()


def test_an_append_goes_on_top_of_a_rewrap(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    while_committing(monkeypatch, lambda: rewrap(scene))
    assert scene.append(people(10)).generation == 2
    assert opening(scene) == ["memory:new"]
    assert ids(scene.table()) == [*OLD, *range(10, 16)]
    scene.check_whole()


def test_an_overwrite_goes_on_top_of_a_rewrap(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = replace(scene, config=replace(scene.config, keys=KEYS))
    while_committing(monkeypatch, lambda: rewrap(scene))
    assert writer.write(people(50), overwrite=True).generation == 2
    assert opening(scene) == ["memory:new"]
    assert ids(scene.table()) == list(range(50, 56))
    scene.check_whole()


def test_two_changes_at_once_both_hold(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    while_committing(monkeypatch, lambda: encpipe.grant(scene.url, "pii", "memory:new", **scene.access))
    rewrap(scene)
    assert opening(scene) == ["memory:new"]
    (pii,) = (kek for kek in scene.inspect().keks if kek.key_name == "pii")
    assert [w.master_key for w in pii.wrappings] == ["memory:pii", "memory:new"]
    scene.check_whole()


def test_others_that_are_always_first_are_a_conflict(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConflictError("another writer was first")

    monkeypatch.setattr(steps.Stepping, "commit", refuse)
    steps.install(monkeypatch)
    wraps = scene.kms.wraps
    with pytest.raises(ConflictError, match="first 20 times"):
        rewrap(scene)
    assert scene.kms.wraps == wraps + 1
    assert opening(scene) == ["memory:main"]


# Readers in flight


def test_a_handle_whose_wrapping_stops_working_reads_the_manifest_once_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    encpipe.grant(scene.url, "pii", "memory:new", **scene.access)
    encpipe.revoke(scene.url, "pii", "memory:new", **scene.access)
    log = steps.install(monkeypatch)
    reader = replace(scene, config=replace(scene.config, trust=TrustConfig(("memory:new",))))
    with reader.open() as dataset:
        encpipe.rewrap(scene.url, to={"pii": ["memory:new"]}, **scene.access)
        scene.kms.forget("pii")
        before = log.count("read", MANIFEST)
        assert dataset.to_table(["name"]).num_rows == 6
        assert log.count("read", MANIFEST) == before + 1
        assert dataset.to_table(["name"]).num_rows == 6
        assert log.count("read", MANIFEST) == before + 1


def test_a_handle_asks_again_by_age_and_finds_the_new_wrapping(scene: Scene) -> None:
    with scene.open(max_key_age=0.0) as dataset:
        assert ids(dataset.to_table()) == OLD
        rewrap(scene)
        scene.kms.forget("main")
        assert ids(dataset.to_table()) == OLD


def test_a_forked_child_finds_the_new_wrapping(scene: Scene) -> None:
    with scene.open() as dataset:
        encpipe.rewrap(scene.url, to={"pii": ["memory:new"]}, **scene.access)
        scene.kms.forget("pii")

        def read() -> None:
            assert dataset.to_table(["name"]).num_rows == 6

        assert ended(forked(read)) == 0


def test_a_refusal_that_stays_is_told_as_it_was(scene: Scene) -> None:
    with scene.open() as dataset:
        scene.kms.forget("pii")
        with pytest.raises(KeyNotFoundError):
            dataset.to_table(["name"])
        with pytest.raises(KeyNotFoundError):
            dataset.to_table(["name"])


def test_a_new_wrapping_that_is_not_trusted_is_refused(scene: Scene) -> None:
    reader = replace(scene, config=Config(keys=KEYS, tls=scene.config.tls))
    with reader.open() as dataset:
        encpipe.rewrap(scene.url, to={"pii": ["memory:new"]}, **scene.access)
        scene.kms.forget("pii")
        with pytest.raises(UntrustedKeyError):
            dataset.to_table(["name"])


# Stopped writes


def stopped_write(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """An overwrite under a KEK of its own, killed before its commit. Returns how to run it again."""
    source = save(tmp_path / "new", people(50))
    writer = replace(scene, config=Config(keys={**KEYS, "money": ("memory:main",)}, trust=BOTH.trust))
    policy = replace(PII, columns={**PII.columns, "money": ("id",)})

    def run() -> object:
        return writer.write(source, overwrite=True, workers=1, policy=policy)

    log = steps.Log()

    def before(n: int, step: str) -> None:
        if step.startswith("commit"):
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(run)) == -signal.SIGKILL
    return run


def test_the_journal_of_a_stopped_write_is_changed_too_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.kms.create("new")
    scene.write(people(0))
    run = stopped_write(scene, tmp_path, monkeypatch)
    scene.config = replace(BOTH, keys={**BOTH.keys, "money": ("memory:main",)})
    report = encpipe.rewrap(scene.url, to={"footer": ["memory:new"]}, **scene.access)
    assert report.leftovers == ()
    storage = scene.storage()
    (writer,) = journals.writers(storage)
    journal = journals.load(storage, writer).journal
    names = {kek.id: kek.key_name for kek in journal.keks}
    wrapped = {names[kek_id]: [w.master_key for w in some] for kek_id, some in journal.wrappings.items()}
    assert wrapped == {"footer": ["memory:new"], "pii": ["memory:pii"], "money": ["memory:main"]}
    scene.kms.rotate("main")
    scene.config = replace(scene.config, keys={**KEYS, "money": ("memory:main",)})
    assert encpipe.rewrap(scene.url, **scene.access).leftovers == ()
    journal = journals.load(storage, writer).journal
    versions = {names[kek_id]: [w.version for w in some] for kek_id, some in journal.wrappings.items()}
    assert versions == {"footer": ["2"], "pii": ["1"], "money": ["2"]}
    run()
    assert opening(scene) == ["memory:main"]
    assert ids(scene.table()) == list(range(50, 56))
    assert scene.inspect(use_keys=False).pending_writes == 0


def test_what_is_left_in_a_live_writers_journal_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.kms.create("new")
    scene.write(people(0))
    stopped_write(scene, tmp_path, monkeypatch)
    scene.config = BOTH
    storage = scene.storage()
    (writer,) = journals.writers(storage)
    with storage.hold(journals.lock_path(writer)):
        (left,) = rewrap(scene).leftovers
    assert (left.place, left.key_name, left.master_key) == (
        journals.journal_path(writer),
        "footer",
        "memory:main",
    )
    assert rewrap(scene).leftovers == ()


def test_a_temp_file_with_the_old_wrapping_is_told(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.kms.create("new")
    scene.write(people(0))
    scene.config = BOTH
    (scene.folder / "_encpipe" / ".tmp-0123").write_bytes(whole(scene))
    (left,) = rewrap(scene).leftovers
    assert (left.place, left.why) == ("_encpipe/.tmp-0123", "a temp file")


@pytest.mark.server
def test_older_versions_in_a_bucket_are_told(request: pytest.FixtureRequest) -> None:
    seaweed, bucket = request.getfixturevalue("seaweed"), request.getfixturevalue("bucket")
    client = seaweed.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.close()
    scene = on_s3(seaweed, f"s3://{bucket}/folder")
    scene.kms.create("new")
    scene.write(people(0))
    scene.config = replace(scene.config, keys=BOTH.keys, trust=BOTH.trust)
    left = rewrap(scene).leftovers
    assert {(entry.key_name, entry.master_key, entry.why) for entry in left} == {
        ("footer", "memory:main", "an older version")
    }
    assert {entry.place.partition("?")[0].rpartition("/")[2] for entry in left} == {
        "manifest.json",
        "journal.json",
    }
