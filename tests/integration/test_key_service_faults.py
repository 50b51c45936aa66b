"""A key service that refuses, fails or is slow, at open and in the middle of a scan; columns without a key.

PyArrow ends the process where it meets metadata of a column whose key is refused: what touches filters and
statistics runs in a child, whose exit code counts.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from encpipe import (
    Config,
    ConfigError,
    Dataset,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    MasterKeys,
    Policy,
    UnwrapError,
    open_dataset,
    write_dataset,
)
from encpipe.testing import FaultyKms, InMemoryKms
from encpipe.testing.faultykms import KmsFault

CONFIG = Config(keys={"footer": ("memory:main",), "pii": ("memory:pii",)})
IDS = [*range(6), *range(100, 106)]


class Service:
    """A dataset of a few files and the faulty service that guards it."""

    def __init__(self, folder: Path, files: int = 2) -> None:
        self.folder = folder / "dataset"
        self.kms = FaultyKms(InMemoryKms(["main", "pii"]))
        (folder / "source").mkdir()
        for n in range(files):
            rows = pa.table({"id": range(n * 100, n * 100 + 6), "name": [f"n{i}" for i in range(6)]})
            pq.write_table(rows, folder / "source" / f"{n}.parquet", row_group_size=3)
        policy = Policy(columns={"pii": ("name",)})
        write_dataset(
            folder / "source", self.folder, policy=policy, config=CONFIG, master_keys=self.master_keys()
        )

    def master_keys(self) -> MasterKeys:
        return MasterKeys(CONFIG, extra={"memory": self.kms})

    def open(self, **options: Any) -> Dataset:
        return open_dataset(self.folder, config=CONFIG, master_keys=self.master_keys(), **options)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


FAULTS: list[tuple[KmsFault, type[EncpipeError]]] = [
    ("denied", KeyAccessDeniedError),
    ("absent", KeyNotFoundError),
    ("unavailable", KmsUnavailableError),
    ("error", KmsError),
    ("damaged", UnwrapError),
    ("wrong-key", UnwrapError),
]


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_the_footer_key_fails_at_open(service: Service, fault: KmsFault, error: type[EncpipeError]) -> None:
    service.kms.fail(fault, "memory:main")
    with pytest.raises(error):
        service.open()
    service.kms.heal()
    assert service.open().to_table()["id"].to_pylist() == IDS


@pytest.mark.parametrize(("fault", "error"), FAULTS)
def test_a_column_key_fails_when_it_is_needed(
    service: Service, fault: KmsFault, error: type[EncpipeError]
) -> None:
    service.kms.fail(fault, "memory:pii")
    dataset = service.open()
    assert dataset.to_table(["id"])["id"].to_pylist() == IDS
    with pytest.raises(error):
        dataset.scan()
    service.kms.heal()
    assert dataset.to_table().num_rows == 12


def test_keys_once_had_outlive_an_outage(service: Service) -> None:
    dataset = service.open()
    batches = iter(dataset.scan(threads=1))
    next(batches)
    service.kms.fail("unavailable")
    assert sum(batch.num_rows for batch in batches) == 9
    assert dataset.to_table().num_rows == 12


def test_a_slow_service_is_asked_once_for_all_threads(service: Service) -> None:
    dataset = service.open()
    before = service.kms.unwraps
    with ThreadPoolExecutor(4) as pool:
        with service.kms.hold() as held:
            found = [pool.submit(dataset.to_table) for _ in range(4)]
            assert held.arrived()
        assert [future.result(timeout=60).num_rows for future in found] == [12] * 4
    assert service.kms.unwraps == before + 1


def test_an_aged_key_that_is_denied_stops_a_scan_under_way(tmp_path: Path) -> None:
    service = Service(tmp_path, files=10)  # more than a scan reads ahead
    dataset = service.open(max_key_age=0.0)
    batches = iter(dataset.scan(threads=1))
    next(batches)
    service.kms.fail("denied", "memory:pii")
    with pytest.raises(KeyAccessDeniedError):
        list(batches)


def test_an_aged_key_is_used_on_through_an_outage_within_the_grace(service: Service) -> None:
    dataset = service.open(max_key_age=0.0, key_grace=3600)
    dataset.to_table()
    service.kms.fail("unavailable")
    assert dataset.to_table().num_rows == 12


# on_missing_key


@pytest.mark.parametrize("fault", ["denied", "absent"])
def test_missing_keys_are_skipped_or_null(service: Service, fault: KmsFault) -> None:
    service.kms.fail(fault, "memory:pii")
    assert service.open(on_missing_key="skip").to_table().column_names == ["id"]
    nulls = service.open(on_missing_key="null")
    assert nulls.missing_keys == ("pii",)
    assert nulls.to_table()["name"].null_count == 12
    assert nulls.count_rows() == 12
    assert nulls.count_rows([("id", ">", 100)]) == 5


@pytest.mark.parametrize("outcome", ["skip", "null"])
@pytest.mark.parametrize(("fault", "error"), [pair for pair in FAULTS if pair[0] not in ("denied", "absent")])
def test_outages_and_damage_are_no_missing_keys(
    service: Service, outcome: Literal["skip", "null"], fault: KmsFault, error: type[EncpipeError]
) -> None:
    service.kms.fail(fault, "memory:pii")
    with pytest.raises(error):
        service.open(on_missing_key=outcome)


def test_what_is_missing_is_decided_once(service: Service) -> None:
    service.kms.fail("denied", "memory:pii")
    dataset = service.open(on_missing_key="null")
    service.kms.heal()
    assert dataset.to_table()["name"].null_count == 12


@pytest.mark.parametrize("outcome", ["skip", "null"])
def test_a_filter_on_a_missing_column_is_refused(service: Service, outcome: Literal["skip", "null"]) -> None:
    service.kms.fail("denied", "memory:pii")
    dataset = service.open(on_missing_key=outcome)
    with pytest.raises(ConfigError) as refused:
        dataset.count_rows(pc.field("name") == "n1")
    assert refused.value.code == "filter"


WAYS = (
    "dataset.to_table(['id'], pc.field('name') == 'n1')",
    "dataset.count_rows([('name', '=', 'n1')])",
    "dataset.scan(['id'], pc.field('name').is_null()).to_table()",
    "dataset.to_pyarrow(trust_storage_after_the_check=True).to_table()",
    "dataset.to_pyarrow(['id'], trust_storage_after_the_check=True).count_rows(filter=pc.field('id') > 3)",
    "dataset.count_rows()",
    "dataset.to_table(['id'], pc.field('id') > 3)",
)
EXPECTED = ["key-denied"] * 4 + ["done"] * 3


def child(folder: str) -> None:
    """Every way to touch a denied column, and then a key that is refused later than a dataset was made."""
    service = Service(Path(folder))
    service.kms.fail("denied", "memory:pii")
    for way in WAYS:
        dataset = service.open()
        try:
            eval(way, {"dataset": dataset, "pc": pc})
        except EncpipeError as error:
            print(error.code)
        else:
            print("done")
    service.kms.heal()
    arrow = service.open(max_key_age=0.0).to_pyarrow(trust_storage_after_the_check=True)
    service.kms.fail("denied", "memory:pii")
    try:
        arrow.to_table(filter=pc.field("name") > "n1")
    except EncpipeError as error:
        print(error.code)
    else:
        print("done")


def test_filters_and_statistics_on_a_denied_column_never_end_the_process(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_key_service_faults
test_key_service_faults.child({str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    *ways, later = done.stdout.split()
    assert ways == EXPECTED
    assert later in ("done", "key-denied")
