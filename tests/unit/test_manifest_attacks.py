"""Edits of a manifest, each an attack, and who notices. Lines are edited as parsed JSON (see `specimen`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from specimen import DATASET_ID, KEK_IDS, Specimen, dumps

from encpipe import manifest
from encpipe.errors import FormatError, IntegrityError, ManifestError, StaleDatasetError, UnwrapError
from encpipe.keys import Secret

FOOTER, PII = KEK_IDS["footer"], KEK_IDS["pii"]
Attack = Callable[[Specimen], object]
ORIGINAL = Specimen()


@pytest.fixture
def sim() -> Specimen:
    return ORIGINAL.fork()


def test_untouched_it_is_accepted_by_every_reader(sim: Specimen) -> None:
    sim.read("footer", "pii")
    sim.read("pii")


def test_the_specimen_macs_as_the_page_says(sim: Specimen) -> None:
    before = sim.bytes()
    sim.remac("footer", "pii")
    assert sim.bytes() == before


def set_in(line: str, name: str, value: Any) -> Attack:
    return lambda sim: getattr(sim, line).__setitem__(name, value)


def swap_wrappings(sim: Specimen) -> None:
    wrappings = sim.keys["wrappings"]
    wrappings[FOOTER], wrappings[PII] = wrappings[PII], wrappings[FOOTER]


def other_blob(sim: Specimen) -> None:
    sim.keys["wrappings"][FOOTER][0]["blob"] = sim.keys["wrappings"][PII][0]["blob"]


def older_core(sim: Specimen) -> None:
    older = sim.keys["retained"][-1]
    sim.core = json.loads(older["core"])
    sim.tags["core_macs"] = older["core_macs"]
    del sim.keys["retained"][-1]


def strip(sim: Specimen) -> None:
    sim.keys["wrappings"][PII] = []


def retained_edit(sim: Specimen) -> None:
    entry = sim.keys["retained"][0]
    entry["core"] = entry["core"].replace("a" * 32, "c" * 32)


def other_dataset(sim: Specimen) -> None:
    sim.core["dataset_id"], sim.keys["retained"] = "e" * 32, []


# The attacker has the storage and no key: the footer key's holder notices every one
BY_STORAGE: dict[str, Attack] = {
    "another generation": set_in("core", "generation", 4),
    "another list": lambda sim: sim.core["file_list"].__setitem__("id", "c" * 32),
    "another list hash": lambda sim: sim.core["file_list"].__setitem__("sha256", "00" * 32),
    "another dataset id": other_dataset,
    "another commit id": set_in("core", "commit_id", "e" * 32),
    "another time": set_in("core", "created", "2027-01-01T00:00:00Z"),
    "a new unknown field in the core": set_in("core", "extension", {"a": 1}),
    "a new unknown field in a KEK": lambda sim: sim.core["keks"][0].__setitem__("extension", 1),
    "a KEK shredded": lambda sim: sim.core["keks"][1].__setitem__("state", "shredded"),
    "a KEK retired": lambda sim: sim.core["keks"][1].__setitem__("state", "retired"),
    "a KEK gone": lambda sim: sim.core["keks"].pop(1),
    "another revision": set_in("keys", "revision", 99),
    "a new unknown field in the keys": set_in("keys", "extension", 1),
    "wrappings swapped": swap_wrappings,
    "another blob": other_blob,
    "a wrapping renamed": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("master_key", "memory:x"),
    "a wrapping stripped": strip,
    "a wrapping doubled": lambda sim: sim.keys["wrappings"][PII].append(sim.keys["wrappings"][PII][0]),
    "an unknown field in a wrapping": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("x", 1),
    "a retained generation dropped": lambda sim: sim.keys["retained"].pop(),
    "all retained generations dropped": set_in("keys", "retained", []),
    "a retained core edited": retained_edit,
    "an older core put in front": older_core,
    "the core's MAC of another generation": lambda sim: sim.tags.__setitem__(
        "core_macs", sim.keys["retained"][-1]["core_macs"]
    ),
    "the footer's core MAC stripped": lambda sim: sim.tags["core_macs"].pop(FOOTER),
    "core MACs swapped": lambda sim: sim.tags["core_macs"].update(
        {FOOTER: sim.tags["core_macs"][PII], PII: sim.tags["core_macs"][FOOTER]}
    ),
    "the core MAC as manifest MAC": lambda sim: sim.tags.__setitem__(
        "manifest_mac", sim.tags["core_macs"][FOOTER]
    ),
    "a zero manifest MAC": set_in("tags", "manifest_mac", "00" * 32),
}


@pytest.mark.parametrize("attack", BY_STORAGE.values(), ids=BY_STORAGE)
def test_who_has_only_the_storage_is_noticed_by_the_footer_key(sim: Specimen, attack: Attack) -> None:
    attack(sim)
    with pytest.raises(ManifestError, match="MAC") as refused:
        sim.read("footer")
    assert refused.value.code == "manifest-mac"


CORE_EDITS = {name: BY_STORAGE[name] for name in list(BY_STORAGE)[:8]}


@pytest.mark.parametrize("attack", CORE_EDITS.values(), ids=CORE_EDITS)
def test_who_also_holds_the_footer_key_is_noticed_by_the_column_key(sim: Specimen, attack: Attack) -> None:
    attack(sim)
    sim.remac("footer")
    sim.read("footer")
    with pytest.raises(ManifestError, match="MAC"):
        sim.read("pii")


@pytest.mark.parametrize("attack", CORE_EDITS.values(), ids=CORE_EDITS)
def test_who_also_holds_a_column_key_is_noticed_by_the_footer_key(sim: Specimen, attack: Attack) -> None:
    attack(sim)
    sim.remac("pii")
    with pytest.raises(ManifestError, match="MAC"):
        sim.read("footer")


def test_a_stripped_core_mac_is_noticed_by_its_own_key(sim: Specimen) -> None:
    del sim.tags["core_macs"][PII]
    sim.read("footer")
    with pytest.raises(ManifestError, match="lacks the core MAC") as refused:
        sim.read("pii")
    assert refused.value.code == "manifest-mac"


def test_a_kek_that_is_not_the_committed_one_is_refused_before_any_mac(sim: Specimen) -> None:
    with pytest.raises(UnwrapError, match="another KEK") as refused:
        sim.parse().head.check(PII, Secret.random())
    assert refused.value.code == "kek-commitment"


def test_a_kek_that_the_core_does_not_name_is_refused(sim: Specimen) -> None:
    with pytest.raises(ManifestError, match="no KEK"):
        sim.parse().head.check("0" * 32, Secret.random())


def test_the_keys_line_of_another_revision_does_not_fit(sim: Specimen) -> None:
    """A revocation is not undone by putting the old second line back."""
    newer = sim.fork()
    newer.keys["revision"] += 1
    newer.keys["wrappings"][PII].append(newer.keys["wrappings"][PII][0])
    newer.remac("footer")
    newer.read("footer", "pii")
    newer.keys = sim.keys
    with pytest.raises(ManifestError, match="MAC"):
        newer.read("footer")


def test_a_retained_core_stands_on_its_own_macs(sim: Specimen) -> None:
    retained_edit(sim)
    sim.remac("footer")
    found = sim.read("footer")
    for kek_id in (FOOTER, PII):
        with pytest.raises(ManifestError, match="MAC"):
            found.generation(1).check(kek_id, sim.keks[kek_id])
        found.generation(2).check(kek_id, sim.keks[kek_id])


def test_a_generation_that_is_not_retained_is_stale(sim: Specimen) -> None:
    assert sim.parse().generation(3) is not None
    with pytest.raises(StaleDatasetError, match="generation 9") as refused:
        sim.parse().generation(9)
    assert refused.value.hint == "generations there are: 1, 2, 3"


# What no key is needed to refuse


def later_retained(sim: Specimen) -> None:
    sim.core["generation"] = 2


def foreign_retained(sim: Specimen) -> None:
    entry = sim.keys["retained"][0]
    entry["core"] = entry["core"].replace("d" * 32, "e" * 32)


def newer_retained(sim: Specimen, field: str = '"requires":["x"]') -> None:
    entry = sim.keys["retained"][0]
    entry["core"] = entry["core"].replace('"requires":[]', field)


def half_surrogate(sim: Specimen) -> None:
    sim.keys["retained"][0]["core"] = "{\ud800}"


def deep(sim: Specimen) -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    sim.keys["extension"] = value


MALFORMED: dict[str, Attack] = {
    "a negative generation": set_in("core", "generation", -1),
    "a huge generation": set_in("core", "generation", 2**64),
    "a generation that is text": set_in("core", "generation", "3"),
    "a generation that is true": set_in("core", "generation", True),
    "a generation that is a fraction": set_in("core", "generation", 3.0),
    "NaN": set_in("keys", "extension", float("nan")),
    "infinity": set_in("keys", "extension", float("inf")),
    "deep nesting": deep,
    "an upper-case id": set_in("core", "dataset_id", "D" * 32),
    "a short id": set_in("core", "dataset_id", "d" * 31),
    "an id with a line end": set_in("core", "dataset_id", "d" * 32 + "\n"),
    "a path for a list id": lambda sim: sim.core["file_list"].__setitem__("id", "../" + "a" * 29),
    "a list that is none": set_in("core", "file_list", "a"),
    "no footer key": lambda sim: sim.core.pop("footer_key"),
    "a footer key without a KEK": set_in("core", "footer_key", "other"),
    "a footer key that is no key name": set_in("core", "footer_key", "Footer"),
    "no KEKs": set_in("core", "keks", []),
    "KEKs that are no list": set_in("core", "keks", {}),
    "a KEK that is no object": set_in("core", "keks", ["x"]),
    "a KEK twice": lambda sim: sim.core["keks"].append(sim.core["keks"][0]),
    "two KEKs for one key name": lambda sim: sim.core["keks"][1].__setitem__("key_name", "footer"),
    "an unknown state": lambda sim: sim.core["keks"][1].__setitem__("state", "lost"),
    "a short commitment": lambda sim: sim.core["keks"][1].__setitem__("commitment", "00"),
    "control characters in a time": set_in("core", "created", "\x1b[2J"),
    "too many KEKs": lambda sim: sim.core.__setitem__("keks", [1] * (manifest.MAX_KEKS + 1)),
    "a negative revision": set_in("keys", "revision", -1),
    "no wrappings": lambda sim: sim.keys.pop("wrappings"),
    "wrappings that are a list": set_in("keys", "wrappings", []),
    "wrappings of a KEK that are no list": lambda sim: sim.keys["wrappings"].__setitem__(PII, {}),
    "too many wrappings": lambda sim: sim.keys["wrappings"].__setitem__(PII, sim.keys["wrappings"][PII] * 65),
    "wrappings of something that is no KEK id": lambda sim: sim.keys["wrappings"].__setitem__("pii", []),
    "a wrapping that is no object": lambda sim: sim.keys["wrappings"].__setitem__(PII, [None]),
    "a URI without a scheme": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("master_key", "pii"),
    "a URI with a quote": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("master_key", 'm:"]'),
    "a URI with a blank": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("master_key", "m:a b"),
    "a URI that steers a terminal": lambda sim: sim.keys["wrappings"][PII][0].__setitem__(
        "master_key", "memory:\x1b[2J"
    ),
    "a URI with half a surrogate pair": lambda sim: sim.keys["wrappings"][PII][0].__setitem__(
        "master_key", "memory:\ud800"
    ),
    "a blob that is not base64url": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("blob", "a+b="),
    "a blob beyond the limit": lambda sim: sim.keys["wrappings"][PII][0].__setitem__("blob", "AAAA" * 6000),
    "retained that is no list": set_in("keys", "retained", {}),
    "a retained generation that is no object": set_in("keys", "retained", [1]),
    "a retained core that is no JSON": lambda sim: sim.keys["retained"][0].__setitem__("core", "{"),
    "a retained core of two lines": lambda sim: sim.keys["retained"][0].__setitem__(
        "core", sim.keys["retained"][0]["core"].replace(",", ",\n", 1)
    ),
    "a retained core with half a surrogate pair": half_surrogate,
    "a retained generation of another dataset": foreign_retained,
    "a retained generation that is the newest": later_retained,
    "a retained generation twice": lambda sim: sim.keys["retained"].append(sim.keys["retained"][1]),
    "retained generations out of order": lambda sim: sim.keys["retained"].reverse(),
    "too many retained": set_in("keys", "retained", [1] * (manifest.MAX_RETAINED + 1)),
    "no manifest MAC": lambda sim: sim.tags.pop("manifest_mac"),
    "a short manifest MAC": set_in("tags", "manifest_mac", "00" * 16),
    "core MACs that are a list": set_in("tags", "core_macs", []),
    "a core MAC that is null": lambda sim: sim.tags["core_macs"].__setitem__(PII, None),
    "a core MAC under a name of a megabyte": lambda sim: sim.tags["core_macs"].__setitem__("x" * 2**20, None),
    "signatures that are no list": set_in("tags", "signatures", {}),
    "a signature that is no object": set_in("tags", "signatures", ["x"]),
    "a signature without a signer": set_in("tags", "signatures", [{"signature": "x"}]),
    "a signature that is a number": set_in("tags", "signatures", [{"signer": "x", "signature": 1}]),
    "retained signatures that are null": lambda sim: sim.keys["retained"][0].update(signatures=None),
    "too many signatures": set_in("tags", "signatures", [{}] * 65),
}


@pytest.mark.parametrize("attack", MALFORMED.values(), ids=MALFORMED)
def test_malformed_is_refused_without_a_key_whoever_signed_it(sim: Specimen, attack: Attack) -> None:
    attack(sim)
    if sim.tags == ORIGINAL.tags and sim.core.get("dataset_id") == DATASET_ID:
        sim.remac("footer", "pii")
    with pytest.raises(ManifestError) as refused:
        sim.parse()
    assert refused.value.code == "manifest"
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


NEWER: dict[str, Attack] = {
    "encpipe/2": set_in("core", "format", "encpipe/2"),
    "encpipe/1.1": set_in("core", "format", "encpipe/1.1"),
    "requires something": set_in("core", "requires", ["column-masks"]),
    "requires a hundred thousand letters": set_in("core", "requires", ["x" * 100_000, "\x1b[2J"]),
    "a retained core requires something": newer_retained,
}


@pytest.mark.parametrize("attack", NEWER.values(), ids=NEWER)
def test_a_newer_format_says_so(sim: Specimen, attack: Attack) -> None:
    attack(sim)
    with pytest.raises(FormatError) as refused:
        sim.parse()
    assert refused.value.code == "format-newer"
    assert "pip install -U encpipe" in refused.value.hint
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"\n\n\n", b"[]\n{}\n{}\n", b"<html>", b"\x00" * 100])
def test_what_is_no_manifest_at_all_says_so(data: bytes) -> None:
    with pytest.raises(FormatError, match="not an encpipe manifest") as refused:
        manifest.parse(data)
    assert refused.value.code == "format"


def test_another_programs_json_says_so(sim: Specimen) -> None:
    sim.core["format"] = "iceberg/2"
    with pytest.raises(FormatError, match="iceberg/2") as refused:
        sim.parse()
    assert refused.value.code == "format"


def test_features_this_version_honours_are_no_obstacle(
    sim: Specimen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encpipe.core.REQUIRES", frozenset({"column-masks"}))
    sim.core["requires"] = ["column-masks"]
    sim.remac("footer", "pii")
    sim.read("footer", "pii")


def lines(data: bytes) -> Iterator[tuple[str, bytes]]:
    core, keys, tags, _ = data.split(b"\n")
    yield "the last line end gone", data[:-1]
    yield "a line more", data + b"\n"
    yield "text after the end", data + b"x"
    yield "the tags gone", b"\n".join((core, keys, b""))
    yield "the core alone", core + b"\n"
    yield "an empty line between", b"\n".join((core, b"", keys, tags, b""))
    yield "keys and tags exchanged", b"\n".join((core, tags, keys, b""))
    yield "an empty line instead of the keys", b"\n".join((core, b"", tags, b""))
    yield "the core twice", b"\n".join((core, core, keys, tags, b""))
    yield "other line ends", data.replace(b"\n", b"\r\n") + b"\r\n"
    yield "beyond the size limit", data + b" " * manifest.MAX_MANIFEST_BYTES
    yield "a name twice", data.replace(b'{"commit_id"', b'{"format":"encpipe/1","commit_id"', 1)
    yield "sixteen million line ends", core + b"\n" * (manifest.MAX_MANIFEST_BYTES - len(core))


LINES = dict(lines(ORIGINAL.bytes()))


@pytest.mark.parametrize("data", LINES.values(), ids=LINES)
def test_lines_cut_and_pasted_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        manifest.parse(data)


def test_the_bytes_are_covered_not_their_meaning(sim: Specimen) -> None:
    data = sim.bytes()
    for spaced in (
        data.replace(b'":', b'": ', 1),
        b"".join(data.partition(b"\n")[:2]) + b" " + dumps(sim.keys),
    ):
        with pytest.raises(IntegrityError):
            manifest.parse(spaced).check_all(sim.keks[FOOTER])
