"""Partition KEKs as they stand in the file list: one place each, and no list that contradicts itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from encpipe import filelist
from encpipe.errors import EncpipeError, ManifestError, PolicyError, UnwrapError
from encpipe.filelist import FileEntry, FileList
from encpipe.keys import Secret
from encpipe.partitionkeks import PartitionKek, PartitionKeks
from encpipe.policy import Policy

DATASET = "d" * 32
PLACE: dict[str, Any] = {"dataset_id": DATASET, "generation": 3, "list_id": "a" * 32}
PARENTS = {"footer": Secret(b"f" * 32), "pii": Secret(b"p" * 32)}
PARENT_IDS = {"footer": "f0" * 16, "pii": "71" * 16}
POLICY = Policy("footer", {"pii": ("name",)}, partition_keys=("year", "who"))
VALUES: list[dict[str, str | None]] = [{"year": "2020", "who": None}, {"year": "2021", "who": ""}]


def made(key_name: str, values: dict[str, str | None]) -> PartitionKek:
    parent = PARENTS[key_name]
    return PartitionKek.make(key_name, PARENT_IDS[key_name], parent, values, dataset_id=DATASET)


KEKS = [[made(name, values) for name in ("footer", "pii")] for values in VALUES]


def entry(n: int, keks: list[PartitionKek]) -> FileEntry:
    file_id = f"{n:032x}"
    partition = {**VALUES[n], "month": "1"}
    ids = tuple(kek.id for kek in keks)
    path = f"data/{file_id}.parquet"
    return FileEntry(file_id, path, 9, 2, (2,), partition, b"h" * 32, b"f" * 32, b"c" * 32, ids)


LIST = FileList(
    policy=POLICY,
    schema=b"schema",
    columns={"name": "pii", "id": "footer"},
    partitions=("year", "who", "month"),
    files=(entry(0, KEKS[0]), entry(1, KEKS[1])),
    partition_keks=(*KEKS[0], *KEKS[1]),
)


def test_a_list_with_partition_keks_opens_to_the_same() -> None:
    sealed = filelist.seal(LIST, footer_kek=PARENTS["footer"], **PLACE)
    found = filelist.open_sealed(sealed, footer_kek=PARENTS["footer"], **PLACE)
    assert found == dataclasses.replace(LIST, raw=found.raw)
    for kek in found.partition_keks:
        assert len(kek.open(PARENTS[kek.key_name], dataset_id=DATASET)) == 32


def field_bytes(*fields: bytes) -> bytes:
    return b"".join(len(f).to_bytes(4, "big") + f for f in fields)


PARTS = ([b"\0", b"\x012020"], [b"\1", b"\x012021"])


@pytest.mark.parametrize(("values", "parts"), list(zip(VALUES, PARTS, strict=True)))
def test_it_is_wrapped_as_the_page_says(values: dict[str, str | None], parts: list[bytes]) -> None:
    kek = made("pii", values)
    label, kek_id = b"encpipe/1 partition-kek-wrap\0", bytes.fromhex(kek.id)
    key = HKDFExpand(SHA256(), 32, label + kek_id).derive(PARENTS["pii"].reveal())
    aad = label + field_bytes(bytes.fromhex(DATASET), b"pii", kek_id, b"who", parts[0], b"year", parts[1])
    plain = AESGCM(key).decrypt(kek.wrapped[:12], kek.wrapped[12:], aad)
    assert Secret(plain) == kek.open(PARENTS["pii"], dataset_id=DATASET)
    committed = HKDFExpand(SHA256(), 32, b"encpipe/1 kek-commitment\0" + kek_id).derive(plain)
    assert committed == kek.commitment


ELSEWHERE: dict[str, Callable[[PartitionKek], PartitionKek]] = {
    "another id": lambda kek: dataclasses.replace(kek, id="0" * 32),
    "another key name": lambda kek: dataclasses.replace(kek, key_name="footer"),
    "another value": lambda kek: dataclasses.replace(kek, partition={**kek.partition, "year": "2021"}),
    "empty text for null": lambda kek: dataclasses.replace(kek, partition={**kek.partition, "who": ""}),
    "one column less": lambda kek: dataclasses.replace(kek, partition={"year": "2020"}),
    "another column": lambda kek: dataclasses.replace(kek, partition={"year": "2020", "whose": None}),
    "a flipped bit": lambda kek: dataclasses.replace(
        kek, wrapped=bytes([kek.wrapped[0] ^ 1]) + kek.wrapped[1:]
    ),
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_it_opens_nowhere_else(change: Callable[[PartitionKek], PartitionKek]) -> None:
    with pytest.raises(UnwrapError, match="does not open"):
        change(KEKS[0][1]).open(PARENTS["pii"], dataset_id=DATASET)


def test_it_opens_in_its_dataset_under_its_parent_only() -> None:
    kek = KEKS[0][1]
    for parent, dataset_id in ((PARENTS["pii"], "e" * 32), (PARENTS["footer"], DATASET)):
        with pytest.raises(UnwrapError, match="does not open"):
            kek.open(parent, dataset_id=dataset_id)


def test_another_kek_than_the_committed_one_is_refused() -> None:
    kek = dataclasses.replace(KEKS[0][1], commitment=b"c" * 32)
    with pytest.raises(UnwrapError) as refused:
        kek.open(PARENTS["pii"], dataset_id=DATASET)
    assert refused.value.code == "kek-commitment"


def test_it_is_opened_once() -> None:
    known = PartitionKeks(DATASET)
    kek = KEKS[0][1]
    assert known.get(kek.id) is None
    known.learn([kek])
    assert known.get(kek.id) is kek
    assert known.open(kek, PARENTS["pii"]) is known.open(kek, PARENTS["pii"])


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a KEK twice": ("twice", {"partition_keks": (*LIST.partition_keks, KEKS[0][0])}),
    "a KEK missing": ("of its partition", {"partition_keks": LIST.partition_keks[1:]}),
    "no partition column": (
        "no partition column",
        {"policy": dataclasses.replace(POLICY, partition_keys=("year", "day"))},
    ),
    "KEKs that nothing asks for": ("does not ask for", {"policy": Policy("footer", {"pii": ("name",)})}),
    "by other columns": (
        "other columns",
        {"policy": dataclasses.replace(POLICY, partition_keys=("year",))},
    ),
    "of another key name": ("another key name", {"columns": {"name": "footer"}}),
    "a file under none": ("of its partition", {"files": (entry(0, []), entry(1, KEKS[1]))}),
    "a file under one": ("of its partition", {"files": (entry(0, KEKS[0][:1]), entry(1, KEKS[1]))}),
    "a file under the other partition's": (
        "of its partition",
        {"files": (entry(0, [KEKS[0][0], KEKS[1][1]]), entry(1, KEKS[1]))},
    ),
    "a file under two of one key name": (
        "of its partition",
        {"files": (entry(0, [KEKS[0][1], *KEKS[0]]), entry(1, KEKS[1]))},
    ),
}


@pytest.mark.parametrize(("why", "changes"), FAULTS.values(), ids=FAULTS)
def test_a_list_that_contradicts_itself_is_neither_sealed_nor_read(why: str, changes: dict[str, Any]) -> None:
    listed = dataclasses.replace(LIST, **changes)
    with pytest.raises(EncpipeError, match=why) as refused:
        filelist.seal(listed, footer_kek=PARENTS["footer"], **PLACE)
    assert refused.value.code == "unsupported"
    with pytest.raises(ManifestError, match=why) as unread:
        filelist.parse(json.dumps(listed.as_json()).encode())
    assert unread.value.code == "file-list"


MALFORMED: dict[str, dict[str, Any]] = {
    "no id": {"id": ...},
    "no key name": {"key_name": "Pii"},
    "no parent": {"parent": "pii"},
    "no values": {"partition": {}},
    "a value that is a number": {"partition": {"year": 2020, "who": None}},
    "no commitment": {"commitment": ""},
    "a short wrapped key": {"wrapped": "AAAA"},
    "a long wrapped key": {"wrapped": "A" * 84},
}


@pytest.mark.parametrize("changes", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_one_is_refused(changes: dict[str, Any]) -> None:
    raw = LIST.as_json()
    changed = {**raw["partition_keks"][0], **changes}
    raw["partition_keks"][0] = {name: value for name, value in changed.items() if value is not ...}
    with pytest.raises(ManifestError) as refused:
        filelist.parse(json.dumps(raw).encode())
    assert refused.value.code == "file-list"


def test_unknown_fields_are_kept() -> None:
    raw = json.loads(json.dumps(LIST.as_json()))
    raw["partition_keks"][0]["later"] = 1
    assert json.loads(json.dumps(filelist.parse(json.dumps(raw).encode()).as_json())) == raw


def test_partition_keys_are_partition_columns() -> None:
    with pytest.raises(PolicyError, match="partition_keys lists 'year'") as refused:
        Policy(partition_keys=("year",)).assign(["id", "year"], partitions=["month"])
    assert refused.value.code == "policy-partition"
    assert Policy(partition_keys=("year", "year")).partition_keys == ("year",)
