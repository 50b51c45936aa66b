"""What `build` makes: readable, covered by every key, keeping what it does not know, never unreadable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from specimen import CREATED, DATASET_ID, KEK_IDS, LIST_ID, Specimen, record

from encpipe import manifest
from encpipe.core import kek_commitment
from encpipe.errors import EncpipeError, ManifestError
from encpipe.keys import Secret, WrappedKey
from encpipe.manifest import Core, Manifest

FOOTER, PII = KEK_IDS["footer"], KEK_IDS["pii"]
ORIGINAL = Specimen()


@pytest.fixture
def sim() -> Specimen:
    return ORIGINAL.fork()


def rebuild(sim: Specimen, found: Manifest, core: Core | None = None, **changes: Any) -> Manifest:
    """The next commit on top of what was read, as a writer makes it."""
    next_core = replace(found.core, generation=found.core.generation + 1) if core is None else core
    arguments: dict[str, Any] = {
        "revision": found.revision + 1,
        "wrappings": found.wrappings,
        "retained": found.history,
        "keks": sim.keks,
        "keys_raw": found.keys_raw,
        **changes,
    }
    return manifest.parse(manifest.build(next_core, **arguments))


def test_what_was_written_reads_back(sim: Specimen) -> None:
    found = sim.read("footer", "pii")
    core = found.core
    assert (core.dataset_id, core.generation, core.footer_key) == (DATASET_ID, 3, "footer")
    assert core.list_name == f"_encpipe/files-3-{LIST_ID}.sealed"
    assert core.key_names == ("footer", "pii")
    assert core.footer_kek.id == FOOTER
    assert core.kek(PII).key_name == "pii"
    assert (found.revision, found.wrappings, found.signatures) == (8, sim.wrappings, ())
    assert [older.core.generation for older in found.retained] == [1, 2]
    assert found.generation(2) is found.retained[1]
    assert found.head.digest == hashlib.sha256(sim.bytes().split(b"\n")[0]).hexdigest()
    for older in found.retained:
        for kek_id, kek in sim.keks.items():
            older.check(kek_id, kek)


def test_retained_cores_are_the_bytes_that_once_stood_in_front(sim: Specimen) -> None:
    found = sim.parse()
    again = rebuild(sim, found)
    assert again.retained[-1].line == found.head.line
    assert again.retained[-1].digest == found.head.digest
    assert again.retained[0].line == found.retained[0].line


def test_old_generations_fall_out(sim: Specimen) -> None:
    found = sim.parse()
    for _ in range(manifest.RETAINED_GENERATIONS + 3):
        found = rebuild(sim, found)
    assert len(found.retained) == manifest.RETAINED_GENERATIONS
    assert found.retained[-1].core.generation == found.core.generation - 1


def test_unknown_fields_are_covered_and_kept(sim: Specimen) -> None:
    sim.core["later"] = {"a": [1]}
    sim.core["file_list"]["later"] = 2
    sim.core["keks"][1]["later"] = 3
    sim.keys["later"] = 4
    sim.keys["wrappings"][PII][0]["later"] = 5
    sim.keys["retained"][0]["later"] = 6
    sim.remac("footer", "pii")
    again = rebuild(sim, sim.read("footer", "pii"))
    core, keys = json.loads(again.head.line), json.loads(again.keys_line)
    assert core["later"] == {"a": [1]}
    assert core["file_list"]["later"] == 2
    assert [kek.get("later") for kek in core["keks"]] == [None, 3]
    assert keys["later"] == 4
    assert keys["wrappings"][PII][0]["later"] == 5
    assert [entry.get("later") for entry in keys["retained"]] == [6, None, None]
    assert core["requires"] == []


def test_known_fields_win_over_what_was_read(sim: Specimen) -> None:
    found = sim.parse()
    again = rebuild(sim, found, replace(found.core, generation=9, list_id="e" * 32))
    assert again.core.generation == 9
    assert json.loads(again.head.line)["file_list"]["id"] == "e" * 32


@pytest.mark.parametrize("missing", KEK_IDS.values(), ids=KEK_IDS)
def test_a_core_without_the_mac_of_every_active_key_is_not_built(sim: Specimen, missing: str) -> None:
    keks = {kek_id: kek for kek_id, kek in sim.keks.items() if kek_id != missing}
    with pytest.raises(KeyError):
        rebuild(sim, sim.parse(), keks=keks)


@pytest.mark.parametrize("state", ["retired", "shredded"])
def test_keys_that_are_not_active_need_not_be_held(sim: Specimen, state: str) -> None:
    found = sim.parse()
    keks = (found.core.keks[0], replace(found.core.keks[1], state=state))
    core = replace(found.core, generation=4, keks=keks)
    again = rebuild(sim, found, core, keks={FOOTER: sim.keks[FOOTER]})
    assert list(again.head.macs) == [FOOTER]
    again.head.check(FOOTER, sim.keks[FOOTER])
    assert again.core.kek(PII).state == state
    if state == "retired":
        with pytest.raises(ManifestError, match="no KEK of key name 'pii'"):
            again.core.active("pii")
    else:
        assert again.core.active("pii").id == PII


def test_a_re_key_leaves_the_old_kek_beside_the_new(sim: Specimen) -> None:
    found, fresh = sim.parse(), Secret.random()
    new = record("pii", fresh, kek_id="c2" * 16)
    keks = (found.core.keks[0], replace(found.core.keks[1], state="retired"), new)
    again = rebuild(
        sim, found, replace(found.core, generation=4, keks=keks), keks={**sim.keks, new.id: fresh}
    )
    assert again.core.active("pii").id == new.id
    assert again.core.key_names == ("footer", "pii")
    again.head.check(new.id, fresh)
    again.generation(3).check(PII, sim.keks[PII])


UNREADABLE: dict[str, Any] = {
    "a URI that no reader takes": {"wrappings": {PII: (WrappedKey("memory:a b", b"x", "1", CREATED),)}},
    "more wrappings than a reader takes": {"wrappings": {PII: ORIGINAL.wrappings[PII] * 65}},
    "a version that steers a terminal": {"wrappings": {PII: (WrappedKey("m:a", b"x", "\x1b[2J", CREATED),)}},
    "more than a reader takes in all": {"keys_raw": {"later": "x" * manifest.MAX_MANIFEST_BYTES}},
    "a revision beyond all numbers": {"revision": 2**60},
    "retained generations out of order": {"retained": ORIGINAL.parse().history[::-1]},
}


@pytest.mark.parametrize("changes", UNREADABLE.values(), ids=UNREADABLE)
def test_nothing_is_written_that_would_not_be_read(sim: Specimen, changes: dict[str, Any]) -> None:
    with pytest.raises(EncpipeError, match="no reader would take") as refused:
        rebuild(sim, sim.parse(), **changes)
    assert type(refused.value) is EncpipeError
    assert refused.value.code == "unsupported"


def test_commitments_bind_to_key_and_id() -> None:
    one, other = Secret(b"1" * 32), Secret(b"2" * 32)
    made = {kek_commitment(kek_id, kek) for kek_id in KEK_IDS.values() for kek in (one, other)}
    assert len(made) == 4
    assert one.reveal() not in made


def test_no_key_is_in_the_manifest_or_its_repr(sim: Specimen) -> None:
    data, shown = sim.bytes(), repr(sim.parse())
    for kek in sim.keks.values():
        assert kek.reveal() not in data
        assert kek.reveal().hex().encode() not in data
        assert kek.reveal().hex() not in shown
