"""What `rebuild` leaves alone: line 1, core MACs, signatures, whatever becomes of wrappings and history."""

from __future__ import annotations

import json
from typing import Any

import pytest
from specimen import CREATED, KEK_IDS, Specimen

from encpipe import manifest
from encpipe.errors import EncpipeError, ManifestError
from encpipe.keys import WrappedKey
from encpipe.manifest import Manifest

FOOTER, PII = KEK_IDS["footer"], KEK_IDS["pii"]
ORIGINAL = Specimen()
NEW = WrappedKey("memory:other", b"new", "2", CREATED)


@pytest.fixture
def sim() -> Specimen:
    return ORIGINAL.fork()


def rebuilt(sim: Specimen, found: Manifest, **changes: Any) -> tuple[bytes, Manifest]:
    arguments: dict[str, Any] = {
        "revision": found.revision + 1,
        "wrappings": found.wrappings,
        "retained": found.retained,
        "footer_kek": sim.keks[FOOTER],
        **changes,
    }
    data = manifest.rebuild(found, **arguments)
    return data, manifest.parse(data)


def test_line_one_core_macs_and_signatures_stay(sim: Specimen) -> None:
    sim.tags["signatures"] = [{"signer": "ed25519:x", "signature": "y"}]
    found = sim.read("footer", "pii")
    data, again = rebuilt(sim, found, wrappings={**found.wrappings, PII: (NEW,)})
    assert data.split(b"\n")[0] == found.head.line
    assert again.head.macs == found.head.macs
    assert again.signatures == found.signatures
    assert again.revision == found.revision + 1
    assert again.wrappings == {FOOTER: found.wrappings[FOOTER], PII: (NEW,)}
    again.check_all(sim.keks[FOOTER])


def test_a_shorter_history_keeps_the_other_generations_byte_for_byte(sim: Specimen) -> None:
    found = sim.parse()
    _, again = rebuilt(sim, found, retained=found.retained[1:])
    assert [tagged.core.generation for tagged in again.retained] == [2]
    assert again.retained[0].line == found.retained[1].line
    assert again.retained[0].macs == found.retained[1].macs


def test_unknown_fields_of_line_two_are_kept(sim: Specimen) -> None:
    sim.keys["later"] = 4
    sim.keys["wrappings"][PII][0]["later"] = 5
    sim.keys["retained"][0]["later"] = 6
    sim.remac("footer")
    _, again = rebuilt(sim, sim.read("footer"))
    keys = json.loads(again.keys_line)
    assert (keys["later"], keys["wrappings"][PII][0]["later"], keys["retained"][0]["later"]) == (4, 5, 6)


def test_another_footer_kek_makes_a_manifest_that_nobody_takes(sim: Specimen) -> None:
    _, again = rebuilt(sim, sim.parse(), footer_kek=sim.keks[PII])
    with pytest.raises(ManifestError):
        again.check_all(sim.keks[FOOTER])


def test_nothing_is_rebuilt_that_would_not_be_read(sim: Specimen) -> None:
    with pytest.raises(EncpipeError, match="no reader would take"):
        rebuilt(sim, sim.parse(), wrappings={PII: (NEW,) * 65})
