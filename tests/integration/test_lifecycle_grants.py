"""Grant and revoke: more wrappings, or fewer, of the same KEKs; never none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scene import KEYS, Scene, ids, people

import encpipe
from encpipe import (
    Config,
    ConfigError,
    KeyNotFoundError,
    MasterKeys,
    ShreddedError,
    UntrustedKeyError,
    UnwrapError,
)
from encpipe.state import read_manifest
from encpipe.testing import FaultyKms, InMemoryKms

MANIFEST = "_encpipe/manifest.json"
ROWS = list(range(6))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(str(tmp_path / "dataset"), kms=InMemoryKms(["main", "pii", "glass", "region"]))
    made.write(people(0))
    return made


def somebody(scene: Scene, **keys: str) -> Scene:
    """A reader whose configuration names just these master keys."""
    return replace(scene, config=Config(keys={name: (uri,) for name, uri in keys.items()}))


def opening(scene: Scene, key_name: str) -> set[str]:
    storage = scene.storage()
    found = read_manifest(storage)[1]
    storage.close()
    return {wrapped.master_key for wrapped in found.wrappings[found.core.active(key_name).id]}


def test_a_granted_master_key_opens_and_the_others_still_do(scene: Scene) -> None:
    before = scene.folder.joinpath(MANIFEST).read_bytes().split(b"\n")[0]
    report = encpipe.grant(scene.url, "footer", "memory:glass", **scene.access)
    (change,) = report.changes
    assert (change.added, change.removed, change.kept) == (
        (("memory:glass", "1"),),
        (),
        (("memory:main", "1"),),
    )
    assert report.kms_calls == 2
    assert scene.folder.joinpath(MANIFEST).read_bytes().split(b"\n")[0] == before
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    assert ids(scene.table()) == ROWS
    glass = somebody(scene, footer="memory:glass", pii="memory:glass")
    assert glass.table(["name"]).num_rows == 6
    scene.kms.forget("main")
    scene.kms.forget("pii")
    assert ids(glass.table()) == ROWS


def test_the_footer_key_alone_opens_all_other_columns(scene: Scene) -> None:
    encpipe.grant(scene.url, "footer", "memory:region", **scene.access)
    reader = somebody(scene, footer="memory:region")
    assert reader.table(on_missing_key="skip").schema.names == ["id"]
    with pytest.raises(UntrustedKeyError):
        reader.table(["name"])


def test_a_grant_twice_is_one_wrapping(scene: Scene) -> None:
    for _ in range(2):
        encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
        scene.kms.rotate("glass")
    assert opening(scene, "pii") == {"memory:pii", "memory:glass"}
    versions = {w.version for kek in scene.inspect().keks for w in kek.wrappings if "glass" in w.master_key}
    assert versions == {"2"}


def test_a_revoked_master_key_opens_no_more(scene: Scene) -> None:
    for name in ("footer", "pii"):
        encpipe.grant(scene.url, name, "memory:glass", **scene.access)
    before = scene.kms.wraps
    report = encpipe.revoke(scene.url, "pii", "memory:glass", **scene.access)
    assert report.changes[0].removed == (("memory:glass", "1"),)
    assert (report.kms_calls, scene.kms.wraps) == (2, before)  # footer key; the wrapping that stays
    assert report.leftovers == ()
    glass = somebody(scene, footer="memory:glass", pii="memory:glass")
    assert ids(glass.table(["id"])) == ROWS
    with pytest.raises(UntrustedKeyError):
        glass.table(["name"])
    assert scene.table(["name"]).num_rows == 6


def test_never_the_last_wrapping(scene: Scene) -> None:
    before = scene.folder.joinpath(MANIFEST).read_bytes()
    for name, uri in (("footer", "memory:main"), ("pii", "memory:pii")):
        with pytest.raises(ConfigError) as refused:
            encpipe.revoke(scene.url, name, uri, **scene.access)
        assert refused.value.code == "last-wrapping"
    assert scene.folder.joinpath(MANIFEST).read_bytes() == before


@pytest.mark.parametrize("name", ["footer", "pii"])
def test_never_the_last_wrapping_that_works(scene: Scene, name: str) -> None:
    uri = scene.config.keys[name][0]
    encpipe.grant(scene.url, name, "memory:glass", **scene.access)
    before = scene.folder.joinpath(MANIFEST).read_bytes()
    both = replace(scene, config=Config(keys={**KEYS, name: (uri, "memory:glass")}))
    with pytest.raises(ConfigError) as refused:  # not to this configuration, which cannot try memory:glass
        encpipe.revoke(scene.url, name, uri, **scene.access)
    assert refused.value.code == "last-wrapping"
    kms = FaultyKms(scene.kms)
    kms.fail("wrong-key", "memory:glass")
    faulty = {**both.access, "master_keys": MasterKeys(both.config, extra={"memory": kms})}
    with pytest.raises(ConfigError) as refused:
        encpipe.revoke(scene.url, name, uri, **faulty)
    assert refused.value.code == "last-wrapping"
    assert scene.folder.joinpath(MANIFEST).read_bytes() == before
    encpipe.revoke(scene.url, name, uri, **both.access)
    assert opening(scene, name) == {"memory:glass"}
    encpipe.grant(scene.url, name, uri, **both.access)
    scene.kms.forget("glass")
    with pytest.raises(ConfigError) as refused:
        encpipe.revoke(scene.url, name, uri, **both.access)
    assert refused.value.code == "last-wrapping"
    encpipe.revoke(scene.url, name, "memory:glass", **both.access)
    assert ids(scene.table()) == ROWS


def test_never_the_last_wrapping_of_an_older_generations_kek(scene: Scene) -> None:
    moved = replace(scene, config=Config(keys={**KEYS, "pii": ("memory:glass", "memory:pii")}))
    # a new KEK, which both open; memory:pii alone opens the old one
    moved.write(people(50), overwrite=True)
    assert {kek.state for kek in moved.inspect().keks if kek.key_name == "pii"} == {"active", "retired"}
    with pytest.raises(ConfigError) as refused:
        encpipe.revoke(scene.url, "pii", "memory:pii", **moved.access)
    assert refused.value.code == "last-wrapping"
    encpipe.grant(scene.url, "pii", "memory:glass", **moved.access)
    encpipe.revoke(scene.url, "pii", "memory:pii", **moved.access)
    scene.kms.forget("pii")
    assert moved.table(["name"], generation=1).num_rows == 6


def test_revoking_what_was_never_granted_says_what_there_is(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="memory:pii") as refused:
        encpipe.revoke(scene.url, "pii", "memory:glas", **scene.access)
    assert refused.value.code == "no-wrapping"
    with pytest.raises(ConfigError, match="no key name 'money'"):
        encpipe.revoke(scene.url, "money", "memory:pii", **scene.access)


def test_what_was_shredded_gets_no_wrapping(scene: Scene) -> None:
    encpipe.shred(scene.url, confirm=scene.open().dataset_id, key_names=["pii"], **scene.access)
    before = scene.folder.joinpath(MANIFEST).read_bytes()
    for change in (
        lambda: encpipe.grant(scene.url, "pii", "memory:glass", **scene.access),
        lambda: encpipe.rewrap(scene.url, key_names=["pii"], **scene.access),
    ):
        with pytest.raises(ShreddedError, match="pii"):
            change()
    assert scene.folder.joinpath(MANIFEST).read_bytes() == before
    assert [change.key_name for change in encpipe.rewrap(scene.url, **scene.access).changes] == ["footer"]


def test_a_dry_run_of_a_revocation_changes_nothing(scene: Scene) -> None:
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    before = scene.folder.joinpath(MANIFEST).read_bytes()
    report = encpipe.revoke(scene.url, "pii", "memory:glass", dry_run=True, **scene.access)
    assert report.changes[0].removed == (("memory:glass", "1"),)
    assert scene.folder.joinpath(MANIFEST).read_bytes() == before


def test_a_grant_is_of_the_committed_kek_or_not_at_all(scene: Scene) -> None:
    kms = FaultyKms(scene.kms)
    kms.fail("wrong-key", "memory:pii")
    before = scene.folder.joinpath(MANIFEST).read_bytes()
    access = {**scene.access, "master_keys": MasterKeys(scene.config, extra={"memory": kms})}
    with pytest.raises(UnwrapError) as refused:
        encpipe.grant(scene.url, "pii", "memory:glass", **access)
    assert refused.value.code == "kek-commitment"
    assert kms.wraps == 0
    with pytest.raises(KeyNotFoundError):
        encpipe.grant(scene.url, "pii", "memory:nobody", **scene.access)
    assert scene.folder.joinpath(MANIFEST).read_bytes() == before


def test_inspect_shows_who_can_open_what(scene: Scene) -> None:
    encpipe.grant(scene.url, "footer", "memory:glass", **scene.access)
    found = scene.inspect()
    assert {(o.master_key, o.key_names, o.columns) for o in found.openers} == {
        ("memory:main", ("footer",), ("id",)),
        ("memory:glass", ("footer",), ("id",)),
        ("memory:pii", ("pii",), ("name",)),
    }
    assert {w.age_days for kek in found.keks for w in kek.wrappings} == {0}
    assert {kek.rewrap for kek in found.keks} == {""}
    scene.kms.rotate("pii")
    assert [kek.rewrap for kek in scene.inspect(use_keys=False).keks] == ["", "newer version"]
