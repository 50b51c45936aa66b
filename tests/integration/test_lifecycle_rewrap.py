"""Re-wrap: other wrappings of the same KEKs, nothing else: files, core, pins and states stay as they were."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from scene import KEYS, Scene, ids, people, save

import encpipe
from encpipe import (
    Config,
    ConfigError,
    KeyNotFoundError,
    KmsUnavailableError,
    MasterKeys,
    UntrustedKeyError,
    UnwrapError,
)
from encpipe import manifest as manifests
from encpipe.config import TrustConfig
from encpipe.lifecycle import KeysReport
from encpipe.manifest import Manifest
from encpipe.pins import PinStore
from encpipe.state import read_manifest
from encpipe.testing import FaultyKms, InMemoryKms
from encpipe.torch import Loader

MANIFEST = "_encpipe/manifest.json"
ROWS = list(range(12))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Two generations of two files, wrapped by `memory:main` and `memory:pii`; `memory:new` is there too."""
    made = Scene(str(tmp_path / "dataset"), kms=InMemoryKms(["main", "pii", "new", "other"]))
    made.write(save(tmp_path / "first", people(0)))
    made.append(save(tmp_path / "second", people(6)))
    return made


def rewrap(scene: Scene, **more: Any) -> KeysReport:
    return encpipe.rewrap(scene.url, **{**scene.access, **more})


def configured(scene: Scene, **keys: tuple[str, ...]) -> Scene:
    """The same dataset for somebody with these master keys."""
    trust = TrustConfig(("memory:main", "memory:pii"))
    return replace(scene, config=Config(keys={**KEYS, **keys}, trust=trust))


def found(scene: Scene) -> Manifest:
    storage = scene.storage()
    made = read_manifest(storage)[1]
    storage.close()
    return made


