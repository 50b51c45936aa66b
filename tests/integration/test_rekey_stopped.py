"""A re-key that is killed, raced or tampered with: nothing is lost or done twice, nobody's work undone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import Scene, ended, forked, ids, on_s3, people, save
from servers.seaweed import Seaweed
from test_rekey import active, found, opening, rekey
from test_resume import recorded, stop

import encpipe
from encpipe import ConflictError, EncpipeError, ManifestError, Policy, ShreddedError
from encpipe import journal as journals
from encpipe.config import TrustConfig
from encpipe.storage import s3_lease
from encpipe.testing import InMemoryKms

OLD, MORE = list(range(12)), list(range(20, 26))


def make(scene: Scene, folder: Path) -> Scene:
    """A first generation of two files; `memory:new` is trusted, too."""
    scene.config = replace(scene.config, trust=TrustConfig(("memory:new",)))
    scene.write(save(folder, people(0), people(6)))
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make(Scene(str(tmp_path / "dataset"), kms=InMemoryKms(["main", "pii", "new"])), tmp_path / "plain")


def again(scene: Scene, **more: Any) -> Any:
    return rekey(scene, workers=1, **more)


def assert_rekeyed(scene: Scene, before: dict[str, str], rows: list[int]) -> None:
    now = active(scene)
    assert all(now[name] != before[name] for name in before)
    assert ids(scene.table()) == rows
    scene.check_whole()


# Killed


def test_killed_at_any_step_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh(n: int) -> Scene:
        return make(
            Scene(str(tmp_path / f"d{n}"), kms=InMemoryKms(["main", "pii", "new"])), tmp_path / f"p{n}"
        )

    first = fresh(-1)
    all_steps = recorded(lambda: again(first))
    assert {step.split()[0] for step in all_steps} >= {"hold", "create", "create_file", "commit", "delete"}
    for n, step in enumerate(all_steps):
        here, when = fresh(n), f"killed before step {n}, {step}"
        before = active(here)
        stop(monkeypatch, lambda here=here: again(here), n)
        committed = found(here).core.generation == 2
        assert ids(here.table()) == OLD, when
        pending = here.objects("_encpipe/pending/")
        if committed and not any(path.endswith("journal.json") for path in pending):
            here.append(people(20))
            assert_rekeyed(here, before, OLD + MORE)
            continue
        with monkeypatch.context() as patched:
            log = steps.install(patched)
            report = again(here)
        done = sum(path.endswith(".sealed") for path in pending)
        assert (report.generation, report.resumed_files, report.files) == (2, done, 2), when
        assert log.count("create_file") == 2 - done, when
        assert_rekeyed(here, before, OLD)
        assert ids(here.table(generation=1)) == OLD, when


@pytest.mark.server
def test_on_s3_it_goes_on(
    seaweed: Seaweed, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 0.0)  # the killed owner's lease is over at once
    for n, at in enumerate(["create_file", "create _encpipe/files", "commit", "delete"]):
        here = make(on_s3(seaweed, f"s3://{bucket}/folder/{n}"), tmp_path / f"p{n}")
        before = active(here)
        stop(monkeypatch, lambda here=here: again(here), at, nth=2 if n == 0 else 1)
        assert again(here).resumed_files == (1 if n == 0 else 2)
        assert_rekeyed(here, before, OLD)


def test_after_its_commit_it_is_reported_as_done(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(monkeypatch, lambda: again(scene), "delete")
    keks = active(scene)
    report = again(scene)
    assert (report.generation, report.resumed_files, report.older_generations) == (2, 2, (1,))
    assert active(scene) == keks
    assert again(scene).generation == 3, "and this is another one"


def held(scene: Scene) -> Any:
    """Another writer works beside a re-key that is alive."""
    (journal,) = [path for path in scene.objects() if path.endswith("/journal.json")]
    return scene.storage().hold(journal.replace("journal.json", "lock"))


def stopped(scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Scene], object]) -> None:
    """A re-key is stopped with one of two files finished, and others do something in between."""
    stop(monkeypatch, lambda: again(scene), "create_file", nth=2)
    with held(scene):
        meanwhile(scene)


def appended_and_collected(scene: Scene) -> None:
    scene.append(people(20))
    encpipe.gc(scene.url, keep=1, grace=timedelta(0), **scene.access)


GOES_ON: dict[str, tuple[Callable[[Scene], object], list[int]]] = {
    "an append": (lambda scene: scene.append(people(20)), OLD + MORE),
    "two appends": (lambda scene: (scene.append(people(20, 2)), scene.append(people(22, 4))), OLD + MORE),
    "an append and gc": (appended_and_collected, OLD + MORE),
    "a re-wrap": (lambda scene: encpipe.rewrap(scene.url, **scene.access), OLD),
    "gc": (lambda scene: encpipe.gc(scene.url, keep=1, grace=timedelta(0), **scene.access), OLD),
}


@pytest.mark.parametrize(("meanwhile", "rows"), GOES_ON.values(), ids=GOES_ON)
def test_a_second_run_goes_on_after_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Scene], object], rows: list[int]
) -> None:
    before = active(scene)
    stopped(scene, monkeypatch, meanwhile)
    assert again(scene).resumed_files == 1
    assert_rekeyed(scene, before, rows)


def overwritten_with_no_rows(scene: Scene) -> object:
    return scene.write(people(0, 0), overwrite=True)


REFUSED: dict[str, tuple[Callable[[Scene], object], list[int]]] = {
    "an overwrite": (lambda scene: scene.write(people(20), overwrite=True), MORE),
    "an overwrite that leaves nothing": (overwritten_with_no_rows, []),
    "another policy": (
        lambda scene: scene.write(people(20), policy=Policy(columns={"pii": ("id", "name")}), overwrite=True),
        MORE,
    ),
}


@pytest.mark.parametrize(("meanwhile", "rows"), REFUSED.values(), ids=REFUSED)
def test_a_second_run_after_an_overwrite_needs_a_restart(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Scene], object], rows: list[int]
) -> None:
    before = active(scene)
    stopped(scene, monkeypatch, meanwhile)
    with pytest.raises(EncpipeError) as refused:
        again(scene)
    assert refused.value.code == "source-changed"
    assert again(scene, restart=True).resumed_files == 0
    assert_rekeyed(scene, before, rows)
    assert scene.verify().unlisted == ()


@pytest.mark.parametrize(
    "other", [{"key_names": ["pii"]}, {"to": {"pii": "memory:new"}}], ids=["key names", "keys"]
)
def test_another_rekey_does_not_go_on_with_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    stop(monkeypatch, lambda: again(scene), "create_file", nth=2)
    with pytest.raises(EncpipeError) as refused:
        again(scene, **other)
    assert refused.value.code == "source-changed"
    assert again(scene).resumed_files == 1


def test_a_revocation_between_two_runs_holds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    encpipe.grant(scene.url, "pii", "memory:new", **scene.access)
    stop(monkeypatch, lambda: again(scene), "create_file", nth=2)
    encpipe.revoke(scene.url, "pii", "memory:new", **scene.access)
    again(scene)
    assert opening(scene, "pii") == [("memory:pii", "1")]
    assert ids(scene.table()) == OLD


@pytest.mark.parametrize("what", ["journal cut", "journal edited", "record", "data file", "data file gone"])
def test_what_was_edited_meanwhile_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before, old = active(scene), set(scene.objects())
    stop(monkeypatch, lambda: again(scene), "create_file", nth=2)
    name = {"j": "journal.json", "r": "0.sealed", "d": ".parquet"}[what[0]]
    [path] = [
        scene.folder / p for p in scene.objects() if p.endswith(name) and ".tmp-" not in p and p not in old
    ]
    data = path.read_bytes()
    if what == "journal cut":
        path.write_bytes(data[:-1])
    elif what == "journal edited":
        path.write_bytes(data.replace(b'"created":"2', b'"created":"3'))
    elif what == "data file gone":
        path.unlink()
    else:
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    with pytest.raises(ManifestError) as refused:
        again(scene)
    assert refused.value.code == "journal"
    assert again(scene, restart=True).resumed_files == 0
    assert_rekeyed(scene, before, OLD)


def test_a_record_put_in_the_place_of_another_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(monkeypatch, lambda: again(scene), "create _encpipe/files")
    one, other = (scene.folder / p for p in scene.objects("_encpipe/pending/") if p.endswith(".sealed"))
    one.write_bytes(other.read_bytes())
    with pytest.raises(ManifestError) as refused:
        again(scene)
    assert refused.value.code == "journal"


def test_an_old_file_in_the_place_of_a_new_one_is_refused(scene: Scene) -> None:
    with scene.open() as dataset:
        old = [(scene.folder / f.path).read_bytes() for f in dataset.files]
    rekey(scene)
    with scene.open() as dataset:
        (scene.folder / dataset.files[0].path).write_bytes(old[0])
        with pytest.raises(EncpipeError) as refused:
            dataset.to_table()
    assert refused.value.exit_code == 4


def test_an_old_manifest_is_refused_by_who_pinned_the_new_one(scene: Scene, tmp_path: Path) -> None:
    path = scene.folder / "_encpipe/manifest.json"
    old = path.read_bytes()
    rekey(scene)
    scene.open(pin_store=tmp_path / "pins.json").close()
    path.write_bytes(old)
    with pytest.raises(EncpipeError) as refused:
        scene.open(pin_store=tmp_path / "pins.json")
    assert refused.value.code == "stale"


# Raced


def while_committing(
    monkeypatch: pytest.MonkeyPatch, other: Callable[[], object], at: str = "commit"
) -> steps.Log:
    """Just before the next commit of this process, `other` happens."""
    log = steps.install(monkeypatch)
    busy: list[int] = []

    def before(n: int, step: str) -> None:
        if step.startswith(at) and not busy:
            busy.append(n)
            other()

    log.before = before
    return log


@pytest.mark.parametrize(("meanwhile", "rows"), GOES_ON.values(), ids=GOES_ON)
def test_what_others_do_meanwhile_holds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Scene], object], rows: list[int]
) -> None:
    before = active(scene)
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: meanwhile(scene))
        report = again(scene)
    assert report.rows == len(rows)
    assert_rekeyed(scene, before, rows)
    with scene.open() as dataset:
        listed = {f.path for f in dataset.files}
    assert len(listed) == report.files


@pytest.mark.server
def test_an_append_on_s3_meanwhile_is_encrypted_anew_too(
    seaweed: Seaweed, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make(on_s3(seaweed, f"s3://{bucket}/folder"), tmp_path / "p")
    before = active(here)
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: here.append(people(20)))
        again(here)
    assert_rekeyed(here, before, OLD + MORE)


def test_stopped_while_it_catches_up_it_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when what was appended just before the commit is encrypted anew and not recorded yet."""
    before, log, appended = active(scene), steps.Log(), []

    def at(n: int, step: str) -> None:
        if step.startswith("commit") and not appended:
            appended.append(n)
            scene.append(people(20))
        elif appended and step.endswith("/2.sealed"):
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = at
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(lambda: again(scene))) == -signal.SIGKILL
    assert again(scene).resumed_files == 2
    assert_rekeyed(scene, before, OLD + MORE)


