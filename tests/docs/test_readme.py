"""What README.md shows is what happens, in a folder and a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def blocks(language: str) -> list[str]:
    """The README's fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def commands(block: str) -> list[tuple[str, str]]:
    """(command, the output shown below it) for each line that begins with a prompt."""
    parts = re.split(r"^\$ ", block, flags=re.M)
    assert parts[0] == "", "a console block begins with a command"
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts[1:])]


def run(command: list[str], folder: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCPIPE_", "XDG_"))}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "HOME": str(home), "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def test_the_commands_and_programs_do_what_they_show(tmp_path: Path) -> None:
    shown = [pair for block in blocks("console") for pair in commands(block)]
    assert len(shown) >= 6
    for command, output in shown:
        assert output in run(["sh", "-ec", command], tmp_path)
    printed = [run([sys.executable, "-c", program], tmp_path) for program in blocks("python")]
    assert printed[0].endswith("tensor([0]) tensor([False])\n")
    assert "Grace" in printed[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


def test_make_knows_the_targets_that_the_pages_name() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:^|`|    )make ([a-z-]+)", page.read_text(), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page.name} names make {target}"
