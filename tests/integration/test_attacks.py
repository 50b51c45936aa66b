"""What someone who writes the storage can do to a reader, with no key or with some; written as edits.

The vectors hold one case for each rule; here are whole attacks on datasets that encpipe wrote.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulation import DatasetSim, Kek
from simulation.dataset import MANIFEST, dumps

from encpipe import (
    Config,
    Dataset,
    EncpipeError,
    IntegrityError,
    ManifestError,
    MasterKeys,
    Policy,
    StaleDatasetError,
    UntrustedKeyError,
    UnwrapError,
    append_dataset,
    open_dataset,
    verify_dataset,
    write_dataset,
)
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.testing import InMemoryKms

TESTS = Path(__file__).resolve().parents[1]
CONFIG = Config(keys={"footer": ("memory:main",), "pii": ("memory:pii",)})
POLICY = Policy(columns={"pii": ("name",)})


def table(first: int) -> pa.Table:
    return pa.table({"id": range(first, first + 6), "name": [f"person {n % 10}" for n in range(6)]})


class Victim:
    """A dataset of two files, its key service, and what its readers do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "dataset"
        self.pins = folder / "pins.json"
        self.kms = InMemoryKms(["main", "pii", "mallory"])
        source = folder / "source"
        source.mkdir()
        for n in range(2):
            pq.write_table(table(n * 100), source / f"{n}.parquet", row_group_size=3)
        write_dataset(source, self.folder, policy=POLICY, config=CONFIG, master_keys=self.master_keys())
        self.sim = self.load()

    def master_keys(self) -> MasterKeys:
        return MasterKeys(CONFIG, extra={"memory": self.kms})

    def open(self, **options: Any) -> Dataset:
        return open_dataset(self.folder, config=CONFIG, master_keys=self.master_keys(), **options)

    def read(self, **options: Any) -> list[int]:
        return [int(n) for n in self.open(**options).to_table()["id"].to_pylist()]

    def append(self, first: int) -> None:
        append_dataset(table(first), self.folder, config=CONFIG, master_keys=self.master_keys())

    def load(self) -> DatasetSim:
        return DatasetSim.load(self.folder, self.keks())

    def keks(self) -> dict[str, Kek]:
        found = {}
        with self.open() as dataset:
            state = dataset._state
            for record in state.view.core.keks:
                found[record.key_name] = Kek(record.id, state.keys.kek(record.id))
        return {name: found[name] for name in ("footer", "pii")}

    def wrap(self, sim: DatasetSim, key_name: str, master: str, kek: Secret) -> WrappedKey:
        context = KeyContext(sim.core["dataset_id"], key_name, sim.keks[key_name].id)
        return self.kms.master_key(f"memory:{master}").wrap(kek, aad=context)


@pytest.fixture
def victim(tmp_path: Path) -> Victim:
    return Victim(tmp_path)


FIRST = [*range(6), *range(100, 106)]


def test_the_simulator_makes_what_encpipe_makes(victim: Victim) -> None:
    """Sealed and MACed again by the format page alone, the dataset reads as before."""
    victim.sim.publish()
    victim.sim.write_to(victim.folder)
    assert victim.read() == FIRST
    assert not verify_dataset(victim.folder, config=CONFIG, master_keys=victim.master_keys()).problems


# Without any key


def _forge(victim: Victim) -> None:
    keks = {name: Kek(kek.id, Secret.random()) for name, kek in victim.sim.keks.items()}
    forged = victim.sim.copy()
    forged.keks = keks
    for name, kek in keks.items():
        record = next(r for r in forged.core["keks"] if r["key_name"] == name)
        context = bytes.fromhex(kek.id)
        record["commitment"] = hashlib.sha256(context).hexdigest()
        forged.keys["wrappings"][kek.id].clear()
        forged.add_wrapping(name, victim.wrap(forged, name, "mallory", kek.secret))
    forged.publish()
    forged.write_to(victim.folder)


def test_a_dataset_under_a_foreign_key_is_refused_before_any_call(victim: Victim) -> None:
    _forge(victim)
    before = victim.kms.unwraps
    with pytest.raises(UntrustedKeyError, match="memory:mallory"):
        victim.read()
    assert victim.kms.unwraps == before


