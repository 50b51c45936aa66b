"""The command line in this process: an empty home and current folder, no ENCPIPE_* variables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from encpipe.cli.app import app


class Ran:
    """What a run of the command line left behind."""

    def __init__(self, result: Any) -> None:
        self.code: int = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object; nothing may stand on standard error."""
        assert self.err == ""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Cli = Callable[..., Ran]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("ENCPIPE_", "XDG_")):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


@pytest.fixture
def cli(home: Path) -> Cli:
    """Runs `encpipe` with these arguments; `env` adds variables. Must end with `code` (0)."""

    def run(*args: object, code: int = 0, env: dict[str, str] | None = None) -> Ran:
        ran = Ran(CliRunner().invoke(app, [str(arg) for arg in args], env=env))
        assert ran.code == code, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    return run


@pytest.fixture
def ready(cli: Cli, home: Path) -> Cli:
    """The same after `encpipe init` with a key file (no Argon2id, so quick) and a second master key."""
    cli("init", "--key", "pii=local:pii", "--key-file", home / "encpipe.key")
    return cli
