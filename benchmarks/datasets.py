"""Encrypted copies of the workloads, and who may open them.

A local keyring under a key file protects them, so that other processes open them too; a wrapper counts what
it is asked, so that no figure rests on what encpipe says about itself. Copies are kept until the library's
source changes.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

import encpipe
from benchmarks.workloads import DATA, Workload
from encpipe.config import Config, KeyringConfig, load_config
from encpipe.initialise import initialise
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.base import Kms, KmsSettings
from encpipe.kms.local import LocalKms
from encpipe.policy import Policy

WORKERS: Final = 2
"""Threads and workers on both sides of every ratio."""

KEYS: Final = {"footer": ("local:default",), "pii": ("local:pii",)}


def config_path(data: Path = DATA) -> Path:
    """The configuration that opens all benchmark datasets, made on first use."""
    folder = (data / "keys").absolute()
    path = folder / "encpipe.toml"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        keyring = KeyringConfig(path=folder / "keyring.json")
        initialise(path, keyring=keyring, keys=KEYS, key_file=folder / "keyring.key")
    return path


def config() -> Config:
    """The loaded configuration."""
    return load_config(config_path())


class CountingKms:
    """A key service that counts calls to its master keys."""

    def __init__(self, service: Kms) -> None:
        self._service = service
        self._lock = threading.Lock()
        self.calls = 0

    def master_key(self, uri: str) -> MasterKey:
        return _CountingKey(self._service.master_key(uri), self)

    def trusts(self, uri: str) -> bool:
        return self._service.trusts(uri)

    def count(self) -> None:
        with self._lock:
            self.calls += 1


class _CountingKey:
    def __init__(self, key: MasterKey, kms: CountingKms) -> None:
        self._key, self._kms = key, kms

    @property
    def uri(self) -> str:
        return self._key.uri

    @property
    def binds_context(self) -> bool:
        return self._key.binds_context

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        self._kms.count()
        return self._key.wrap(kek, aad=aad)

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        self._kms.count()
        return self._key.unwrap(wrapped, aad=aad)


def counted() -> tuple[encpipe.MasterKeys, CountingKms]:
    """Fresh master keys, as a new process would have, and their counter."""
    settings = config()
    kms = CountingKms(LocalKms(KmsSettings(keyring=settings.keyring)))
    return encpipe.MasterKeys(settings, extra={"local": kms}), kms


def policy(column: str | None) -> Policy:
    """One column under a key of its own, all else under the footer key; None: the default policy."""
    return Policy(columns={"pii": (column,)}) if column else Policy()


def encrypt(source: Path, target: Path, column: str | None, *, workers: int = WORKERS) -> None:
    """What `encrypt_vs_plain` times: a new dataset from plaintext files."""
    keys, _ = counted()
    encpipe.write_dataset(
        source, target, policy=policy(column), config=config(), master_keys=keys, workers=workers
    )


def open_encrypted(url: Path) -> encpipe.Dataset:
    """Opened with fresh master keys."""
    return encpipe.open_dataset(url, config=config(), master_keys=counted()[0])


def scan(url: Path) -> int:
    """Open a dataset and read every row of every column. Returns the rows."""
    with open_encrypted(url) as dataset:
        return sum(batch.num_rows for batch in dataset.scan(threads=WORKERS))


@cache
def source_digest() -> str:
    """Stands for the library's source: copies of another one are not reused."""
    found = hashlib.sha256()
    for path in sorted(Path(encpipe.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def encrypted_copy(name: str, source: Path, column: str | None, data: Path = DATA) -> Path:
    """The encrypted copy of `source`, made by this version of the library."""
    config_path(data)
    return kept(name, lambda target: encrypt(source, target, column), data)


def kept(name: str, make: Callable[[Path], None], data: Path = DATA) -> Path:
    """What `make` writes, whole; made anew when the library's source has changed."""
    final = data / "derived" / source_digest() / name
    if not final.exists():
        _drop_older(final.parent)
        partial = final.with_name(name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(final)
    return final


def _drop_older(current: Path) -> None:
    current.mkdir(parents=True, exist_ok=True)
    for other in current.parent.iterdir():
        if other != current:
            shutil.rmtree(other)


def encrypted_workload(workload: Workload, *, column_key: bool = False) -> Path:
    """The encrypted copy of a workload: under the default policy, or with one column under its own key."""
    source = workload.ensure()
    if column_key:
        return encrypted_copy(f"{source.name}-column-key", source, workload.column)
    return encrypted_copy(source.name, source, None)


def small_files(count: int, data: Path = DATA) -> Path:
    """A folder of `count` files of 100 rows in 3 columns."""
    final = data / f"small-{count}"
    if not final.exists():
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda n: _small_file(partial / f"part-{n:05d}.parquet", n), range(count)))
        partial.rename(final)
    return final


def _small_file(path: Path, number: int) -> None:
    ids = pa.array(range(number * 100, number * 100 + 100), pa.int64())
    table = pa.table({"id": ids, "name": ids.cast(pa.string()), "value": ids.cast(pa.float64())})
    pq.write_table(table, path, compression="snappy")


SMALL_COLUMN: Final = "name"
