"""Every vector reads as its `case.json` says, or is refused with just that error and code."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from generate import generate
from materials import FOLDER, keyring_config

from encpipe import Config, EncpipeError, open_dataset, verify_dataset
from encpipe.config import TrustConfig

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("*/case.json"))


def _case(name: str) -> tuple[dict[str, Any], str]:
    return json.loads((HERE / name / "case.json").read_text()), str(HERE / name / "dataset")


@contextmanager
def _reader(case: dict[str, Any]) -> Iterator[Config]:
    with keyring_config(FOLDER, case["reader"]["keyring"]) as keyring:
        reader = case["reader"]
        trust = TrustConfig(tuple(reader["trust"]), tuple(reader.get("signers", ())))
        yield Config(keyring=keyring, trust=trust)


def _outcome(error: EncpipeError) -> dict[str, str]:
    assert error.message
    return {"error": type(error).__name__, "code": error.code}


@pytest.mark.parametrize("name", CASES)
def test_reader(name: str) -> None:
    case, url = _case(name)
    with _reader(case) as config:
        try:
            with open_dataset(url, config=config, **case["reader"]["options"]) as dataset:
                found: dict[str, Any] = {"rows": dataset.to_table(case["reader"]["columns"]).to_pylist()}
        except EncpipeError as error:
            found = _outcome(error)
    assert found == case["expect"]


@pytest.mark.parametrize("name", CASES)
def test_verify(name: str) -> None:
    case, url = _case(name)
    pins = {k: v for k, v in case["reader"]["options"].items() if k in ("expect_dataset", "min_generation")}
    expected = case["verify"]
    if "problems" in expected:
        expected = {"unlisted": [], "pending": [], "unchecked": [], **expected}
    with _reader(case) as config:
        try:
            report = verify_dataset(url, config=config, deep=True, **pins)
        except EncpipeError as error:
            found: dict[str, Any] = _outcome(error)
        else:
            found = {
                "problems": [problem.code for problem in report.problems],
                "unlisted": list(report.unlisted),
                "pending": list(report.pending),
                "unchecked": list(report.unchecked_key_names),
            }
    assert found == expected


def test_generator_makes_just_these(tmp_path: Path) -> None:
    generate(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = sorted(p.relative_to(HERE) for name in CASES for p in (HERE / name).rglob("*") if p.is_file())
    assert made == kept
    same, *others = filecmp.cmpfiles(HERE, tmp_path, [str(path) for path in made], shallow=False)
    assert others == [[], []]
    assert len(same) == len(made)


def test_there_are_enough_and_they_are_small() -> None:
    assert len(CASES) >= 40
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 1_500_000
