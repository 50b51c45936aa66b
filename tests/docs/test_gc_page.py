"""docs/howto/gc.md is run as it is shown, in a folder and a home of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from test_readme import commands, run

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "gc.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def test_the_page_does_what_it_shows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"distance": [1, 2, 3]}), tmp_path / "flights.parquet")
    run(["encpipe", "init", "--key-file", "encpipe.key"], tmp_path)
    found = BLOCK.findall(PAGE.read_text())
    assert len(found) == 3
    for language, block in found:
        if language == "python":
            assert run([sys.executable, "-c", block], tmp_path) == "() 0 0\n"
            continue
        for command, output in commands(block):
            printed = run(["sh", "-ec", command], tmp_path)
            for line in output.splitlines():
                assert line in printed, command