def test_a_revocation_meanwhile_is_not_undone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    encpipe.grant(scene.url, "pii", "memory:new", **scene.access)
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: encpipe.revoke(scene.url, "pii", "memory:new", **scene.access))
        again(scene)
    assert opening(scene, "pii") == [("memory:pii", "1")]
    assert ids(scene.table()) == OLD


def test_a_move_to_another_master_key_meanwhile_holds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        moving = {"to": {"pii": ["memory:new"]}, **scene.access}
        while_committing(patched, lambda: encpipe.rewrap(scene.url, **moving))
        again(scene)
    assert opening(scene, "pii") == [("memory:new", "1")]
    assert ids(scene.table()) == OLD


@pytest.mark.parametrize(("meanwhile", "rows"), REFUSED.values(), ids=REFUSED)
def test_an_overwrite_meanwhile_wins(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Scene], object], rows: list[int]
) -> None:
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: meanwhile(scene))
        with pytest.raises(ConflictError):
            again(scene)
    assert ids(scene.table()) == rows
    assert scene.verify().unlisted == ()
    scene.check_whole()


def test_of_two_rekeys_one_wins(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: again(scene, key_names=["pii"]))
        with pytest.raises(ConflictError):
            again(scene)
    assert ids(scene.table()) == OLD
    scene.check_whole()