def test_nothing_is_appended_to_a_dataset_under_a_foreign_key(victim: Victim) -> None:
    _forge(victim)
    before = {path: path.read_bytes() for path in victim.folder.rglob("*") if path.is_file()}
    with pytest.raises(UntrustedKeyError):
        victim.append(200)
    assert {path: path.read_bytes() for path in victim.folder.rglob("*") if path.is_file()} == before


def test_swapped_files(victim: Victim) -> None:
    first, second = victim.sim.paths
    objects = victim.sim.objects
    objects[first], objects[second] = objects[second], objects[first]
    victim.sim.write_to(victim.folder)
    with pytest.raises(IntegrityError) as refused:
        victim.read()
    assert refused.value.code in ("unwrap", "file-size")


def test_one_file_twice(victim: Victim) -> None:
    first, second = victim.sim.paths
    victim.sim.objects[second] = victim.sim.objects[first]
    victim.sim.write_to(victim.folder)
    with pytest.raises(IntegrityError) as refused:
        victim.read()
    assert refused.value.code in ("unwrap", "file-size")


def test_a_damaged_file_does_not_keep_the_others_from_being_read(victim: Victim) -> None:
    victim.sim.flip(victim.sim.paths[1], 100)
    victim.sim.write_to(victim.folder)
    dataset = victim.open()
    assert dataset.scan(files=dataset.files[:1]).to_table()["id"].to_pylist() == FIRST[:6]
    with pytest.raises(IntegrityError) as refused:
        dataset.to_table()
    assert dataset.files[1].path in refused.value.message


def _old_and_new(victim: Victim) -> tuple[DatasetSim, DatasetSim]:
    old = victim.load()
    victim.append(200)
    return old, victim.load()


def test_a_full_rollback_goes_unnoticed_without_a_pin(victim: Victim) -> None:
    """Documented in docs/threat-model.md: nothing in the storage can tell."""
    old, _ = _old_and_new(victim)
    old.write_to(victim.folder)
    assert victim.read() == FIRST


@pytest.mark.parametrize("pin", ["min_generation", "min_revision", "expect_core"])
def test_a_full_rollback_is_noticed_with_a_pin(victim: Victim, pin: str) -> None:
    old, new = _old_and_new(victim)
    values = {
        "min_generation": new.core["generation"],
        "min_revision": new.keys["revision"],
        "expect_core": hashlib.sha256(new.lines[0]).hexdigest(),
    }
    assert victim.read(**{pin: values[pin]}) == [*FIRST, *range(200, 206)]
    old.write_to(victim.folder)
    with pytest.raises(StaleDatasetError):
        victim.read(**{pin: values[pin]})


def test_a_pin_store_notices_what_a_reader_saw_before(victim: Victim) -> None:
    assert victim.read(pin_store=victim.pins) == FIRST
    old, new = _old_and_new(victim)
    assert len(victim.read(pin_store=victim.pins)) == 18
    old.write_to(victim.folder)
    for _ in range(2):
        with pytest.raises(StaleDatasetError):
            victim.read(pin_store=victim.pins)
    new.write_to(victim.folder)
    assert len(victim.read(pin_store=victim.pins)) == 18


def test_another_dataset_under_the_same_keys_is_noticed_with_a_pin(victim: Victim, tmp_path: Path) -> None:
    dataset_id = victim.open().dataset_id
    write_dataset(
        table(900), tmp_path / "other", policy=POLICY, config=CONFIG, master_keys=victim.master_keys()
    )
    victim.folder.rename(tmp_path / "away")
    (tmp_path / "other").rename(victim.folder)
    assert victim.read() == list(range(900, 906))
    with pytest.raises(StaleDatasetError):
        victim.read(expect_dataset=dataset_id)


@pytest.mark.parametrize("lines", ["ONN", "NON", "NNO", "OON", "ONO", "NOO"])
def test_manifests_of_two_generations_mixed(victim: Victim, lines: str) -> None:
    old, new = _old_and_new(victim)
    mixed = [(old if which == "O" else new).lines[n] for n, which in enumerate(lines)]
    new.set_lines(*mixed)
    new.write_to(victim.folder)
    with pytest.raises(ManifestError) as refused:
        victim.read()
    assert refused.value.code in ("manifest-mac", "manifest")  # the latter: retained cores beyond the core


