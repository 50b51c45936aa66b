"""A dataset to write and read in a test: URL, keys in memory, and the public calls with both filled in."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from servers.seaweed import Seaweed

import encpipe
from encpipe import Config, Dataset, MasterKeys, Policy
from encpipe.config import TlsConfig
from encpipe.inspection import Inspection
from encpipe.storage import Storage, open_storage
from encpipe.testing import InMemoryKms
from encpipe.verification import Verification
from encpipe.writer import WriteReport

KEYS = {"footer": ("memory:main",), "pii": ("memory:pii",)}
PII = Policy(columns={"pii": ("name",)})


@dataclass
class Scene:
    """One dataset at `url`. Every call makes its own `MasterKeys`, as another process would."""

    url: str
    kms: InMemoryKms = field(default_factory=lambda: InMemoryKms(["main", "pii"]))
    config: Config = field(default_factory=lambda: Config(keys=KEYS))
    options: Mapping[str, Any] | None = None

    @property
    def keys(self) -> MasterKeys:
        return MasterKeys(self.config, extra={"memory": self.kms})

    @property
    def access(self) -> dict[str, Any]:
        return {"config": self.config, "master_keys": self.keys, "storage_options": self.options}

    @property
    def folder(self) -> Path:
        return Path(self.url)

    def knowing(self, *names: str) -> Scene:
        """The same dataset for someone whose configuration has these key names only."""
        keys = {name: KEYS[name] for name in names}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, keys=keys))

    def at(self, url: str) -> Scene:
        return dataclasses.replace(self, url=url)

    def write(self, source: object, **more: Any) -> WriteReport:
        return encpipe.write_dataset(source, self.url, **{"policy": PII, **self.access, **more})

    def append(self, source: object, **more: Any) -> WriteReport:
        return encpipe.append_dataset(source, self.url, **{**self.access, **more})

    def open(self, **more: Any) -> Dataset:
        return encpipe.open_dataset(self.url, **{**self.access, **more})

    def table(self, columns: list[str] | None = None, **more: Any) -> pa.Table:
        with self.open(**more) as dataset:
            return dataset.to_table(columns)

    def verify(self, **more: Any) -> Verification:
        return encpipe.verify_dataset(self.url, **{**self.access, "deep": True, **more})

    def inspect(self, **more: Any) -> Inspection:
        return encpipe.inspect_dataset(self.url, **{**self.access, **more})

    def decrypt(self, target: object, **more: Any) -> Any:
        return encpipe.decrypt_dataset(self.url, target, **{**self.access, **more})

    def storage(self) -> Storage:
        return open_storage(self.url, config=self.config, options=self.options)

    def objects(self, prefix: str = "") -> list[str]:
        """What lies at the URL, but for locks."""
        storage = self.storage()
        found = [info.path for info in storage.list(prefix) if not info.path.endswith("/lock")]
        storage.close()
        return found

    def check_whole(self) -> None:
        """Every byte as committed, and no journal left."""
        found = self.verify()
        found.check()
        assert found.pending == ()
        assert self.inspect(use_keys=False).pending_writes == 0


def on_s3(seaweed: Seaweed, url: str) -> Scene:
    """A dataset in a bucket of a real server, over https."""
    config = Config(keys=KEYS, tls=TlsConfig(ca_file=Path(seaweed.ca)))
    options = {
        "key": seaweed.access_key,
        "secret": seaweed.secret_key,
        "client_kwargs": {"endpoint_url": seaweed.https, "region_name": seaweed.region},
    }
    return Scene(url, config=config, options=options)


def people(first: int = 0, rows: int = 6) -> pa.Table:
    """`rows` rows with the ids from `first` on."""
    ids = range(first, first + rows)
    names = pa.array([f"name {n}" for n in ids], pa.string())
    return pa.table({"id": pa.array(ids, pa.int64()), "name": names})


def save(folder: Path, *tables: pa.Table, row_group: int = 4) -> Path:
    """A folder of Parquet files `0.parquet`, `1.parquet`, ... (at most ten, to stay in this order)."""
    assert len(tables) <= 10
    folder.mkdir(parents=True, exist_ok=True)
    for n, table in enumerate(tables):
        pq.write_table(table, folder / f"{n}.parquet", row_group_size=row_group)
    return folder


def ids(table: pa.Table) -> list[int]:
    found: list[int] = table.column("id").to_pylist()
    return found


def forked(action: Callable[[], object]) -> int:
    """Run `action` in a forked child; its pid. The child ends with 0, or with 1 if `action` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child makes its own
        pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - the child ends here, whatever happened
            os._exit(1)
        os._exit(0)
    return pid


def ended(pid: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
