"""docs/howto/sign.md is run as it is shown, in a folder with a table and a dataset that nobody signed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "sign.md"
ROWS = 20


def run(command: list[str], folder: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCPIPE_", "XDG_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "HOME": str(folder / "home"), "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def test_the_commands_and_the_program_do_what_they_show(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    table = pa.table({"tailnum": [f"N{n}" for n in range(ROWS)], "distance": list(range(ROWS))})
    pq.write_table(table, tmp_path / "flights.parquet")
    run(["encpipe", "init", "--key-file", "encpipe.key"], tmp_path)
    run(["encpipe", "encrypt", "flights.parquet", "unsigned/flights"], tmp_path)
    run(["cp", "encpipe.toml", "before.toml"], tmp_path)

    blocks = re.findall(r"^```(console|python)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 5
    for language, block in blocks:
        if language == "python":
            assert run([sys.executable, "-c", block], tmp_path) == f"{ROWS} rows\n"
            continue
        for command in re.split(r"^\$ ", block, flags=re.M)[1:]:
            lines = command.splitlines(keepends=True)
            end = lines.index("END\n") + 1 if "END\n" in lines else 1
            shown = "".join(lines[end:]).strip()
            assert shown in run(["sh", "-ec", "".join(lines[:end])], tmp_path)