def test_the_list_of_an_older_generation(victim: Victim) -> None:
    old, new = _old_and_new(victim)
    new.objects[new.list_path] = old.objects[old.list_path]
    new.write_to(victim.folder)
    with pytest.raises(ManifestError) as refused:
        victim.read()
    assert refused.value.code == "file-list"


def test_an_older_manifest_without_its_list(victim: Victim) -> None:
    old, new = _old_and_new(victim)
    new.objects[MANIFEST] = old.objects[MANIFEST]
    del new.objects[old.list_path]
    new.write_to(victim.folder)
    with pytest.raises(ManifestError) as refused:
        victim.read()
    assert refused.value.code == "file-missing"


def test_a_wrapping_put_in_by_who_may_use_the_master_key(victim: Victim) -> None:
    """He can make wrappings of the trusted key, and does not know the KEK."""
    sim = victim.sim
    sim.keys["wrappings"][sim.keks["footer"].id].clear()
    sim.add_wrapping("footer", victim.wrap(sim, "footer", "main", Secret.random()))
    sim.set_lines(sim.lines[0], dumps(sim.keys), sim.lines[2])
    sim.write_to(victim.folder)
    with pytest.raises(UnwrapError) as refused:
        victim.read()
    assert refused.value.code == "kek-commitment"


# With the footer KEK alone


def test_a_footer_key_holder_cannot_drop_a_file_from_who_has_the_column_key(victim: Victim) -> None:
    victim.sim.file_list["files"].pop()
    victim.sim.publish(holding=["footer"])
    victim.sim.write_to(victim.folder)
    with pytest.raises(ManifestError):
        victim.read()
    # whoever has the footer key alone trusts its other holders
    assert victim.open().to_table(["id"])["id"].to_pylist() == FIRST[:6]
    with pytest.raises(ManifestError):
        verify_dataset(victim.folder, config=CONFIG, master_keys=victim.master_keys())


def test_a_footer_key_holder_cannot_move_a_column_to_his_key(victim: Victim) -> None:
    """He gives the column a KEK of his own under the key name he may use."""
    victim.sim.file_list["columns"] = [["id", "footer"], ["name", "footer"]]
    victim.sim.file_list["policy"]["columns"] = {}
    victim.sim.publish(holding=["footer"])
    victim.sim.write_to(victim.folder)
    with pytest.raises(EncpipeError):
        victim.read()


REWRITTEN = {
    "file-column-rewritten-in-clear": "file-foreign",
    "file-columns-rewritten-under-footer-dek": "file-foreign",
    "file-column-rewritten-under-footer-kek": "dek-commitment",
    "file-column-rewritten-under-guessed-kek": "unwrap",
}
WAYS = (
    "dataset.to_table()",
    "dataset.to_table(['name'])",
    "dataset.to_table(['id'], pc.field('name') == 'Max')",
    "dataset.count_rows([('name', '=', 'Max')])",
    "dataset.head(1)",
    "dataset.to_pyarrow(trust_storage_after_the_check=True).to_table()",
    "dataset.to_pyarrow(trust_storage_after_the_check=True).count_rows(filter=pc.field('name') == 'Max')",
    "duckdb.sql('select count(*) from dataset').fetchall()",
    "list(dataset.scan(filter=pc.field('name') > 'A', threads=1))",
)


@pytest.mark.parametrize("name", REWRITTEN)
def test_no_way_of_reading_a_rewritten_file_gives_rows_or_ends_the_process(name: str) -> None:
    """In a child, since PyArrow aborts where it meets such a file's metadata unprepared."""
    program = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "vectors")!r}]
import duckdb, pyarrow.compute as pc
from test_vectors import _case, _reader
from encpipe import EncpipeError, open_dataset
case, url = _case({name!r})
with _reader(case) as config:
    for way in {WAYS!r}:
        dataset = open_dataset(url, config=config)
        try:
            eval(way)
        except EncpipeError as error:
            print(error.code)
        except Exception as error:
            # an Arrow stream passes on the text alone
            told = "data key" in str(error) or "was committed" in str(error)
            print({REWRITTEN[name]!r} if told else repr(error))
        else:
            print("read", way)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert done.stdout.split("\n")[:-1] == [REWRITTEN[name]] * len(WAYS), done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
