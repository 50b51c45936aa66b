"""The group `loader`: fair to its peers, and silent about those that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import loaderpeers, peervenvs, served
from benchmarks.__main__ import GROUPS
from benchmarks.loaderpeers import in_plaintext, with_fernet
from benchmarks.method import Pair
from benchmarks.peerscripts.packing import collated, packed_rows, packed_table
from benchmarks.peerscripts.touch import total, touch
from benchmarks.plainsource import PlainSource
from benchmarks.ratios import Effort
from benchmarks.served import Served, Setup, check_totals, expected_totals
from benchmarks.workloads import Workload
from encpipe.torch.source import RowGroupSource

ROWS = 50


def few_rows(rng: np.random.Generator, start: int, rows: int) -> pa.RecordBatch:
    ids = np.arange(start, start + rows)
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array(ids, pa.int64()),
            "at": pa.array(ids, pa.timestamp("us")),
            "real": pa.array(rng.random(rows), mask=ids % 7 == 0),
            "text": [f"row {n}" for n in ids],
        }
    )


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    made = Workload("few", 2, ROWS, 20, few_rows)
    folder = made.ensure(tmp_path)
    monkeypatch.setattr(Workload, "ensure", lambda _: folder)
    return made


def test_rows_a_second_are_compared_where_the_two_do_not_read_equally_many(workload: Workload) -> None:
    setup = Setup("litdata", "serve_litdata.py", workload, rows=10, batch_size=4)
    ratio = loaderpeers._rate_ratio(setup)
    assert ratio(Pair(peer=2.0, ours=1.0)) == pytest.approx((2 * ROWS / 1.0) / (10 / 2.0))


def test_peers_that_are_not_installed_are_left_out_and_meet_no_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peervenvs, "PEERS_FOLDER", tmp_path)
    for part in (with_fernet, in_plaintext):
        results = part(Effort(pairs=2, runs=1))
        assert results.figures == []
        assert set(results.details.values()) <= {
            f"left out: {name} is not installed (make bench-peers)" for name in peervenvs.PEERS
        }
    assert "vs_litdata_fernet_narrow left out" in capsys.readouterr().err


def test_an_environment_of_other_versions_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peervenvs, "PEERS_FOLDER", tmp_path)
    made = tmp_path / "litdata" / "made"
    made.parent.mkdir()
    made.write_text(peervenvs._recipe("litdata"))
    assert peervenvs.python_of("litdata") == tmp_path / "litdata/.venv/bin/python"
    monkeypatch.setitem(peervenvs.PEERS, "litdata", ("litdata==0.2.72",))
    assert peervenvs.python_of("litdata") is None


def test_the_plaintext_source_gives_the_rows_that_are_there(workload: Workload) -> None:
    source = PlainSource(workload.ensure())
    assert isinstance(source, RowGroupSource)
    assert list(source.rows) == [20, 20, 10, 20, 20, 10]
    tables = [source.read(n) for n in range(6)]
    assert pa.concat_tables(tables).equals(pq.read_table(workload.ensure()))
    assert sum(source.sizes) == pytest.approx(
        sum(p.stat().st_size for p in workload.ensure().iterdir()), abs=6
    )
    source.close()
    assert len(source.read(5)) == 10


def test_packed_rows_hold_the_same_values() -> None:
    batch = pa.RecordBatch.from_pydict({"a": [1, 2], "x": [0.5, 1.5], "b": [3, 4], "t": ["u", "v"]})
    made = collated(
        [{k: torch.tensor(v) if k == "int64" else v for k, v in r.items()} for r in packed_rows(batch)]
    )
    assert made["int64"].tolist() == [[1, 3], [2, 4]]
    assert made["x"].tolist() == [0.5, 1.5]
    assert made["t"] == ["u", "v"]
    table = packed_table(pa.Table.from_batches([batch]))
    assert table.to_pydict() == {"int64": [[1, 3], [2, 4]], "x": [0.5, 1.5], "t": ["u", "v"]}


def test_bytes_become_one_tensor_and_views_become_bytes() -> None:
    rows = [{"tokens": np.arange(3, dtype=np.int32).tobytes(), "image": memoryview(b"ab")} for _ in range(2)]
    made = collated(rows)
    assert made["tokens"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert made["image"] == [b"ab", b"ab"]


def test_every_batch_is_touched_and_its_rows_are_counted() -> None:
    assert touch({"x": torch.ones(3, 2), "t": ["a", "bc", ""]}) == 3
    assert total(torch.tensor([1, 2])) == 3.0
    assert total([b"ab", b"c"]) == 3.0


FAKE = """
import pyarrow as pa, torch
from serving import serve
kept = {}
def convert(job):
    job.target.mkdir()
    pa.parquet.write_table(pa.concat_tables(job.tables()), job.target / "all.parquet")
def load(job, workers):
    table = pa.parquet.read_table(job.target / "all.parquet")
    assert table["at"].type == pa.int64() and not table["real"].null_count
    numbers = {"int64": torch.tensor([table["id"].to_pylist(), table["at"].to_pylist()]).T}
    batch = {**numbers, "real": torch.tensor(table["real"].to_numpy()), "text": table["text"].to_pylist()}
    print("noise of a library")
    return lambda: [batch]
import pyarrow.parquet
serve(convert, load)
"""


def test_a_peer_is_asked_line_by_line_and_its_values_are_checked(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "serve_fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(served, "DATA", tmp_path)
    monkeypatch.setattr(peervenvs, "python_of", lambda _: Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", str(served.SCRIPTS))
    setup = Setup("litdata", str(script), workload, rows=70, batch_size=70)
    with Served(setup, "") as peer:
        assert peer.made["bytes"] > 0
        peer.ask("open 0")
        assert peer.epoch() > 0
        totals = peer.ask("check")["totals"]
        check_totals(setup, totals)
        with pytest.raises(AssertionError, match="other values in real of few"):
            check_totals(setup, {**totals, "real": totals["real"] + 1})
        with pytest.raises(AssertionError, match=r"leaves out \['real', 'text'\]"):
            check_totals(setup, {"int64": totals["int64"]})
        with pytest.raises(RuntimeError, match="no such command"):
            peer.ask("dance")
    assert expected_totals(workload.ensure(), 1)["int64"] == 0.0


def test_the_group_has_a_part_for_every_figure() -> None:
    from benchmarks import loader

    assert GROUPS["loader"] == "benchmarks.loader"
    assert {"plain", "pyarrow", "threads", "fernet", "peers", "shuffle"} <= set(loader.PARTS)
