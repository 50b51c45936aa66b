"""The command line is an interface: commands and flags come and go on purpose only."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from encpipe.cli.app import app

READ = {"--expect-dataset", "--min-generation", "--storage-option", "--config", "--json"}
FROZEN: dict[str, set[str]] = {
    "": {"--version"},
    "init": {"--config", "--global", "--key", "--key-file", "--json"},
    "keys": set(),
    "keys create": {"NAME", "--config", "--json"},
    "keys list": {"--config", "--json"},
    "keys rotate": {"NAME", "--config", "--json"},
    "keys export": {"NAME", "FILE", "--protect", "--config", "--json"},
    "keys import": {"FILE", "--unlock", "--config", "--json"},
    "keys backup": {"FILE", "--protect", "--config", "--json"},
    "keys passphrase": {"--protect", "--config", "--json"},
    "keys create-signer": {"FILE", "--json"},
    "keys show-signer": {"FILE", "--config", "--json"},
    "encrypt": {
        *(
            "SRC",
            "DST",
            "--format",
            "--policy",
            "--key",
            "--columns",
            "--footer-key",
            "--partition-keys",
            "--workers",
            "--overwrite",
            "--yes",
        ),
        *("--restart", "--single-writer", "--storage-option", "--config", "--json"),
    },
    "append": {
        *("SRC", "DST", "--format", "--key", "--workers", "--restart", "--single-writer"),
        *("--storage-option", "--config", "--json"),
    },
    "decrypt": {"URL", "--plaintext-to", "--select", "--on-missing-key", "--workers", "--integrity", *READ},
    "inspect": {"URL", "--keys", "--storage-option", "--config", "--json"},
    "head": {"URL", "--rows", "-n", "--select", "--on-missing-key", "--integrity", *READ},
    "verify": {"URL", "--deep", "--workers", *READ},
    "sign": {
        *("URL", "--generation", "--expect-core", "--expect-dataset"),
        *("--storage-option", "--config", "--json"),
    },
    "rewrap": {
        *("URL", "--key", "--older-than", "--prove", "--dry-run"),
        *("--storage-option", "--config", "--json"),
    },
    "rekey": {
        *("URL", "--key", "--key-name", "--workers", "--restart", "--dry-run"),
        *("--storage-option", "--config", "--json"),
    },
    "grant": {"URL", "--key", "--storage-option", "--config", "--json"},
    "revoke": {
        *("URL", "--key", "--rekey", "--workers", "--dry-run", "--storage-option", "--config", "--json"),
    },
    "shred": {
        *("URL", "--key-name", "--partition", "--retire-master", "--also", "--confirm", "--report"),
        *("--verify-report", "--dry-run", "--storage-option", "--config", "--json"),
    },
    "gc": {"URL", "--keep", "--older-than", "--grace", "--dry-run", *READ},
    "serve": {"--config", "--json"},
    "audit": set(),
    "audit verify": {"FILE", "--head", "--config", "--json"},
    "doctor": {"--config", "--json"},
}

GROUPS = ("", "keys", "audit")
"""Commands that only hold others."""


def tree(command: Any, path: str = "") -> dict[str, Any]:
    """Every command by its path."""
    found = {path: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= tree(child, f"{path} {name}".strip())
    return found


COMMANDS = tree(typer.main.get_command(app))


def names(command: Any) -> set[str]:
    found: set[str] = set()
    for param in command.params:
        found |= {param.metavar} if param.param_type_name == "argument" else set(param.opts)
    return found - {"--install-completion", "--show-completion"}


def test_commands_and_flags_are_frozen() -> None:
    assert {path: names(command) for path, command in COMMANDS.items()} == FROZEN


def test_no_flag_takes_a_secret() -> None:
    flags = {flag for flags in FROZEN.values() for flag in flags if flag.startswith("--")}
    flags -= {"--retire-master"}  # a URI
    assert not [flag for flag in flags if any(w in flag for w in ("pass", "secret", "token", "master"))]


@pytest.mark.parametrize("path", [path for path in FROZEN if path not in GROUPS])
def test_the_examples_of_every_command_parse(path: str) -> None:
    command = COMMANDS[path]
    lines = command.examples.strip().splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line)
        words = words[words.index("encpipe") + 1 :]
        assert words[: len(path.split())] == path.split()
        command.make_context(path, words[len(path.split()) :])


@pytest.mark.parametrize("path", FROZEN)
def test_help_shows_every_flag_and_the_examples(path: str, cli: Any) -> None:
    ran = cli(*path.split(), "--help")
    assert ran.err == ""
    assert all(flag in ran.out for flag in FROZEN[path])
    assert ("Examples:\n  " in ran.out) == (path not in GROUPS)


@pytest.mark.parametrize("path", ["", "keys"])
def test_a_group_alone_shows_its_help(path: str, cli: Any) -> None:
    assert cli(*path.split()).out == cli(*path.split(), "--help").out
