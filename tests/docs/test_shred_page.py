"""docs/howto/shred.md is run as it is shown, in a folder and a home of its own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from test_readme import commands, run

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "shred.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def test_the_page_does_what_it_shows(tmp_path: Path) -> None:
    for year in (2013, 2014):
        folder = tmp_path / "flights" / f"year={year}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"distance": [1, 2], "tailnum": ["a", "b"]}), folder / "part.parquet")
    run(["encpipe", "init", "--key", "pii=local:pii", "--key-file", "encpipe.key"], tmp_path)
    found = BLOCK.findall(PAGE.read_text())
    assert len(found) == 6
    setting = ""
    for language, block in found:
        if language == "python":
            run([sys.executable, "-c", block], tmp_path)
            continue
        for command, output in commands(block):
            if command.startswith("id="):
                setting = command
                continue
            printed = run(["sh", "-ec", f"{setting}\n{command}"], tmp_path)
            for line in output.splitlines():
                assert " ".join(line.split()) in " ".join(printed.split()), command
