"""The formats: what is written reads back; any other bytes are refused with an error of our tree."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specimen import CREATED, DATASET_ID, KEK_IDS, LIST_ID, Specimen, record

from encpipe import aead, filelist, journal, manifest, strictjson
from encpipe.aead import Label
from encpipe.deks import unwrap_dek, wrap_dek
from encpipe.errors import IntegrityError, ManifestError, PolicyError, UnwrapError
from encpipe.filelist import FileEntry, FileList
from encpipe.journal import Journal
from encpipe.keys import Secret, WrappedKey
from encpipe.manifest import Core, KekRecord, kek_commitment
from encpipe.policy import Policy

KEK = Secret(b"k" * 32)

# Small pieces

ids = st.text("0123456789abcdef", min_size=32, max_size=32)
key_names = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)
numbers = st.integers(0, strictjson.MAX_INT)
hashes = st.binary(min_size=32, max_size=32)
words = st.text(st.characters(codec="utf-8"), max_size=20)
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
column_names = st.text(st.characters(codec="utf-8", exclude_characters=",;:"), min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
unknown = st.dictionaries(words.map("x-".__add__), json_values, max_size=3)
wrappings = st.builds(
    WrappedKey,
    st.from_regex(r"[a-z][a-z0-9+.-]{0,9}:[!#-\[\]-~]{1,40}", fullmatch=True),
    st.binary(max_size=80),
    printable,
    printable,
    unknown,
)


@st.composite
def kek_sets(draw: st.DrawFn) -> tuple[tuple[KekRecord, ...], dict[str, Secret]]:
    """KEK records, the first active, and the KEKs."""
    names = draw(st.lists(key_names, min_size=1, max_size=4, unique=True))
    states = ["active", *(draw(st.sampled_from(manifest.STATES)) for _ in names[1:])]
    kek_ids = draw(st.lists(ids, min_size=len(names), max_size=len(names), unique=True))
    keks = {kek_id: Secret(draw(hashes)) for kek_id in kek_ids}
    records = [
        KekRecord(kek_id, name, draw(printable), kek_commitment(kek_id, keks[kek_id]), state, draw(unknown))
        for kek_id, name, state in zip(kek_ids, names, states, strict=True)
    ]
    return tuple(records), keks


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    entries = st.lists(words.filter(bool), min_size=1, max_size=4).map(tuple)
    columns = draw(st.dictionaries(key_names, entries, max_size=3))
    return Policy(draw(key_names), columns, tuple(draw(st.lists(words, max_size=3))), draw(st.booleans()))


@st.composite
def entries(draw: st.DrawFn, partitions: tuple[str, ...]) -> FileEntry:
    file_id = draw(ids)
    folder = draw(st.from_regex(r"[a-z0-9=%]{1,20}(/[a-z0-9=%]{1,20}){0,3}", fullmatch=True))
    groups = tuple(draw(st.lists(st.integers(0, 1 << 40), max_size=4)))
    return FileEntry(
        id=file_id,
        path=f"{folder}/{file_id}.parquet",
        size=draw(numbers),
        rows=sum(groups),
        row_groups=groups,
        partition={name: draw(st.none() | words) for name in partitions},
        sha256=draw(hashes),
        footer_commitment=draw(hashes),
        columns_commitment=draw(hashes),
        extra=draw(unknown),
    )


@st.composite
def file_lists(draw: st.DrawFn) -> FileList:
    partitions = tuple(draw(st.lists(words, max_size=3, unique=True)))
    return FileList(
        policy=draw(policies()),
        schema=draw(st.binary(max_size=60)),
        columns=draw(st.dictionaries(words, key_names, max_size=5)),
        partitions=partitions,
        files=tuple(draw(st.lists(entries(partitions), max_size=3, unique_by=lambda e: e.id))),
        raw=draw(unknown),
    )


# Round trips


@settings(deadline=None, max_examples=60)
@given(kek_sets(), st.data())
def test_manifests_read_back(
    keks: tuple[tuple[KekRecord, ...], dict[str, Secret]], data: st.DataObject
) -> None:
    records, secrets = keks
    wrapped = {r.id: tuple(data.draw(st.lists(wrappings, max_size=3))) for r in records}
    raw, keys_raw = data.draw(unknown), data.draw(unknown)
    found, retained = None, ()
    for generation in range(1, data.draw(st.integers(1, 3)) + 1):
        core = Core(
            dataset_id=DATASET_ID,
            generation=generation,
            commit_id=data.draw(ids),
            created=data.draw(printable),
            footer_key=records[0].key_name,
            list_id=data.draw(ids),
            list_sha256=data.draw(hashes),
            keks=records,
            raw=raw,
        )
        built = manifest.build(
            core, revision=generation, wrappings=wrapped, retained=retained, keks=secrets, keys_raw=keys_raw
        )
        found = manifest.parse(built)
        retained = found.history
        assert found.core == Core(**{**vars(core), "raw": found.core.raw})
        assert {k: v for k, v in found.core.raw.items() if k.startswith("x-")} == raw
        assert {k: v for k, v in found.keys_raw.items() if k.startswith("x-")} == keys_raw
        assert [kek.extra for kek in found.core.keks] == [kek.extra for kek in records]
        assert found.wrappings == wrapped
        assert [[w.extra for w in ws] for ws in found.wrappings.values()] == [
            [w.extra for w in wrapped[kek_id]] for kek_id in found.wrappings
        ]
        found.check_all(secrets[records[0].id])
        for tagged in found.history:
            for kek in records:
                if kek.state == "active":
                    tagged.check(kek.id, secrets[kek.id])
    assert found is not None
    assert len(found.retained) == found.core.generation - 1


@settings(deadline=None, max_examples=60)
@given(file_lists(), ids, numbers, ids)
def test_file_lists_read_back(given_list: FileList, dataset_id: str, generation: int, list_id: str) -> None:
    place = {"dataset_id": dataset_id, "generation": generation, "list_id": list_id}
    sealed = filelist.seal(given_list, footer_kek=KEK, **place)  # type: ignore[arg-type]  # mixed types
    found = filelist.open_sealed(sealed, footer_kek=KEK, **place)  # type: ignore[arg-type]  # mixed types
    assert found == FileList(**{**vars(given_list), "raw": found.raw})
    assert [e.extra for e in found.files] == [e.extra for e in given_list.files]
    assert found.as_json() == given_list.as_json()


@settings(deadline=None)
@given(hashes, hashes, ids, key_names, ids)
def test_wrapped_deks_read_back(kek: bytes, dek: bytes, file_id: str, name: str, kek_id: str) -> None:
    key_id = f"{name}.{kek_id}"
    wrapped = wrap_dek(Secret(kek), dek, file_id=file_id, key_id=key_id)
    assert unwrap_dek(Secret(kek), wrapped, file_id=file_id, key_id=key_id) == dek


@settings(deadline=None, max_examples=60)
@given(kek_sets(), ids, printable, hashes, st.lists(wrappings, max_size=3), st.data())
def test_journals_read_back(
    keks: tuple[tuple[KekRecord, ...], dict[str, Secret]],
    writer_id: str,
    owner: str,
    digest: bytes,
    wrapped: list[WrappedKey],
    data: st.DataObject,
) -> None:
    records, secrets = keks
    made = Journal(
        writer_id=writer_id,
        dataset_id=DATASET_ID,
        base_core=data.draw(st.just("") | hashes.map(bytes.hex)),
        base_generation=data.draw(numbers),
        created=CREATED,
        owner=owner,
        footer_key=records[0].key_name,
        keks=records,
        wrappings={records[0].id: tuple(wrapped)},
        digest=digest,
    )
    footer_kek = secrets[records[0].id]
    assert journal.parse(made.as_bytes(footer_kek)).open(footer_kek) == made


@settings(deadline=None)
@given(policies())
def test_policies_read_back(policy: Policy) -> None:
    listed = FileList(policy, b"", {}, (), ())
    assert filelist.parse(strictjson.dumps(listed.as_json())).policy == policy


@settings(deadline=None)
@given(policies(), st.lists(column_names, max_size=8, unique=True), st.lists(column_names, max_size=3))
def test_a_policy_gives_every_leaf_one_of_its_keys_or_refuses(
    policy: Policy, leaves: list[str], partitions: list[str]
) -> None:
    with contextlib.suppress(PolicyError):
        assigned = policy.assign(leaves, partitions=partitions)
        assert list(assigned) == leaves
        assert set(assigned.values()) <= set(policy.key_names)


@settings(deadline=None)
@given(st.dictionaries(words, json_values, max_size=6))
def test_json_is_written_in_one_spelling_that_reads_back(value: dict[str, Any]) -> None:
    data = strictjson.dumps(value)
    assert data.isascii()
    assert b"\n" not in data
    assert strictjson.loads(data, what="it") == value
    assert strictjson.dumps(strictjson.loads(data, what="it")) == data


@given(st.binary(max_size=200))
def test_text_reads_back(data: bytes) -> None:
    assert aead.from_text(aead.to_text(data)) == data


@given(st.text(max_size=60) | st.text("AQgw-_=+/", max_size=8))
def test_text_is_canonical_or_refused(text: str) -> None:
    try:
        data = aead.from_text(text)
    except ValueError:
        return
    assert aead.to_text(data) == text


@given(st.lists(st.binary(max_size=9), max_size=5), st.lists(st.binary(max_size=9), max_size=5))
def test_field_lists_encode_alike_only_if_they_are_alike(one: list[bytes], other: list[bytes]) -> None:
    encoded = [aead.encode_aad(Label.FILE_LIST, *fields) for fields in (one, other)]
    assert (encoded[0] == encoded[1]) == (one == other)


# Damage

SIM = Specimen()
MANIFEST = SIM.bytes()
FOOTER, PII = KEK_IDS["footer"], KEK_IDS["pii"]
PLACE: dict[str, Any] = {"dataset_id": DATASET_ID, "generation": 3, "list_id": LIST_ID}
SEALED = filelist.seal(
    FileList(Policy(), b"schema", {"a": "footer"}, (), ()), footer_kek=SIM.keks[FOOTER], **PLACE
)
FILE_ID, KEY_ID = "1" * 32, f"pii.{PII}"
WRAPPED = wrap_dek(SIM.keks[PII], b"d" * 32, file_id=FILE_ID, key_id=KEY_ID)
JOURNAL = Journal(
    writer_id="e" * 32,
    dataset_id=DATASET_ID,
    base_core="",
    base_generation=0,
    created=CREATED,
    owner="host:1",
    footer_key="footer",
    keks=tuple(record(name, SIM.keks[kek_id]) for name, kek_id in KEK_IDS.items()),
    wrappings=SIM.wrappings,
    digest=b"s" * 32,
).as_bytes(SIM.keks[FOOTER])


def read_manifest(data: bytes) -> None:
    """As a reader with both keys does, who uses the older generations too."""
    found = manifest.parse(data)
    found.check_all(SIM.keks[FOOTER])
    for tagged in found.history:
        for kek_id in (FOOTER, PII):
            tagged.check(kek_id, SIM.keks[kek_id])


def read_list(data: bytes) -> None:
    filelist.open_sealed(data, footer_kek=SIM.keks[FOOTER], **PLACE)


def read_dek(data: bytes) -> None:
    unwrap_dek(SIM.keks[PII], data.decode("latin-1"), file_id=FILE_ID, key_id=KEY_ID)


def read_journal(data: bytes) -> None:
    found = journal.parse(data)
    assert found.journal.footer_kek_id
    found.open(SIM.keks[FOOTER])


OBJECTS = {
    "manifest": (MANIFEST, read_manifest),
    "file list": (SEALED, read_list),
    "wrapped DEK": (WRAPPED.encode(), read_dek),
    "journal": (JOURNAL, read_journal),
}
each_object = pytest.mark.parametrize("name", OBJECTS)


@each_object
def test_the_objects_are_whole(name: str) -> None:
    data, read = OBJECTS[name]
    read(data)


@each_object
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_every_flipped_byte_is_refused(name: str, mask: int) -> None:
    data, read = OBJECTS[name]
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= mask
        with pytest.raises(IntegrityError):
            read(bytes(damaged))


@each_object
def test_every_cut_is_refused(name: str) -> None:
    data, read = OBJECTS[name]
    for size in range(len(data)):
        with pytest.raises(IntegrityError):
            read(data[:size])


@each_object
@settings(deadline=None)
@given(st.data())
def test_every_cut_insertion_and_replacement_is_refused(name: str, data: st.DataObject) -> None:
    whole, read = OBJECTS[name]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    piece = st.binary(max_size=12) | st.sampled_from(
        [b"\n", b"{}", b"[]", b"null", b" ", b",", b'"', b"\\ud800"]
    )
    damaged = whole[:start] + data.draw(piece) + whole[end:]
    if damaged != whole and not (name == "journal" and _same_json(damaged, whole)):
        with pytest.raises(IntegrityError):
            read(damaged)


def _same_json(damaged: bytes, whole: bytes) -> bool:
    """A blank between two tokens of a journal is no edit: its seal covers what the fields say."""
    try:
        return bool(json.loads(damaged) == json.loads(whole))
    except ValueError:
        return False


@each_object
@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        OBJECTS[name][1](data)


@settings(deadline=None, max_examples=200)
@given(json_values, st.lists(st.integers(0, 400), max_size=8), st.sampled_from([0, 1, 2]))
def test_any_value_anywhere_in_a_manifest_is_an_integrity_error(
    value: Any, steps: list[int], line: int
) -> None:
    """Walk into one line by `steps`, put `value` there, and make every tag fit again."""
    sim = SIM.fork()
    _replace((sim.core, sim.keys, sim.tags)[line], steps, value)
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # the tags cannot be made
        sim.remac("footer", "pii")
    with contextlib.suppress(IntegrityError):
        read_manifest(sim.bytes())


@settings(deadline=None, max_examples=200)
@given(file_lists(), json_values, st.lists(st.integers(0, 400), max_size=8))
def test_any_value_anywhere_in_a_file_list_is_an_integrity_error(
    whole: FileList, value: Any, steps: list[int]
) -> None:
    raw = json.loads(strictjson.dumps(whole.as_json()))
    _replace(raw, steps, value)
    with contextlib.suppress(IntegrityError):
        filelist.parse(strictjson.dumps(raw))


def _replace(node: Any, steps: list[int], value: Any) -> None:
    """Put `value` where `steps` lead, each the number of a child; the last step names the place."""
    for n, step in enumerate(steps or [0]):
        places: Any = sorted(node) if isinstance(node, dict) else range(len(node))
        if not places:
            return
        place = places[step % len(places)]
        child = node[place]
        if n == len(steps) - 1 or not isinstance(child, dict | list):
            node[place] = value
            return
        node = child


@settings(max_examples=300)
@given(
    st.binary(max_size=200)
    | st.text(max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.text('{}[]":,\\u0123456789abdeE+-.tfn rlsN', max_size=60).map(str.encode)
    | json_values.map(lambda v: json.dumps(v).encode())
)
def test_strict_json_raises_nothing_but_manifest_errors(data: bytes) -> None:
    with contextlib.suppress(ManifestError):
        value = strictjson.loads(data, what="it")
        assert isinstance(value, dict)
        assert strictjson.loads(strictjson.dumps(value), what="it") == value


@settings(deadline=None)
@given(st.binary(min_size=77, max_size=77))
def test_a_random_wrapped_dek_is_refused(data: bytes) -> None:
    text = base64.urlsafe_b64encode(data).decode().rstrip("=")
    with pytest.raises(UnwrapError):
        unwrap_dek(KEK, text, file_id=FILE_ID, key_id=KEY_ID)


@settings(deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=20), st.binary(min_size=32, max_size=32))
def test_seals_open_to_what_was_sealed(plaintext: bytes, aad: bytes, key: bytes) -> None:
    sealed = aead.seal(Secret(key), plaintext, aad=aad)
    assert aead.open_sealed(Secret(key), sealed, aad=aad) == plaintext
