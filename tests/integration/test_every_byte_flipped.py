"""Every byte of a dataset flipped, one at a time, and cut at every length: refused, or the same rows.

Never wrong rows, never a crash, a hang or an error of another tree. Each change is read in a child process
(`simulation.flipping`); what a reader has no use for may differ unnoticed, if `verify --deep` notices.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulation.flipping import SETTINGS

from encpipe import Policy, write_dataset

TESTS = Path(__file__).resolve().parents[1]
MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
ROWS = [{"id": i, "name": f"person {i}"} for i in range(6)]
CHUNKS = 4
"""Parts of one object, so that pytest-xdist has something to share out."""
MANIFEST = "_encpipe/manifest.json"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two row groups, an int column under the footer key, a string column under another."""
    folder = tmp_path_factory.mktemp("flipped")
    table = pa.Table.from_pylist(ROWS, schema=pa.schema([("id", pa.int64()), ("name", pa.string())]))
    pq.write_table(table, folder / "source.parquet", row_group_size=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCPIPE_MASTER_KEY", MASTER_KEY)
        policy = Policy(columns={"pii": ("name",)})
        write_dataset(folder / "source.parquet", folder / "dataset", policy=policy, config=SETTINGS)
    (folder / "expected.json").write_text(json.dumps(ROWS))
    return folder / "dataset"


def _object(dataset: Path, pattern: str) -> tuple[str, bytes]:
    (found,) = dataset.glob(pattern)
    return str(found.relative_to(dataset)), found.read_bytes()


def _outcomes(dataset: Path, path: str, kind: str, positions: Iterable[int]) -> dict[int, str]:
    wanted = list(positions)
    done = subprocess.run(
        [sys.executable, "-m", "simulation.flipping", str(dataset), path, kind],
        input=json.dumps(wanted),
        cwd=TESTS,
        env={**os.environ, "ENCPIPE_MASTER_KEY": MASTER_KEY},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["position"] for line in lines] == wanted
    bad = [line for line in lines if line["outcome"] not in ("same", "integrity", "key-or-config")]
    assert not bad, f"{bad[:20]}\n{done.stderr[-4000:]}"
    return {line["position"]: line["outcome"] for line in lines}


def _part(data: bytes, chunk: int) -> range:
    return range(len(data) * chunk // CHUNKS, len(data) * (chunk + 1) // CHUNKS)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_flipped_manifest_is_refused(dataset: Path, chunk: int) -> None:
    path, data = _object(dataset, MANIFEST)
    outcomes = _outcomes(dataset, path, "flip", _part(data, chunk))
    naming_a_key = {
        position
        for found in re.finditer(rb'"(?:master_key|version)":"[^"]*"|"[0-9a-f]{32}"', data)
        for position in range(*found.span())
    }
    # without a wrapping under its id a KEK counts as shredded, before there is a key to check a MAC with
    other = {position for position, outcome in outcomes.items() if outcome != "integrity"}
    assert other <= naming_a_key
    assert "same" not in outcomes.values()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_cut_manifest_is_refused(dataset: Path, chunk: int) -> None:
    path, data = _object(dataset, MANIFEST)
    outcomes = _outcomes(dataset, path, "cut", _part(data, chunk))
    assert set(outcomes.values()) == {"integrity"}


def test_a_flipped_list_is_refused(dataset: Path) -> None:
    path, data = _object(dataset, "_encpipe/*.sealed")
    outcomes = _outcomes(dataset, path, "flip", range(len(data)))
    assert set(outcomes.values()) == {"integrity"}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_flipped_data_file_is_refused_or_reads_the_same(dataset: Path, chunk: int) -> None:
    path, data = _object(dataset, "data/*.parquet")
    outcomes = Counter(_outcomes(dataset, path, "flip", _part(data, chunk)).values())
    assert set(outcomes) <= {"integrity", "same"}
    assert outcomes["integrity"] > 0.9 * outcomes.total()


def test_a_cut_data_file_is_refused(dataset: Path) -> None:
    path, data = _object(dataset, "data/*.parquet")
    lengths = sorted({*range(0, len(data), len(data) // 80), *range(len(data) - 20, len(data)), *range(13)})
    outcomes = _outcomes(dataset, path, "cut", lengths)
    assert set(outcomes.values()) == {"integrity"}
