"""What the vectors are made of: fixed ids, KEKs and master keys, and a few Parquet files.

Arrow draws the DEKs of a Parquet file itself, so the files are the one thing here that differs each time it
is made: they are kept in `materials/` and everything else is made from them, byte for byte the same.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow as pa
from simulation import DatasetSim, Kek, SimFile, forge_file, plaintext_file, seal_file
from simulation.files import wrapper

from encpipe.config import Config, KeyringConfig
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms import keyringformat
from encpipe.kms.keyringkeys import Keyring, KeyVersion
from encpipe.kms.registry import MasterKeys

FOLDER = Path(__file__).parent / "materials"
CREATED = "2026-01-01T00:00:00Z"
DATASET, OTHER_DATASET = "d0" * 16, "0d" * 16
COMMITS, LISTS = ["c1" * 16, "c2" * 16], ["e1" * 16, "e2" * 16]
ALPHA, BETA, GAMMA = "a1" * 16, "b2" * 16, "a3" * 16
MASTER_KEYS = {"reader": ("main", "pii"), "footer-only": ("main",), "mallory": ("mallory",)}
"""Keyring -> the master keys in it."""


def secret(what: str) -> Secret:
    """A fixed key. Of the vectors only: whoever reads this knows it."""
    return Secret(hashlib.sha256(f"encpipe test vectors: {what}".encode()).digest())


KEKS = {"footer": Kek("f0" * 16, secret("footer KEK")), "pii": Kek("71" * 16, secret("pii KEK"))}
OTHER_KEKS = {
    "footer": Kek("0f" * 16, secret("other footer KEK")),
    "pii": Kek("17" * 16, secret("other pii KEK")),
}
PARTITION_KEKS = {
    day: {
        name: Kek(kek_id * 16, secret(f"{day} {name} KEK"))
        for name, kek_id in (("footer", f"f{n}"), ("pii", f"7{n}"))
    }
    for n, day in enumerate(("mon", "tue"), 2)
}
"""Value of the partition column `day` -> the KEKs of its files."""
FOOTER_ID, PII_ID = (f"{name}.{kek.id}" for name, kek in KEKS.items())
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])
REQUIRED = pa.schema([field.with_nullable(False) for field in SCHEMA])
COLUMNS = {"id": FOOTER_ID, "name": PII_ID}
NESTED = pa.schema(
    [
        ("id", pa.int64()),
        ("who", pa.struct([("first", pa.string()), ("age", pa.int32())])),
        ("tags", pa.list_(pa.string())),
    ]
)
NESTED_COLUMNS = {"id": FOOTER_ID, "who.first": PII_ID, "who.age": FOOTER_ID, "tags.list.element": FOOTER_ID}

Rows = list[dict[str, Any]]
ALPHA_ROWS: Rows = [{"id": i, "name": n} for i, n in enumerate(("ann", "bob", "cid", "dan"), 1)]
BETA_ROWS: Rows = [{"id": i, "name": n} for i, n in enumerate(("eve", "fay", "gil", "hal"), 5)]
NESTED_ROWS: Rows = [
    {"id": 1, "who": {"first": "ann", "age": 30}, "tags": ["x", "y"]},
    {"id": 2, "who": None, "tags": []},
    {"id": 3, "who": {"first": None, "age": 7}, "tags": None},
]


def tables(rows: Rows, schema: pa.Schema = SCHEMA) -> list[pa.Table]:
    """Two rows a row group."""
    return [pa.Table.from_pylist(rows[n : n + 2], schema=schema) for n in range(0, len(rows), 2)]


def make_files() -> dict[str, SimFile]:
    """All Parquet files anew."""
    true = {f"{name}.{kek.id}": kek.secret for name, kek in KEKS.items()}
    other = {f"{name}.{kek.id}": kek.secret for name, kek in OTHER_KEKS.items()}
    guessed = {key_id: secret(f"guessed {key_id}") for key_id in true}
    mixed = {FOOTER_ID: true[FOOTER_ID], PII_ID: guessed[PII_ID]}
    footer_only = {"id": FOOTER_ID, "name": FOOTER_ID}

    def sealed(
        rows: Rows,
        file_id: str = ALPHA,
        *,
        columns: Mapping[str, str] = COLUMNS,
        keks: Mapping[str, Secret] = true,
        schema: pa.Schema = SCHEMA,
        footer: str = FOOTER_ID,
    ) -> SimFile:
        found = tables(rows, schema) or [schema.empty_table()]
        return seal_file(found, file_id=file_id, columns=columns, footer=footer, wrap=wrapper(file_id, keks))

    def forged(columns: Mapping[str, str], **options: Any) -> SimFile:
        options = {"rows": ALPHA_ROWS, "keks": true, "schema": SCHEMA, "committed": COLUMNS, **options}
        rows, keks, schema = options.pop("rows"), options.pop("keks"), options.pop("schema")
        wrap = wrapper(ALPHA, keks)
        return forge_file(
            tables(rows, schema), file_id=ALPHA, sealed=columns, footer=FOOTER_ID, wrap=wrap, **options
        )

    def of_day(day: str, rows: Rows, file_id: str) -> SimFile:
        keks = {f"{name}.{kek.id}": kek.secret for name, kek in PARTITION_KEKS[day].items()}
        return sealed(
            rows, file_id, columns=dict(zip(COLUMNS, keks, strict=True)), keks=keks, footer=next(iter(keks))
        )

    other_columns = dict(zip(COLUMNS, other, strict=True))
    lies: Rows = [{**row, "name": "Max"} for row in ALPHA_ROWS]
    return {
        "alpha": sealed(ALPHA_ROWS),
        "beta": sealed(BETA_ROWS, BETA),
        "alpha-again": sealed(ALPHA_ROWS),
        "one-key": sealed(ALPHA_ROWS, columns=footer_only),
        "nested": sealed(NESTED_ROWS, columns=NESTED_COLUMNS, schema=NESTED),
        "no-rows": sealed([]),
        "of-other-dataset": sealed(ALPHA_ROWS, columns=other_columns, keks=other, footer=next(iter(other))),
        "of-monday": of_day("mon", ALPHA_ROWS, ALPHA),
        "of-tuesday": of_day("tue", BETA_ROWS, BETA),
        "guessed-keks": sealed(ALPHA_ROWS, keks=guessed),
        "row-group-removed": forged(COLUMNS, rows=ALPHA_ROWS[:2], row_groups=[2, 2]),
        "other-nullability": forged(COLUMNS, schema=REQUIRED),
        "added-column": forged(
            {**COLUMNS, "extra": FOOTER_ID}, schema=SCHEMA.append(pa.field("extra", pa.int32()))
        ),
        "one-dek": forged({}, rows=ALPHA_ROWS, committed={}, uniform=True),
        "pii-in-clear": forged({"id": FOOTER_ID}, rows=lies),
        "pii-under-footer-dek": forged({}, rows=lies, uniform=True),
        "pii-under-footer-kek": forged(footer_only, rows=lies),
        "pii-under-guessed-kek": forged(COLUMNS, rows=lies, keks=mixed),
    }


@dataclasses.dataclass(frozen=True)
class Materials:
    """What the cases draw from."""

    files: Mapping[str, SimFile]
    wrap: Callable[[str, KeyContext, Secret], WrappedKey]
    plaintext: bytes
    plaintext_same_size: bytes

    def dataset(
        self, *names: str, schema: pa.Schema = SCHEMA, columns: Mapping[str, str] = COLUMNS
    ) -> DatasetSim:
        """A dataset of these files, generation 1, not published yet."""
        sim = self.unwrapped(KEKS, DATASET, schema=schema, columns=columns)
        for key_name, master in (("footer", "main"), ("pii", "pii")):
            sim.add_wrapping(key_name, self.wrapping(sim, key_name, master))
        for name in names:
            sim.add_file(self.files[name])
        return sim

    def unwrapped(
        self,
        keks: Mapping[str, Kek],
        dataset_id: str,
        *,
        schema: pa.Schema = SCHEMA,
        columns: Mapping[str, str] = COLUMNS,
    ) -> DatasetSim:
        sim = DatasetSim.new(dataset_id, keks, created=CREATED, commit_id=COMMITS[0], list_id=LISTS[0])
        sim.file_list["schema"] = to_text(schema.serialize().to_pybytes())
        key_names = {leaf: key_id.partition(".")[0] for leaf, key_id in columns.items()}
        sim.file_list["columns"] = [list(pair) for pair in key_names.items()]
        pii = [leaf for leaf, key_name in key_names.items() if key_name == "pii"]
        sim.file_list["policy"]["columns"] = {"pii": pii} if pii else {}
        return sim

    def wrapping(
        self, sim: DatasetSim, key_name: str, master: str, *, kek: Secret | None = None, dataset_id: str = ""
    ) -> WrappedKey:
        """`kek` (default: the sim's) under the master key `local:<master>`, for this key name of the sim."""
        own = sim.keks[key_name]
        context = KeyContext(dataset_id or sim.core["dataset_id"], key_name, own.id)
        return self.wrap(f"local:{master}", context, kek or own.secret)


def load_materials() -> Materials:
    """From `materials/`, as committed."""
    files = {
        path.stem: SimFile(path.read_bytes(), json.loads(path.with_suffix(".json").read_text()))
        for path in sorted(FOLDER.glob("*.parquet"))
    }
    lies = pa.Table.from_pylist([{**row, "name": "Max"} for row in ALPHA_ROWS], schema=SCHEMA)
    size = files["alpha"].entry["bytes"]
    return Materials(files, _wrap, plaintext_file(lies), plaintext_file(lies, size=size))


def save_files() -> None:
    """Make the Parquet files and keyrings of `materials/` anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, file in make_files().items():
        (FOLDER / f"{name}.parquet").write_bytes(file.data)
        (FOLDER / f"{name}.json").write_text(json.dumps(file.entry, indent=1, sort_keys=True) + "\n")


def save_keyrings() -> None:
    """Write the keyrings, their key file, and the KEKs for programs that have no keyring."""
    (FOLDER / "keyring.key").write_bytes(base64.b64encode(secret("keyring").reveal()) + b"\n")
    for name, keys in MASTER_KEYS.items():
        with fixed_random(f"keyring {name}"):
            (FOLDER / f"{name}.keyring").write_bytes(_keyring(keys))
    described = {f"{name}.{kek.id}": kek.secret.reveal().hex() for name, kek in KEKS.items()}
    (FOLDER / "keks.json").write_text(json.dumps(described, indent=1) + "\n")


def _keyring(names: tuple[str, ...]) -> bytes:
    versions = {name: (KeyVersion(1, CREATED, "active"),) for name in names}
    secrets = {(name, 1): secret(f"master key {name}") for name in names}
    protection = keyringformat.Protection("key-file", salt=hashlib.sha256(b"salt").digest()[:16])
    return keyringformat.seal(Keyring(versions, secrets), secret("keyring"), protection)


@contextmanager
def keyring_config(folder: Path, name: str) -> Iterator[KeyringConfig]:
    """A keyring of `folder`, with the file modes that git does not keep."""
    with tempfile.TemporaryDirectory() as private:
        for file, target in ((f"{name}.keyring", "keyring.json"), ("keyring.key", "keyring.key")):
            place = Path(private) / target
            place.touch(0o600)
            place.write_bytes((folder / file).read_bytes())
        yield KeyringConfig(Path(private) / "keyring.json", f"key-file:{private}/keyring.key")


def _wrap(uri: str, context: KeyContext, kek: Secret) -> WrappedKey:
    owner = next(name for name, keys in MASTER_KEYS.items() if uri.partition(":")[2] in keys)
    with keyring_config(FOLDER, owner) as keyring:
        wrapped = (
            MasterKeys(Config(keyring=keyring)).get(uri, key_name=context.key_name).wrap(kek, aad=context)
        )
    return dataclasses.replace(wrapped, created=CREATED)


@contextmanager
def fixed_random(seed: str) -> Iterator[None]:
    """Nonces and seal ids that depend on `seed` alone, within the block and in the two modules of encpipe
    that draw them here; nothing in the library knows of it."""
    drawn = 0

    def fixed(size: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(f"{seed} {drawn}".encode()).digest(size)

    with (
        mock.patch("encpipe.aead.os", SimpleNamespace(urandom=fixed)),
        mock.patch("encpipe.kms.keyringformat.secrets", SimpleNamespace(token_bytes=fixed)),
    ):
        yield


def to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
