"""`encpipe gc`: what goes, and what is shown of it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli


@pytest.fixture
def data(ready: Cli) -> Cli:
    """A dataset `enc` of two generations, the older one replaced."""
    pq.write_table(pa.table({"id": [1, 2, 3]}), "plain.parquet")
    ready("encrypt", "plain.parquet", "enc")
    ready("encrypt", "plain.parquet", "enc", "--overwrite", "--yes")
    return ready


def test_a_generation_goes_when_it_is_asked_for(data: Cli) -> None:
    told = data("gc", "enc", "--keep", "1", "--grace", "0", "--dry-run", "--json").json
    assert (told["dry_run"], told["left"], told["kept"], len(told["removed"])) == (True, [1], [2], 2)
    shown = data("gc", "enc", "--keep", "1", "--grace", "0", "--dry-run").out
    assert "would be removed" in shown
    assert told["removed"][0] in shown
    done = data("gc", "enc", "--keep", "1", "--grace", "0", "--json").json
    assert done["removed"] == told["removed"]
    assert data("inspect", "enc", "--json").json["retained_generations"] == []
    assert data("verify", "enc", "--deep", "--json").json["unlisted"] == []


def test_what_waits_is_told(data: Cli) -> None:
    shown = data("gc", "enc", "--keep", "1").out
    assert "no longer readable  generation 1" in shown
    assert "removed             0 objects, 0 B" in shown
    assert "waiting             2 objects" in shown
    assert data("verify", "enc", "--json").json["unlisted"] != []


def test_what_is_not_ours_is_told(data: Cli) -> None:
    Path("enc/README.md").write_text("mine")
    assert "1 object not of encpipe left alone" in data("gc", "enc").out
    assert data("gc", "enc", "--json").json["foreign"] == ["README.md"]


def test_generations_by_age(data: Cli) -> None:
    for path in Path("enc").rglob("*"):
        if path.is_file():
            os.utime(path, (0, path.stat().st_mtime - 10 * 86_400))
    assert data("gc", "enc", "--older-than", "2w", "--json").json["left"] == []
    assert data("gc", "enc", "--older-than", "9d", "--json").json["left"] == [1]


@pytest.mark.parametrize("grace", ["", "7", "-1d", "1.5d", "7y"])
def test_what_is_no_length_of_time_is_refused(data: Cli, grace: str) -> None:
    error = data("gc", "enc", "--grace", grace, "--json", code=2).json["error"]
    assert error["code"] == "usage"
