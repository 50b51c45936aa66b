"""A shred that is killed, and writers in flight: what was shredded is never opened again by a commit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import steps
from scene import PII, Scene, ended, forked, ids, on_s3, people, save
from test_shred import manifest_of, shred, states

import encpipe
from encpipe import ConflictError, ShreddedError
from encpipe import journal as journals

MANIFEST = "_encpipe/manifest.json"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    if request.param == "local":
        made = Scene(str(tmp_path / "dataset"))
    else:
        bucket = request.getfixturevalue("bucket")
        made = on_s3(request.getfixturevalue("seaweed"), f"s3://{bucket}/folder")
    made.write(people(0))
    return made


@pytest.fixture
def local(tmp_path: Path) -> Scene:
    made = Scene(str(tmp_path / "dataset"))
    made.write(people(0))
    return made


def at_commit(monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
    """Just before the next commit of this process, `other` happens."""
    log = steps.install(monkeypatch)
    done: list[str] = []

    def before(n: int, step: str) -> None:
        if step == f"commit {MANIFEST}" and not done:
            done.append(step)
            other()

    log.before = before


def stopped_write(scene: Scene, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overwrite that was killed before its commit."""
    log = steps.Log()

    def before(n: int, step: str) -> None:
        if step == f"commit {MANIFEST}":
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        pid = forked(lambda: scene.write(source, overwrite=True, workers=1))
        assert ended(pid) == -signal.SIGKILL


