"""docs/key-lifecycle.md: its commands and its program run in their order, in a home of their own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from test_readme import commands, run
from typer.main import get_command

from encpipe.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "key-lifecycle.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def test_the_page_does_what_it_shows(tmp_path: Path) -> None:
    for language, block in BLOCK.findall(PAGE.read_text()):
        if language == "python":
            run([sys.executable, "-c", block], tmp_path)
            continue
        for command, output in commands(block):
            assert output in run(["sh", "-ec", command], tmp_path), command


def test_it_names_every_command_that_changes_wrappings() -> None:
    verbs = {"rewrap", "rekey", "grant", "revoke", "shred"}
    assert verbs <= set(get_command(app).commands)  # type: ignore[attr-defined]  # a group has commands
    shown = set(re.findall(r"^\$ encpipe (\w+)", PAGE.read_text(), re.M))
    assert verbs <= shown


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE.read_text())
    assert [t for t in targets if "://" not in t and not (PAGE.parent / t).exists()] == []
