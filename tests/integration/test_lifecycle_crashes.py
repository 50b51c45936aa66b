"""A change of wrappings that is killed, raced or met by readers: the old state or the new one, no other."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import KEYS, Scene, ended, forked, ids, on_s3, people

import encpipe
from encpipe import Config, ConflictError, KeyNotFoundError, UntrustedKeyError
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