def writers(scene: Scene) -> list[str]:
    storage = scene.storage()
    try:
        return journals.writers(storage)
    finally:
        storage.close()


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_killed_at_any_step_the_next_run_does_the_rest(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    source = save(tmp_path / "new", people(50))
    whole = {path: (local.folder / path).read_bytes() for path in local.objects()}
    seen = set()
    n = 0
    while True:
        local = local.at(str(tmp_path / f"copy-{n}"))
        for path, data in whole.items():
            (local.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (local.folder / path).write_bytes(data)
        stopped_write(local, source, monkeypatch)
        with monkeypatch.context() as patched:
            log = steps.install(patched)
            log.before = steps.die_before(n)
            died = ended(forked(partial(shred, local, *names))) == -signal.SIGKILL
        state = states(local)["pii"]
        seen.add(state)
        if state == "active":
            assert ids(local.table()) == list(range(6))
        else:
            with pytest.raises(ShreddedError):
                local.table(["name"])
        assert shred(local, *names).verdict == "removed"
        assert writers(local) == []
        assert states(local)["pii"] == "shredded"
        assert manifest_of(local).core.generation == 2
        if not died:
            break
        n += 1
    assert n > 5
    assert seen == {"active", "shredded"}


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_an_append_in_flight_loses(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    at_commit(monkeypatch, lambda: shred(scene, *names))
    with pytest.raises((ConflictError, ShreddedError)):
        scene.append(people(10))
    assert states(scene)["pii"] == "shredded"
    assert writers(scene) == []
    assert len(scene.objects("data/")) == 1
    if names:
        assert ids(scene.table(["id"])) == list(range(6))


@pytest.mark.parametrize("names", [(), ("pii",)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_begins_its_journal_too_late_drops_it(
    local: Scene, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], overwrite: bool
) -> None:
    log = steps.install(monkeypatch)

    def before(n: int, step: str) -> None:
        if step == f"create {journals.FOLDER}ID/journal.json":
            log.before = lambda n, step: None
            assert shred(local, *names).verdict == "removed"

    log.before = before
    with pytest.raises(ConflictError):
        local.write(people(10), overwrite=True) if overwrite else local.append(people(10))
    assert local.objects(journals.FOLDER) == []
    assert len(local.objects("data/")) == 1
    assert log.count("create_file") == 0
    assert shred(local, *names).removed == ()


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_an_overwrite_in_flight_loses(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    scene.kms.create("money")
    keys = {**scene.config.keys, "money": ("memory:money",)}
    writer = replace(scene, config=replace(scene.config, keys=keys))
    policy = replace(PII, columns={"pii": ("name",), "money": ("id",)})
    at_commit(monkeypatch, lambda: shred(scene, *names))
    with pytest.raises((ConflictError, ShreddedError)):
        writer.write(people(10), overwrite=True, policy=policy)
    assert "money" not in states(scene)
    assert states(scene)["pii"] == "shredded"
    assert writers(scene) == []


def test_a_rewrap_in_flight_does_not_bring_a_wrapping_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.kms.rotate("main")
    at_commit(monkeypatch, lambda: shred(scene, "pii"))
    encpipe.rewrap(scene.url, **scene.access)
    found = manifest_of(scene)
    assert {w.version for some in found.wrappings.values() for w in some} == {"2"}
    assert set(found.wrappings) == {found.core.footer_kek.id}


def test_a_rewrap_in_flight_that_names_the_key_name_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.kms.create("new")
    at_commit(monkeypatch, lambda: shred(scene, "pii"))
    with pytest.raises(ShreddedError):
        encpipe.rewrap(scene.url, to={"pii": "memory:new", "footer": "memory:new"}, **scene.access)
    found = manifest_of(scene)
    assert {w.master_key for some in found.wrappings.values() for w in some} == {"memory:main"}
    assert set(found.wrappings) == {found.core.footer_kek.id}


@pytest.mark.parametrize(
    "other",
    [
        lambda scene: encpipe.rewrap(scene.url, to={"footer": "memory:pii"}, **scene.access),
        lambda scene: encpipe.grant(scene.url, "footer", "memory:pii", **scene.access),
        lambda scene: encpipe.gc(scene.url, keep=1, **scene.access),
    ],
)
def test_a_change_of_the_manifest_in_flight_meets_the_tombstone(
    local: Scene, monkeypatch: pytest.MonkeyPatch, other: Callable[[Scene], object]
) -> None:
    local.append(people(10))
    at_commit(monkeypatch, lambda: shred(local))
    with pytest.raises(ShreddedError):
        other(local)
    assert manifest_of(local).wrappings == {}


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_it_goes_on_top_of_what_others_commit_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    at_commit(monkeypatch, lambda: scene.append(people(10)))
    assert shred(scene, *names).generation == 3
    assert states(scene)["pii"] == "shredded"
    if names:
        assert ids(scene.table(["id"])) == [*range(6), *range(10, 16)]


def test_a_key_name_that_an_overwrite_brings_meanwhile_goes_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.kms.create("new")
    keys = {**scene.config.keys, "pii": ("memory:new",)}
    writer = replace(scene, config=replace(scene.config, keys=keys))
    at_commit(monkeypatch, lambda: writer.write(people(10), overwrite=True))
    report = shred(scene, "pii")
    assert sorted(report.master_keys) == ["memory:new", "memory:pii"]
    with pytest.raises(ShreddedError):
        scene.table(["name"])


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_a_stopped_write_goes_and_cannot_go_on(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    source = save(tmp_path / "new", people(50))
    stopped_write(local, source, monkeypatch)
    (writer,) = writers(local)
    report = shred(local, *names)
    assert (report.verdict, report.removed) == ("removed", (journals.journal_path(writer),))
    assert local.objects("_encpipe/pending/") == []


def test_a_live_writer_loses_its_journal(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "new", people(50))
    stopped_write(local, source, monkeypatch)
    (writer,) = writers(local)
    storage = local.storage()
    with storage.hold(journals.lock_path(writer)):
        assert shred(local).verdict == "removed"
        assert local.objects("_encpipe/pending/") == [f"_encpipe/pending/{writer}/0.sealed"]
    assert writers(local) == []


def test_a_handle_that_is_open_reads_on(local: Scene) -> None:
    with local.open() as dataset:
        assert dataset.to_table().num_rows == 6
        shred(local)
        assert dataset.to_table().num_rows == 6