def test_the_same_rekey_is_not_done_twice_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(monkeypatch, lambda: again(scene), "create_file", nth=2)
    with held(scene), pytest.raises(ConflictError) as refused:
        again(scene)
    assert refused.value.code == "locked"


@pytest.mark.parametrize("names", [None, ["pii"]], ids=["dataset", "key name"])
def test_a_shred_meanwhile_wins(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, names: list[str] | None
) -> None:
    confirm = found(scene).core.dataset_id
    with monkeypatch.context() as patched:
        while_committing(
            patched, lambda: encpipe.shred(scene.url, confirm=confirm, key_names=names, **scene.access)
        )
        with pytest.raises((ConflictError, ShreddedError)):
            again(scene)
    with pytest.raises(ShreddedError):
        scene.table(["name"])


def test_an_append_beside_a_rekey_is_refused_or_on_top(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are under the old KEKs: they are never listed in a generation of the new ones."""
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: again(scene))
        with pytest.raises(ConflictError):
            scene.append(people(20))
    assert ids(scene.table()) == OLD
    scene.append(people(20))
    assert ids(scene.table()) == OLD + MORE
    scene.check_whole()


def test_a_live_rekey_keeps_its_base_from_gc(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        while_committing(
            patched,
            lambda: encpipe.gc(scene.url, keep=1, grace=timedelta(0), **scene.access),
            at="open_input",
        )
        again(scene)
    assert ids(scene.table()) == OLD
    assert journals.writers(scene.storage()) == []


@pytest.mark.parametrize("names", [None, ["pii"]], ids=["all", "pii"])
def test_partitions_with_keys_of_their_own_that_are_appended_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None
) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    policy = Policy(columns={"pii": ("name",)}, partition_keys=("year",))
    save(tmp_path / "plain" / "year=2020", people(0), people(6))
    scene.write(tmp_path / "plain", policy=policy)
    save(tmp_path / "more" / "year=2021", people(20))
    with scene.open() as dataset:
        before = {kek_id for entry in dataset.files for kek_id in entry.partition_keks}
    with monkeypatch.context() as patched:
        while_committing(patched, lambda: scene.append(tmp_path / "more"))
        again(scene, key_names=names)
    assert ids(scene.table()) == OLD + MORE
    with scene.open() as dataset:
        now = {kek_id for entry in dataset.files for kek_id in entry.partition_keks}
    assert len(now) == 4, "one for each key name and year"
    assert len(before & now) == (0 if names is None else 1), "those of a key name that stays stay"
    scene.check_whole()
