"""What `encpipe doctor` finds out: packages, configuration, keyring, connections, and what keeps plaintext in
memory here.

Asks for no passphrase, unlocks no keyring, and changes nothing. Connects to key services and storage that the
configuration names, and sends them no request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from encpipe.checkup.connections import check_connections
from encpipe.checkup.finding import Finding, Level
from encpipe.checkup.memory import check_machine
from encpipe.checkup.setup import check_configuration, check_packages
from encpipe.machine import Machine

__all__ = ["Checkup", "Finding", "Level", "check_up"]


@dataclass(frozen=True)
class Checkup:
    """All findings, in an order that reads well."""

    findings: tuple[Finding, ...]

    def at(self, level: Level) -> list[Finding]:
        """The findings of this level."""
        return [finding for finding in self.findings if finding.level == level]

    def as_json(self) -> dict[str, Any]:
        return {
            "failed": len(self.at("fail")),
            "warned": len(self.at("warn")),
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_up(
    config_file: Path | None = None, *, env: Mapping[str, str] = os.environ, machine: Machine | None = None
) -> Checkup:
    """Look at everything; takes a fraction of a second, and longer where a server does not answer.

    A fault is a finding: nothing of it is raised.

    `config_file` and `env` count as in `load_config`.
    """
    machine = machine or Machine()
    parts = (
        check_packages(),
        check_configuration(config_file, env),
        check_connections(config_file, env),
        check_machine(machine, env),
    )
    return Checkup(tuple(finding for part in parts for finding in part))
