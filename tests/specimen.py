"""A small manifest whose keys are all known, so that a test can write an attack as an edit.

sim = Specimen()
sim.core["generation"] = 7          # an attacker with the storage only: the tags are stale
sim.remac("pii")                    # one who also holds the pii KEK makes its core MAC fit again
sim.bytes()
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from encpipe import manifest
from encpipe.config import Config, TrustConfig
from encpipe.keyring import make_kek
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms.base import Kms
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import Core, KekRecord, Manifest, TaggedCore, kek_commitment
from encpipe.testing import InMemoryKms

DATASET_ID = "d" * 32
LIST_ID = "a" * 32
CREATED = "2026-01-02T03:04:05Z"
KEK_IDS = {"footer": "f0" * 16, "pii": "b1" * 16}


def config(*trusted: str) -> Config:
    return Config(trust=TrustConfig(master_keys=trusted))


def master_keys(kms: Kms, *trusted: str) -> MasterKeys:
    return MasterKeys(config(*trusted), extra={"memory": kms})


def record(name: str, kek: Secret, *, kek_id: str | None = None, state: str = "active") -> KekRecord:
    kek_id = KEK_IDS[name] if kek_id is None else kek_id
    return KekRecord(kek_id, name, CREATED, kek_commitment(kek_id, kek), state)


def dumps(value: Any) -> bytes:
    """The writer's spelling, by other code than the writer's."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Specimen:
    """Generation 3 with generations 1 and 2 retained; key names `footer` and `pii`, a master key each."""

    def __init__(self) -> None:
        self.kms = InMemoryKms(["footer", "pii", "mallory"])
        self.keks: dict[str, Secret] = {}
        self.wrappings: dict[str, tuple[WrappedKey, ...]] = {}
        for name, kek_id in KEK_IDS.items():
            context = KeyContext(DATASET_ID, name, kek_id)
            made = make_kek(context, [self.kms.master_key(f"memory:{name}")])
            self.keks[kek_id], self.wrappings[kek_id] = made.kek, made.wrappings
        data, retained = b"", ()
        for generation in (1, 2, 3):
            data = self._build(generation, retained)
            retained = manifest.parse(data).history
        self.load(data)

    def _build(self, generation: int, retained: Iterable[TaggedCore]) -> bytes:
        core = Core(
            dataset_id=DATASET_ID,
            generation=generation,
            commit_id=f"{generation:032x}",
            created=CREATED,
            footer_key="footer",
            list_id=LIST_ID,
            list_sha256=hashlib.sha256(b"list").digest(),
            keks=tuple(record(name, self.keks[kek_id]) for name, kek_id in KEK_IDS.items()),
        )
        return manifest.build(
            core, revision=generation + 5, wrappings=self.wrappings, retained=retained, keks=self.keks
        )

    def load(self, data: bytes) -> None:
        core, keys, tags, _ = data.split(b"\n")
        self.core, self.keys, self.tags = json.loads(core), json.loads(keys), json.loads(tags)

    def fork(self) -> Specimen:
        """A copy to edit."""
        other = copy.copy(self)
        other.core, other.keys, other.tags = copy.deepcopy((self.core, self.keys, self.tags))
        return other

    def bytes(self) -> bytes:
        return b"\n".join((dumps(self.core), dumps(self.keys), dumps(self.tags), b""))

    def parse(self) -> Manifest:
        return manifest.parse(self.bytes())

    def remac(self, *names: str) -> None:
        """What a holder of these KEKs can do: make their tags fit the edited lines (docs/format.md)."""
        core, keys = dumps(self.core), dumps(self.keys)
        for name in names:
            kek_id = KEK_IDS[name]
            self.tags["core_macs"][kek_id] = self._mac(name, "core-mac", core)
            if name == "footer":
                self.tags["manifest_mac"] = self._mac(name, "manifest-mac", core + b"\n" + keys + b"\n")

    def _mac(self, name: str, label: str, message: bytes) -> str:
        info = f"encpipe/1 {label}\0".encode() + bytes.fromhex(self.core["dataset_id"])
        key = HKDFExpand(SHA256(), 32, info).derive(self.keks[KEK_IDS[name]].reveal())
        return hmac.digest(key, message, "sha256").hex()

    def read(self, *names: str) -> Manifest:
        """Check as a reader who holds these KEKs does."""
        found = self.parse()
        for name in names:
            found.head.check(KEK_IDS[name], self.keks[KEK_IDS[name]])
            if name == "footer":
                found.check_all(self.keks[KEK_IDS[name]])
        return found
