"""A whole dataset in memory. Each field may be edited; `publish` seals and MACs again under keys one holds.

Written from docs/format.md on the primitives of `encpipe.aead` alone, so that it also checks the page.

    sim = DatasetSim.load(folder, keks)
    sim.core["generation"] += 1
    sim.publish(holding=["footer"])  # what a holder of the footer KEK can do: the MAC under `pii` stays old
    sim.objects[path] = b"..."       # what whoever writes the bucket can do
    sim.write_to(folder)
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from encpipe import aead
from encpipe.aead import Label
from encpipe.keys import Secret, WrappedKey
from simulation.files import SimFile

MANIFEST = "_encpipe/manifest.json"
JSON = dict[str, Any]


class Kek(NamedTuple):
    """A KEK of one key name."""

    id: str
    secret: Secret


def dumps(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


class DatasetSim:
    """One dataset: `core`, `keys`, `tags` are the manifest's lines, `file_list` the opened list, `objects`
    the stored bytes by path, manifest and list included."""

    def __init__(self, core: JSON, keys: JSON, tags: JSON, file_list: JSON, keks: Mapping[str, Kek]) -> None:
        self.core, self.keys, self.tags, self.file_list = core, keys, tags, file_list
        self.keks = dict(keks)
        self.objects: dict[str, bytes] = {}
        self.is_published = False

    # Making one

    @classmethod
    def new(cls, dataset_id: str, keks: Mapping[str, Kek], *, created: str, **names: str) -> DatasetSim:
        """An empty dataset of generation 1. `names`: `commit_id`, `list_id`."""
        footer_key = next(iter(keks))
        core: JSON = {
            "format": "encpipe/1",
            "requires": [],
            "dataset_id": dataset_id,
            "generation": 1,
            "commit_id": names["commit_id"],
            "created": created,
            "footer_key": footer_key,
            "file_list": {"id": names["list_id"], "sha256": ""},
            "keks": [
                {
                    "id": kek.id,
                    "key_name": name,
                    "created": created,
                    "commitment": _derived(kek.secret, Label.KEK_COMMITMENT, kek.id).hex(),
                    "state": "active",
                }
                for name, kek in keks.items()
            ],
        }
        keys: JSON = {"revision": 1, "wrappings": {kek.id: [] for kek in keks.values()}, "retained": []}
        tags: JSON = {"core_macs": {}, "manifest_mac": "", "signatures": []}
        file_list: JSON = {
            "policy": {"footer_key": footer_key, "columns": {}, "plaintext_partitions": [], "strict": False},
            "schema": "",
            "columns": [],
            "partitions": [],
            "partition_keks": [],
            "files": [],
        }
        return cls(core, keys, tags, file_list, keks)

    @classmethod
    def load(cls, folder: Path, keks: Mapping[str, Kek]) -> DatasetSim:
        """A stored dataset, opened with its KEKs (by key name, the footer key first)."""
        objects = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        core, keys, tags = (json.loads(line) for line in objects[MANIFEST].splitlines())
        sim = cls(core, keys, tags, {}, keks)
        sim.objects = {path: data for path, data in objects.items() if path != "_encpipe/lock"}
        key = aead.derive(sim.footer_kek.secret, Label.FILE_LIST, bytes.fromhex(core["file_list"]["id"]))
        sim.file_list = json.loads(aead.open_sealed(key, sim.objects[sim.list_path][1:], aad=sim._list_aad()))
        return sim

    def copy(self) -> DatasetSim:
        other = DatasetSim(
            copy.deepcopy(self.core),
            copy.deepcopy(self.keys),
            copy.deepcopy(self.tags),
            copy.deepcopy(self.file_list),
            self.keks,
        )
        other.objects = dict(self.objects)
        return other

    # What is where

    @property
    def footer_kek(self) -> Kek:
        return self.keks[self.core["footer_key"]]

    @property
    def list_path(self) -> str:
        return f"_encpipe/files-{self.core['generation']}-{self.core['file_list']['id']}.sealed"

    @property
    def paths(self) -> list[str]:
        """The data files of the list."""
        return [entry["path"] for entry in self.file_list["files"]]

    @property
    def lines(self) -> list[bytes]:
        """The three stored lines of the manifest."""
        return self.objects[MANIFEST].splitlines()

    # Edits

    def add_wrapping(self, key_name: str, wrapped: WrappedKey) -> None:
        self.keys["wrappings"][self.keks[key_name].id].append(
            {
                "master_key": wrapped.master_key,
                "version": wrapped.version,
                "blob": aead.to_text(wrapped.blob),
                "created": wrapped.created,
            }
        )

    def add_file(self, file: SimFile, *, folder: str = "data", **partition: str | None) -> None:
        """List a file and store it."""
        path = f"{folder}/{file.entry['id']}.parquet"
        self.file_list["files"].append({**file.entry, "path": path, "partition": partition})
        self.objects[path] = file.data

    def add_partition_kek(self, key_name: str, kek: Kek, **partition: str | None) -> None:
        """List a KEK of one partition, wrapped under the key name's KEK; the columns are `partition_keys`."""
        fields = [bytes.fromhex(self.core["dataset_id"]), key_name.encode(), bytes.fromhex(kek.id)]
        for column, value in sorted(partition.items()):
            fields += [column.encode(), b"\0" if value is None else b"\1" + value.encode()]
        parent = self.keks[key_name]
        key = aead.derive(parent.secret, Label.PARTITION_KEK_WRAP, bytes.fromhex(kek.id))
        aad = aead.encode_aad(Label.PARTITION_KEK_WRAP, *fields)
        self.core["requires"] = ["partition-keks"]
        self.file_list["policy"]["partition_keys"] = list(partition)
        self.file_list["partition_keks"].append(
            {
                "id": kek.id,
                "key_name": key_name,
                "parent": parent.id,
                "partition": partition,
                "commitment": _derived(kek.secret, Label.KEK_COMMITMENT, kek.id).hex(),
                "wrapped": aead.to_text(aead.seal(key, kek.secret.reveal(), aad=aad)),
            }
        )

    def next_generation(self, *, commit_id: str, list_id: str) -> None:
        """Retain what was published, and begin the next generation."""
        core_line, _, tags_line = self.lines
        tags = json.loads(tags_line)
        retained = {"core": core_line.decode(), "core_macs": tags["core_macs"]}
        if tags["signatures"]:
            retained["signatures"], self.tags["signatures"] = tags["signatures"], []
        self.keys["retained"].append(retained)
        self.keys["revision"] += 1
        self.core["generation"] += 1
        self.core["commit_id"] = commit_id
        self.core["file_list"]["id"] = list_id
        self.is_published = False

    def publish(self, *, holding: Iterable[str] | None = None) -> None:
        """Seal the list and write the manifest, with every MAC that a holder of these key names can make."""
        self.publish_list(dumps(self.file_list), holding=holding)

    def publish_list(self, plaintext: bytes, *, holding: Iterable[str] | None = None) -> None:
        """`publish` with this as the list's plaintext."""
        key = aead.derive(
            self.footer_kek.secret, Label.FILE_LIST, bytes.fromhex(self.core["file_list"]["id"])
        )
        sealed = b"\x01" + aead.seal(key, plaintext, aad=self._list_aad())
        self.objects[self.list_path] = sealed
        self.core["file_list"]["sha256"] = hashlib.sha256(sealed).hexdigest()
        self.publish_manifest(holding=holding)

    def publish_manifest(self, *, holding: Iterable[str] | None = None) -> None:
        """Write the manifest alone."""
        core_line, keys_line = dumps(self.core), dumps(self.keys)
        dataset_id = self.core["dataset_id"]
        for name in self.keks if holding is None else holding:
            kek = self.keks[name]
            key = Secret(_derived(kek.secret, Label.CORE_MAC, dataset_id))
            self.tags["core_macs"][kek.id] = aead.mac(key, core_line).hex()
            if name == self.core["footer_key"]:
                key = Secret(_derived(kek.secret, Label.MANIFEST_MAC, dataset_id))
                message = core_line + b"\n" + keys_line + b"\n"
                self.tags["manifest_mac"] = aead.mac(key, message).hex()
        self.set_lines(core_line, keys_line, dumps(self.tags))

    def sign(self, key: Ed25519PrivateKey, *, message: bytes | None = None) -> None:
        """Add a signature of what was published, or one of another message, to the manifest."""
        core_line, keys_line, _ = self.lines
        signed = b"encpipe/1 core\0" + hashlib.sha256(core_line).digest() if message is None else message
        signer = "ed25519:" + aead.to_text(key.public_key().public_bytes_raw())
        self.tags["signatures"].append({"signer": signer, "signature": aead.to_text(key.sign(signed))})
        self.set_lines(core_line, keys_line, dumps(self.tags))

    def set_lines(self, *lines: bytes) -> None:
        """Store a manifest of these lines."""
        self.objects[MANIFEST] = b"".join(line + b"\n" for line in lines)
        self.is_published = True

    def flip(self, path: str, position: int, bits: int = 1) -> None:
        """Change one byte of an object; a negative position counts from the end."""
        data = bytearray(self.objects[path])
        data[position] ^= bits
        self.objects[path] = bytes(data)

    def write_to(self, folder: Path) -> None:
        """Lay the dataset down, in place of what is there."""
        shutil.rmtree(folder, ignore_errors=True)
        for path, data in self.objects.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def _list_aad(self) -> bytes:
        return aead.encode_aad(
            Label.FILE_LIST,
            bytes.fromhex(self.core["dataset_id"]),
            self.core["generation"].to_bytes(8, "big"),
            bytes.fromhex(self.core["file_list"]["id"]),
        )


def _derived(key: Secret, label: Label, hex_id: str) -> bytes:
    return aead.derive(key, label, bytes.fromhex(hex_id)).reveal()
