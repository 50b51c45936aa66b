"""`encpipe doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Grid, Note, Part, plural

if TYPE_CHECKING:
    from encpipe.checkup import Checkup

DOCTOR_EXAMPLES = """
encpipe doctor
encpipe doctor --config jobs/train.toml --json
"""
EXIT_FAILED: Final = 1
STYLES: Final = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}


def doctor(config: opt.ConfigFile = None, json: opt.Json = False) -> None:
    """Look at this machine: packages, configuration, keyring, connections, and what keeps plaintext in it.

    Asks for no passphrase. Connects to the servers that the configuration names, and asks them nothing. Exits
    with 1 when something cannot work.
    """
    from encpipe.checkup import check_up

    found = check_up(config)
    make_output(json=json).result(found.as_json(), lambda: doctor_view(found))
    if found.at("fail"):
        raise typer.Exit(EXIT_FAILED)


def doctor_view(found: Checkup) -> list[Part]:
    """A checkup for a person: what is, then what to do."""
    rows = [(finding.level, finding.check, finding.found) for finding in found.findings]
    parts: list[Part] = [Grid(("", "check", "found"), rows, styles=STYLES)]
    hints = [(finding.check, finding.hint) for finding in found.findings if finding.hint]
    if hints:
        parts.append(Facts(hints, title="what to do, where it matters to you"))
    failed, warned = len(found.at("fail")), len(found.at("warn"))
    if failed or warned:
        parts.append(Note(f"{plural(failed, 'failure')}, {plural(warned, 'warning')}", warning=True))
    else:
        parts.append(Note("nothing is in the way"))
    return parts
