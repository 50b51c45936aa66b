"""`encpipe audit verify`, and what commands write to the log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli


@pytest.fixture
def log(ready: Cli) -> Path:
    """An audit log with the lines of a write and a read."""
    config = Path("encpipe.toml")
    config.write_text(f'{config.read_text()}\n[audit]\nsink = "file:audit.jsonl"\n')
    pq.write_table(pa.table({"id": [1, 2], "name": ["a", "b"]}), "people.parquet")
    ready("encrypt", "people.parquet", "people", "--columns", "pii=name")
    ready("head", "people")
    return Path("audit.jsonl")


def test_a_whole_log_is_verified_by_its_configuration(log: Path, cli: Cli) -> None:
    found = cli("audit", "verify", "--json").json
    assert (found["lines"], found["problem_count"], found["collected"]) == (4, 0, False)
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events == ["encrypt", "unwrap", "open", "unwrap"]
    shown = cli("audit", "verify", log).out
    assert found["chains"][0]["head"] in shown
    assert "every line follows the one before it" in shown


def test_what_is_wrong_is_shown_and_exits_with_4(log: Path, cli: Cli) -> None:
    head = cli("audit", "verify", "--json").json["chains"][0]["head"]
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    assert "1 problem" in cli("audit", "verify", "--head", head, code=4).out
    log.write_text("".join(lines[1:]))
    shown = cli("audit", "verify", log, code=4)
    assert "what stood before it is missing" in shown.out
    assert cli("audit", "verify", log, "--json", code=4).json["problems"][0]["line"] == 1


def test_standard_error_is_a_log_too(log: Path, cli: Cli) -> None:
    config = Path("encpipe.toml")
    config.write_text(config.read_text().replace("file:audit.jsonl", "stderr"))
    command = [sys.executable, "-m", "encpipe", "head", "people", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["rows"]) == 2
    Path("collected").write_text(done.stderr)
    found = cli("audit", "verify", "collected", "--json").json
    assert (found["collected"], found["problem_count"], found["unended"], found["lines"]) == (True, 0, 0, 5)
    Path("collected").write_text("".join(done.stderr.splitlines(keepends=True)[:-1]))
    assert "1 chain without an end" in cli("audit", "verify", "collected").out
    assert "names no file" in cli("audit", "verify", code=2).err


def test_no_log_no_read(log: Path, cli: Cli) -> None:
    log.unlink()
    log.mkdir()
    assert cli("head", "people", "--json", code=5).json["error"]["code"] == "audit"


def test_a_log_that_is_not_there_is_an_error(cli: Cli) -> None:
    cli("audit", "verify", "none", code=5)
    assert "names no file" in cli("audit", "verify", code=2).err
    assert "--head" in cli("audit", "verify", "--help").out
    assert "verify" in cli("audit").out
