"""The command line. Each command parses, calls one library function and hands the result to `output`.

Only this package prints or exits. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The entry point `encpipe`. Exits with 0, the exit code of the error's class, or 130 on Ctrl-C."""
    from encpipe.cli.app import app
    from encpipe.cli.program import run

    run(app)