def hashes(scene: Scene, *, without: str = MANIFEST) -> dict[str, str]:
    """Every object but the manifest and the lock."""
    paths = (path for path in scene.folder.rglob("*") if path.is_file() and path.name != "lock")
    hashed = {str(p.relative_to(scene.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    hashed.pop(without)
    return hashed


def opens(scene: Scene) -> dict[str, set[tuple[str, str]]]:
    """Key name -> (master key, version) of all its wrappings."""
    made = found(scene)
    names = {kek.id: kek.key_name for kek in made.core.keks}
    opening: dict[str, set[tuple[str, str]]] = {}
    for kek_id, some in made.wrappings.items():
        opening.setdefault(names[kek_id], set()).update((w.master_key, w.version) for w in some)
    return opening


def test_data_files_and_core_stay_byte_for_byte(scene: Scene) -> None:
    before, core, macs = hashes(scene), found(scene).head.line, found(scene).head.macs
    scene.kms.rotate("main")
    scene.kms.rotate("pii")
    report = rewrap(scene)
    after = found(scene)
    assert hashes(scene) == before
    assert (after.head.line, after.head.macs) == (core, macs)
    assert (after.revision, report.revision, report.generation) == (3, 3, 2)
    assert opens(scene) == {"footer": {("memory:main", "2")}, "pii": {("memory:pii", "2")}}
    assert report.core_digest == after.head.digest
    assert report.leftovers == ()
    assert [(c.key_name, c.added, c.removed, c.kept) for c in report.changes] == [
        ("footer", (("memory:main", "2"),), (("memory:main", "1"),), ()),
        ("pii", (("memory:pii", "2"),), (("memory:pii", "1"),), ()),
    ]
    scene.check_whole()
    assert ids(scene.table()) == ROWS


def test_two_calls_for_each_key_name(scene: Scene) -> None:
    before = scene.kms.wraps, scene.kms.unwraps
    assert rewrap(scene).kms_calls == 4
    assert (scene.kms.wraps - before[0], scene.kms.unwraps - before[1]) == (2, 2)


def test_pins_and_resume_states_stay_valid(scene: Scene, tmp_path: Path) -> None:
    def loader() -> Loader:
        return Loader(scene.url, 2, shuffle=True, seed=3, **scene.access)

    store = tmp_path / "pins"
    with scene.open(pin_store=store) as dataset:
        digest, dataset_id = dataset.core_digest, dataset.dataset_id
    with loader() as running:
        seen = [n for batch in itertools.islice(running, 3) for n in batch["id"].tolist()]
        state = json.loads(json.dumps(running.state_dict()))
    rewrap(scene)
    pins = {"expect_dataset": dataset_id, "min_generation": 2, "min_revision": 2, "expect_core": digest}
    assert ids(scene.table(pin_store=store, **pins)) == ROWS
    with loader() as resumed:
        resumed.load_state_dict(state)
        assert sorted(seen + [n for batch in resumed for n in batch["id"].tolist()]) == ROWS
    with pytest.raises(encpipe.StaleDatasetError):  # the store has seen the newer revision
        PinStore(store).check_and_record(scene.url, manifests.parse(older(scene)))


def older(scene: Scene) -> bytes:
    """The manifest as the storage could put it back: the revision before."""
    made = found(scene)
    with scene.open() as dataset:
        footer_kek = dataset._state.keys.kek(made.core.footer_kek.id)
    return manifests.rebuild(
        made, revision=2, wrappings=made.wrappings, retained=made.retained, footer_kek=footer_kek
    )


def test_to_another_master_key_and_back(scene: Scene) -> None:
    report = rewrap(scene, to={"pii": ["memory:new"]})
    assert opens(scene) == {"footer": {("memory:main", "1")}, "pii": {("memory:new", "1")}}
    assert [c.key_name for c in report.changes] == ["pii"]
    with pytest.raises(UntrustedKeyError):
        scene.table(["name"])
    reader = configured(scene, pii=("memory:new",))
    assert reader.table(["name"]).num_rows == 12
    rewrap(configured(scene, pii=("memory:pii", "memory:new")), to={"pii": ["memory:pii"]})
    assert opens(scene)["pii"] == {("memory:pii", "1")}
    assert ids(scene.table()) == ROWS


def test_to_what_the_configuration_names_first(scene: Scene) -> None:
    moved = configured(scene, footer=("memory:new",), pii=("memory:other",))
    assert {c.kept for c in rewrap(moved).changes} == {()}
    assert opens(scene) == {"footer": {("memory:new", "1")}, "pii": {("memory:other", "1")}}
    scene.kms.forget("main")
    scene.kms.forget("pii")
    assert ids(moved.table()) == ROWS


def test_the_configurations_further_master_keys_keep_what_they_open(scene: Scene) -> None:
    rewrap(configured(scene, footer=("memory:new", "memory:main")), key_names=["footer"])
    assert opens(scene)["footer"] == {("memory:new", "1"), ("memory:main", "1")}


def test_other_wrappings_stay(scene: Scene) -> None:
    encpipe.grant(scene.url, "footer", "memory:other", **scene.access)
    scene.kms.rotate("main")
    (change,) = rewrap(scene, key_names=["footer"]).changes
    assert change.kept == (("memory:other", "1"),)
    assert opens(scene)["footer"] == {("memory:main", "2"), ("memory:other", "1")}


@pytest.mark.parametrize("to", [None, {"footer": "memory:new"}], ids=["rotation", "move"])
def test_a_break_glass_key_that_opens_first_stays(scene: Scene, to: dict[str, str] | None) -> None:
    encpipe.grant(scene.url, "footer", "memory:other", **scene.access)
    scene.kms.rotate("main")
    trusting = replace(scene, config=Config(keys=dict(KEYS), trust=TrustConfig(("memory:other",))))
    (change,) = rewrap(trusting, key_names=["footer"], to=to).changes
    assert change.kept == (("memory:other", "1"),)
    assert opens(scene)["footer"] == {change.added[0], ("memory:other", "1")}
    assert change.added[0][0] == ("memory:new" if to else "memory:main")


def test_several_master_keys_at_once(scene: Scene) -> None:
    rewrap(scene, to={"pii": ["memory:new", "memory:other"]})
    assert opens(scene)["pii"] == {("memory:new", "1"), ("memory:other", "1")}
    rewrap(configured(scene, pii=("memory:new",)), to={"pii": "memory:pii"})
    assert opens(scene)["pii"] == {("memory:pii", "1"), ("memory:other", "1")}


def test_keks_that_only_older_generations_use_are_rewrapped_too(scene: Scene) -> None:
    moved = configured(scene, pii=("memory:new",))
    moved.write(people(100), overwrite=True)
    assert {kek.state for kek in found(scene).core.keks if kek.key_name == "pii"} == {"active", "retired"}
    report = rewrap(moved)
    assert [c.key_name for c in report.changes] == ["footer", "pii", "pii"]
    scene.kms.forget("pii")
    assert ids(moved.table(generation=2)) == ROWS
    assert moved.table(["name"], generation=2).num_rows == 12


def test_a_dry_run_changes_nothing_and_wraps_nothing(scene: Scene) -> None:
    before, wraps = (scene.folder / MANIFEST).read_bytes(), scene.kms.wraps
    everything = hashes(scene)
    report = rewrap(scene, to={"footer": ["memory:new"]}, dry_run=True)
    assert (report.dry_run, report.bytes_written, report.revision) == (True, 0, 2)
    (change,) = report.changes
    assert (change.added, change.removed) == ((("memory:new", ""),), (("memory:main", "1"),))
    assert (scene.folder / MANIFEST).read_bytes() == before
    assert hashes(scene) == everything
    assert scene.kms.wraps == wraps


def test_by_age_or_version_only_what_is_due(scene: Scene) -> None:
    year = timedelta(days=365)
    assert encpipe.needs_rewrap(scene.url, older_than=year, **scene.access) == ()
    assert rewrap(scene, older_than=year).changes == ()
    scene.kms.rotate("pii")
    (due,) = encpipe.needs_rewrap(scene.url, older_than=year, **scene.access)
    assert (due.key_name, due.master_key, due.version, due.why) == ("pii", "memory:pii", "1", "newer version")
    assert [c.key_name for c in rewrap(scene, older_than=year).changes] == ["pii"]
    moved = configured(scene, footer=("memory:new",))
    assert [d.why for d in encpipe.needs_rewrap(scene.url, **moved.access)] == ["another key"]
    due_now = encpipe.needs_rewrap(scene.url, older_than=timedelta(seconds=-5), **scene.access)
    assert {d.why for d in due_now} == {"age"}
    assert len(rewrap(scene, older_than=timedelta(seconds=-5)).changes) == 2


def test_whether_a_rewrap_is_needed_is_told_without_a_call(scene: Scene) -> None:
    before = scene.kms.unwraps, scene.kms.wraps
    encpipe.needs_rewrap(scene.url, older_than=timedelta(0), **scene.access)
    assert (scene.kms.unwraps, scene.kms.wraps) == before


# Refusals: each leaves the manifest as it was


def unchanged(scene: Scene, refused: type[Exception], work: Callable[[], object], **told: str) -> Any:
    before = (scene.folder / MANIFEST).read_bytes()
    with pytest.raises(refused, **told) as caught:  # type: ignore[call-overload]  # match= or nothing
        work()
    assert (scene.folder / MANIFEST).read_bytes() == before
    return caught.value


def faulty(scene: Scene) -> tuple[FaultyKms, dict[str, Any]]:
    kms = FaultyKms(scene.kms)
    return kms, {"master_keys": MasterKeys(scene.config, extra={"memory": kms})}


def test_a_service_that_answers_with_another_key_is_found_out_before_it_is_wrapped(scene: Scene) -> None:
    kms, access = faulty(scene)
    kms.fail("wrong-key", "memory:pii")
    error = unchanged(scene, UnwrapError, lambda: rewrap(scene, **access))
    assert error.code == "kek-commitment"
    assert kms.wraps <= 1


@pytest.mark.parametrize("fault", ["unavailable", "absent", "denied", "error"])
def test_a_new_master_key_that_does_not_wrap_changes_nothing(scene: Scene, fault: Any) -> None:
    kms, access = faulty(scene)
    kms.fail(fault, "memory:new")
    error = unchanged(scene, encpipe.KmsError, lambda: rewrap(scene, to={"pii": ["memory:new"]}, **access))
    assert fault == "error" or error.code != "kms"


def test_a_missing_new_master_key_changes_nothing(scene: Scene) -> None:
    unchanged(scene, KeyNotFoundError, lambda: rewrap(scene, to={"pii": ["memory:nobody"]}))


def test_an_outage_of_the_old_one_changes_nothing(scene: Scene) -> None:
    kms, access = faulty(scene)
    kms.fail("unavailable", "memory:pii")
    unchanged(scene, KmsUnavailableError, lambda: rewrap(scene, to={"pii": ["memory:new"]}, **access))


def test_who_lacks_a_key_rewraps_the_others_only(scene: Scene) -> None:
    reader = scene.knowing("footer")
    unchanged(scene, ConfigError, lambda: rewrap(reader))
    rewrap(reader, key_names=["footer"])
    assert found(scene).revision == 3


def test_a_key_name_the_dataset_does_not_have_is_refused(scene: Scene) -> None:
    error = unchanged(scene, ConfigError, lambda: rewrap(scene, key_names=["money"]))
    assert "footer, pii" in error.message


def test_an_edited_manifest_is_not_rewrapped(scene: Scene) -> None:
    path = scene.folder / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"revision":2', b'"revision":7'))
    unchanged(scene, encpipe.ManifestError, lambda: rewrap(scene))


def test_no_key_is_in_a_report(scene: Scene) -> None:
    report = rewrap(scene)
    with scene.open() as dataset:
        keks = [dataset._state.keys.kek(kek.id).reveal() for kek in dataset._state.view.core.keks]
    shown = repr(report) + json.dumps(report.as_json())
    for kek in keks:
        assert kek.hex() not in shown
        assert repr(kek) not in shown


def test_a_kek_that_only_a_retained_core_names_is_rewrapped_and_checked(scene: Scene) -> None:
    made = found(scene)
    with scene.open() as dataset:
        keks = {kek.id: dataset._state.keys.kek(kek.id) for kek in made.core.keks}
    core = replace(made.core, generation=3, keks=(made.core.footer_kek,))
    data = manifests.build(
        core, revision=3, wrappings=made.wrappings, retained=made.history, keks=keks, keys_raw=made.keys_raw
    )
    (scene.folder / MANIFEST).write_bytes(data)
    scene.kms.rotate("pii")
    assert [c.added for c in rewrap(scene, key_names=["pii"]).changes] == [(("memory:pii", "2"),)]
    kms, access = faulty(scene)
    kms.fail("wrong-key", "memory:pii")
    unchanged(scene, UnwrapError, lambda: rewrap(scene, key_names=["pii"], **access))
