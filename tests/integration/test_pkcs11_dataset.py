"""A dataset whose master keys are on a token: written, read, also in other processes, with a key missing."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pytest
from servers.softhsm import MODULE, PIN, SoftHsm

import encpipe
from encpipe import Config, Dataset, KeyAccessDeniedError, KmsUnavailableError, Policy

pytestmark = pytest.mark.system

ROWS = pa.table({"id": range(100), "name": [f"n{i}" for i in range(100)]})


@pytest.fixture(autouse=True)
def environment(softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_PIN", PIN)


def config(pii: str = "other", mechanism: str = "aes-gcm") -> Config:
    return Config(
        keys={"footer": ("pkcs11:token=main;object=one",), "pii": (f"pkcs11:token=main;object={pii}",)},
        policy=Policy(columns={"pii": ("name",)}),
        kms={"pkcs11": {"module": str(MODULE), "pin": "env:TOKEN_PIN", "mechanism": mechanism}},
    )


@pytest.mark.parametrize("mechanism", ["aes-gcm", "aes-key-wrap"])
def test_written_and_read(tmp_path: Path, mechanism: str) -> None:
    encpipe.write_dataset(ROWS, tmp_path / "data", config=config(mechanism=mechanism))
    dataset = encpipe.open_dataset(tmp_path / "data", config=config())
    assert dataset.to_table().sort_by("id").equals(ROWS)


def rows_of(dataset: Dataset) -> int:
    return dataset.to_table().num_rows


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_read_in_other_processes(tmp_path: Path, method: str) -> None:
    encpipe.write_dataset(ROWS, tmp_path / "data", config=config())
    dataset = encpipe.open_dataset(tmp_path / "data", config=config())
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(rows_of, (dataset,)) == 100
    assert rows_of(dataset) == 100


def test_a_denied_key_makes_columns_missing_and_an_absent_token_does_not(
    tmp_path: Path, softhsm: SoftHsm
) -> None:
    both = config(pii="no-decrypt")
    encpipe.write_dataset(ROWS, tmp_path / "data", config=both)
    with pytest.raises(KeyAccessDeniedError):
        encpipe.open_dataset(tmp_path / "data", config=both).to_table()
    skipping = encpipe.open_dataset(tmp_path / "data", config=both, on_missing_key="skip")
    assert skipping.to_table().column_names == ["id"]
    data = tmp_path / "absent"
    absent = Config(
        keys={**both.keys, "pii": ("pkcs11:token=absent;object=one",)}, policy=both.policy, kms=both.kms
    )
    encpipe.write_dataset(ROWS, data, config=absent)
    place = softhsm.path_of("absent")
    place.rename(tmp_path / "pocket")
    try:
        with pytest.raises(KmsUnavailableError):
            encpipe.open_dataset(data, config=absent, on_missing_key="skip")
    finally:
        (tmp_path / "pocket").rename(place)
