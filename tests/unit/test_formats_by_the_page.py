"""docs/format.md is enough to open what encpipe seals: these readers use the page, no code of encpipe."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from specimen import CREATED, DATASET_ID, KEK_IDS, LIST_ID, Specimen, record

from encpipe import filelist
from encpipe.config import Config
from encpipe.deks import dek_commitment
from encpipe.filelist import FileEntry, FileList
from encpipe.journal import Journal
from encpipe.keys import new_id
from encpipe.partitionkeks import PartitionKek
from encpipe.policy import Policy
from encpipe.records import Records
from encpipe.storage import open_storage

SIM = Specimen()
FOOTER_KEK = SIM.keks[KEK_IDS["footer"]]
WRITER = "e" * 32
ENTRY = FileEntry("1" * 32, f"data/{'1' * 32}.parquet", 9, 2, (2,), {}, b"h" * 32, b"f" * 32, b"c" * 32)
JOURNAL = Journal(
    writer_id=WRITER,
    dataset_id=DATASET_ID,
    base_core="",
    base_generation=0,
    created=CREATED,
    owner="host:1",
    footer_key="footer",
    keks=tuple(record(name, SIM.keks[kek_id]) for name, kek_id in KEK_IDS.items()),
    wrappings=SIM.wrappings,
    digest=b"s" * 32,
)


def derive(label: str, context: bytes) -> bytes:
    info = f"encpipe/1 {label}\0".encode() + context
    return HKDFExpand(SHA256(), 32, info).derive(FOOTER_KEK.reveal())


def aad(label: str, *fields: bytes) -> bytes:
    return f"encpipe/1 {label}\0".encode() + b"".join(len(f).to_bytes(4, "big") + f for f in fields)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> Any:
    return json.loads(AESGCM(key).decrypt(sealed[:12], sealed[12:], associated))


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def from_text(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_kek_commitment() -> None:
    kek = next(k for k in SIM.core["keks"] if k["key_name"] == "footer")
    assert kek["commitment"] == derive("kek-commitment", bytes.fromhex(kek["id"])).hex()


def test_a_dek_commitment() -> None:
    file_id, dek = "1" * 32, b"d" * 32
    expected = hashlib.sha256(b"encpipe/1 dek-commitment\0" + bytes.fromhex(file_id) + dek).digest()
    assert dek_commitment(file_id, dek) == expected


def test_a_file_list() -> None:
    listed = FileList(Policy(columns={"pii": ("a",)}), b"schema", {"a": "pii", "b": "footer"}, (), (ENTRY,))
    place: dict[str, Any] = {"dataset_id": DATASET_ID, "generation": 3, "list_id": LIST_ID}
    sealed = filelist.seal(listed, footer_kek=FOOTER_KEK, **place)
    assert sealed[:1] == b"\x01"
    fields = (bytes.fromhex(DATASET_ID), u64(3), bytes.fromhex(LIST_ID))
    assert open_sealed(derive("file-list", fields[2]), sealed[1:], aad("file-list", *fields)) == {
        "policy": {
            "footer_key": "footer",
            "columns": {"pii": ["a"]},
            "plaintext_partitions": [],
            "strict": False,
            "partition_keys": [],
        },
        "schema": base64.urlsafe_b64encode(b"schema").decode(),
        "columns": [["a", "pii"], ["b", "footer"]],
        "partitions": [],
        "partition_keks": [],
        "files": [
            {
                "id": "1" * 32,
                "path": f"data/{'1' * 32}.parquet",
                "bytes": 9,
                "rows": 2,
                "row_groups": [2],
                "partition": {},
                "sha256": b"h".hex() * 32,
                "footer_dek": b"f".hex() * 32,
                "column_deks": b"c".hex() * 32,
            }
        ],
    }


def test_a_journal() -> None:
    raw = json.loads(JOURNAL.as_bytes(FOOTER_KEK))
    sealed = from_text(raw.pop("sealed"))
    in_clear = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    associated = aad("journal", hashlib.sha256(in_clear).digest())
    body = open_sealed(derive("journal", bytes.fromhex(WRITER)), sealed, associated)
    assert body == {"digest": b"s".hex() * 32, "signature": ""}


def test_a_record_of_a_finished_file() -> None:
    storage = open_storage(f"memory://page-{new_id()}", config=Config())
    Records(storage, JOURNAL, FOOTER_KEK).add(7, ENTRY)
    path = f"_encpipe/pending/{WRITER}/7.sealed"
    sealed = storage.read(path, limit=1 << 20)
    storage.delete(path)
    key = derive("journal-file", bytes.fromhex(WRITER) + u64(7))
    associated = aad("journal-file", bytes.fromhex(DATASET_ID), bytes.fromhex(WRITER), u64(7))
    assert open_sealed(key, sealed, associated) == ENTRY.as_json()


def test_a_record_of_a_file_under_new_partition_keks() -> None:
    storage = open_storage(f"memory://page-{new_id()}", config=Config())
    kek_id = KEK_IDS["footer"]
    made = PartitionKek.make("footer", kek_id, FOOTER_KEK, {"day": None}, dataset_id=DATASET_ID)
    entry = dataclasses.replace(ENTRY, partition={"day": None}, partition_keks=(made.id,))
    storage.create(f"_encpipe/pending/{WRITER}/journal.json", JOURNAL.as_bytes(FOOTER_KEK))
    Records(storage, JOURNAL, FOOTER_KEK).add(7, entry, [made])
    sealed = storage.read(f"_encpipe/pending/{WRITER}/7.sealed", limit=1 << 20)
    key = derive("journal-file", bytes.fromhex(WRITER) + u64(7))
    associated = aad("journal-file", bytes.fromhex(DATASET_ID), bytes.fromhex(WRITER), u64(7))
    assert open_sealed(key, sealed, associated) == {**entry.as_json(), "made": [made.as_json()]}
    again = Records(storage, JOURNAL, FOOTER_KEK)
    assert again.read(7, ("day",)) == entry
    assert again.partition_keks == {made.id: made}
