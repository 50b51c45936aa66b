"""Pins: an older or another dataset than the one known is refused."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from specimen import DATASET_ID, Specimen

from encpipe import pins as pins_module
from encpipe.errors import ConfigError, StaleDatasetError
from encpipe.manifest import Manifest
from encpipe.pins import Pins, PinStore, canonical_url

ORIGINAL = Specimen()
NOW = ORIGINAL.parse()
URL = "s3://bucket/dataset"


def state(**changes: Any) -> Manifest:
    """The dataset with parts of its state changed; nobody checks a MAC here."""
    sim = ORIGINAL.fork()
    for name, value in changes.items():
        line = sim.keys if name == "revision" else sim.core
        line[name] = value
    sim.keys["retained"] = []
    return sim.parse()


HOLDS = {
    "nothing pinned": Pins(),
    "the dataset": Pins(expect_dataset=DATASET_ID),
    "this generation": Pins(min_generation=3),
    "an older generation": Pins(min_generation=1),
    "this revision": Pins(min_revision=8),
    "this core": Pins(expect_core=NOW.head.digest),
    "all": Pins(DATASET_ID, 3, 8, NOW.head.digest),
    "zeros": Pins(min_generation=0, min_revision=0),
}


@pytest.mark.parametrize("pins", HOLDS.values(), ids=HOLDS)
def test_what_was_pinned_passes(pins: Pins) -> None:
    pins.check(NOW, NOW.head)


REFUSED = {
    "another dataset": (Pins(expect_dataset="e" * 32), "not the pinned"),
    "an empty dataset id": (Pins(expect_dataset=""), "not the pinned"),
    "a newer generation": (Pins(min_generation=4), "generation 3, older"),
    "a newer revision": (Pins(min_revision=9), "revision 8, older"),
    "another core": (Pins(expect_core="00" * 32), "not the pinned"),
    "all but one": (Pins(DATASET_ID, 3, 9, NOW.head.digest), "revision 8"),
}


@pytest.mark.parametrize(("pins", "says"), REFUSED.values(), ids=REFUSED)
def test_what_was_not_pinned_is_stale(pins: Pins, says: str) -> None:
    with pytest.raises(StaleDatasetError, match=says) as refused:
        pins.check(NOW, NOW.head)
    assert refused.value.code == "stale"
    assert refused.value.hint


def test_a_core_is_pinned_for_the_generation_that_is_read() -> None:
    older = NOW.generation(2)
    Pins(expect_core=older.digest).check(NOW, older)
    with pytest.raises(StaleDatasetError):
        Pins(expect_core=older.digest).check(NOW, NOW.head)


def test_the_least_generation_holds_for_the_one_that_is_read() -> None:
    older = NOW.generation(2)
    Pins(min_generation=2).check(NOW, older)
    with pytest.raises(StaleDatasetError, match="generation 2 is asked for"):
        Pins(min_generation=3).check(NOW, older)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "pins.json"


def test_the_first_state_seen_is_trusted_and_remembered(path: Path) -> None:
    PinStore(path).check_and_record(URL, NOW)
    footer = NOW.core.footer_kek
    assert json.loads(path.read_text()) == {
        URL: {
            "dataset_id": DATASET_ID,
            "generation": 3,
            "revision": 8,
            "core": NOW.head.digest,
            "footer_kek": {"id": footer.id, "commitment": footer.commitment.hex()},
        }
    }
    PinStore(str(path)).check_and_record(URL, NOW)


def test_newer_states_are_remembered(path: Path) -> None:
    store = PinStore(path)
    store.check_and_record(URL, NOW)
    store.check_and_record(URL, state(revision=9))
    store.check_and_record(URL, state(generation=4, revision=10))
    with pytest.raises(StaleDatasetError):
        store.check_and_record(URL, state(revision=9))


ROLLED_BACK = {
    "another dataset": {"dataset_id": "e" * 32},
    "an older generation": {"generation": 2},
    "an older revision of the same generation": {"revision": 7},
    "an older revision of a newer generation": {"generation": 4, "revision": 7},
    "another core of the same generation": {"created": "2027-01-01T00:00:00Z"},
    "another core of the same generation, with a newer revision": {"commit_id": "9" * 32, "revision": 9},
}


@pytest.mark.parametrize("changes", ROLLED_BACK.values(), ids=ROLLED_BACK)
def test_what_is_older_or_other_is_refused_and_not_remembered(path: Path, changes: dict[str, Any]) -> None:
    store = PinStore(path)
    store.check_and_record(URL, NOW)
    before = path.read_bytes()
    with pytest.raises(StaleDatasetError):
        store.check_and_record(URL, state(**changes))
    assert path.read_bytes() == before
    store.check_and_record(URL, NOW)


def test_each_url_is_remembered_by_itself(path: Path) -> None:
    store = PinStore(path)
    store.check_and_record(URL, NOW)
    store.check_and_record(URL + "2", state(generation=1, revision=1))
    assert set(json.loads(path.read_text())) == {URL, URL + "2"}


SPELLINGS = {
    "local": ("d", "d/", "./d", "../here/d", "x/../d", ".//d", "file://{cwd}/d", "{cwd}//d", "{cwd}/link"),
    "s3": ("s3://bucket/a/b", "s3://bucket/a/b/", "s3://bucket//a//b//"),
    "memory": ("memory://a/b", "memory:///a/b", "memory://a/b/"),
}


@pytest.mark.parametrize("spellings", SPELLINGS.values(), ids=SPELLINGS)
def test_one_place_has_one_pin_however_it_is_spelled(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spellings: tuple[str, ...]
) -> None:
    (tmp_path / "here" / "d").mkdir(parents=True)
    (tmp_path / "here" / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path / "here")
    store = PinStore(path)
    store.check_and_record(spellings[0], NOW)
    for spelling in spellings:
        with pytest.raises(StaleDatasetError):
            store.check_and_record(spelling.format(cwd=Path.cwd()), state(generation=2))
    assert list(json.loads(path.read_text())) == [canonical_url(spellings[0])]


def test_a_relative_path_means_another_place_in_another_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, folder in enumerate(("one", "other")):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        PinStore(path).check_and_record("d", state(generation=9 - n))
    assert set(json.loads(path.read_text())) == {
        f"{tmp_path.resolve()}/{folder}/d" for folder in ("one", "other")
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [("s3://a/b", "s3://a/c"), ("s3://a/b", "memory://a/b"), ("/a/b", "/a/b2"), ("s3://a/b", "s3://a/B")],
)
def test_places_that_differ_stay_apart(one: str, other: str) -> None:
    assert canonical_url(one) != canonical_url(other)


def test_a_state_that_is_known_is_not_written_again(path: Path) -> None:
    store = PinStore(path)
    store.check_and_record(URL, NOW)
    before = path.stat().st_ino
    store.check_and_record(URL, NOW)
    assert path.stat().st_ino == before


def test_many_openers_lose_nothing(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: PinStore(path).check_and_record(f"{URL}{n}", NOW), range(40)))
    assert len(json.loads(path.read_text())) == 40
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["pins.json", "pins.json.lock"]


KNOWN = {"dataset_id": DATASET_ID, "generation": 3, "revision": 8, "core": "00" * 32}
OLDER = {**KNOWN, "generation": 2}
DAMAGED = {
    "cut": b'{"a"',
    "no JSON": b"\xff",
    "no object": b"[]",
    "an entry that is none": json.dumps({URL: 1}).encode(),
    "an entry without an id": json.dumps({URL: {**KNOWN, "dataset_id": ""}}).encode(),
    "an entry without a generation": json.dumps({URL: {**KNOWN, "generation": None}}).encode(),
    "an entry without a revision": json.dumps({URL: {**KNOWN, "revision": -1}}).encode(),
    "an entry with a footer KEK that is none": json.dumps({URL: {**OLDER, "footer_kek": 1}}).encode(),
    "an entry without a commitment": json.dumps({URL: {**OLDER, "footer_kek": {"id": "f0" * 16}}}).encode(),
    "an entry without a core": json.dumps({URL: {**KNOWN, "core": "x"}}).encode(),
    "an empty entry": json.dumps({URL: {}}).encode(),
    "an empty file": b"",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_store_is_not_trusted_and_not_overwritten(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="pin store") as refused:
        PinStore(path).check_and_record(URL, NOW)
    assert refused.value.hint
    assert path.read_bytes() == data


def test_a_huge_store_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PinStore(path)
    store.check_and_record(URL, NOW)
    monkeypatch.setattr(pins_module, "MAX_STORE_BYTES", 10)
    with pytest.raises(ConfigError, match="longer than 10 bytes"):
        store.check_and_record(URL, NOW)


def test_a_store_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "pins.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be used"):
            PinStore(path).check_and_record(URL, NOW)


def test_a_full_disk_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PinStore(path)
    store.check_and_record(URL, NOW)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left"):
            store.check_and_record(URL, state(revision=9))
    assert path.read_bytes() == before
    store.check_and_record(URL, state(revision=9))
