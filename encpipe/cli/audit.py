"""`encpipe audit ...`: the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Grid, Note, Part, plural
from encpipe.cli.program import with_examples

if TYPE_CHECKING:
    from encpipe.audit import AuditCheck

app = typer.Typer(no_args_is_help=False)

VERIFY_EXAMPLES = """
encpipe audit verify
encpipe audit verify /var/log/encpipe/audit.jsonl
encpipe audit verify audit.jsonl --head 0f4cb3c2e5d1a7b8960f4cb3c2e5d1a7b8960f4cb3c2e5d1a7b8960f4cb3c2e5
"""


@app.callback(invoke_without_command=True)
def audit(ctx: typer.Context) -> None:
    """Look after the audit log: who opened, unwrapped, encrypted, decrypted or changed what."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command(cls=with_examples(VERIFY_EXAMPLES))
def verify(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="The log. Default: the configuration's audit.sink.", show_default=False
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="SHA256",
            help="A head that was printed before: its line must still be there.",
            show_default=False,
        ),
    ] = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Find lines of an audit log that were edited, removed or moved.

    Takes a log file, and also what standard error or a Python logger wrote. Note the head it prints in
    another place: with --head, the next run finds it when the end was cut off. Exits with 4 when something
    is wrong.
    """
    from encpipe.audit import verify_audit
    from encpipe.errors import IntegrityError

    found = verify_audit(_configured(config) if file is None else file, head=head)
    make_output(json=json).result(found.as_json(), lambda: _view(found))
    if found.problem_count:
        raise typer.Exit(IntegrityError.exit_code)


def _configured(config_file: Path | None) -> Path:
    from encpipe.config import load_config
    from encpipe.errors import ConfigError

    kind, _, path = (load_config(config_file).audit.sink or "").partition(":")
    if kind != "file":
        raise ConfigError(
            "the configuration names no file as audit.sink",
            hint="name the log: encpipe audit verify FILE",
            code="config-missing",
        )
    return Path(path)


def _view(found: AuditCheck) -> list[Part]:
    rows = [("audit log", found.path), ("lines", f"{found.lines:,}")]
    if found.recovered:
        rows.append(("cut short", f"{plural(found.recovered, 'line')}, each closed by the next"))
    if found.lost:
        rows.append(("lost", f"{plural(found.lost, 'line')} that the log did not take"))
    if not found.collected:
        rows += [("head", chain.head) for chain in found.chains]
    parts: list[Part] = [Facts(rows)]
    if found.collected:
        chains = [
            (f"{chain.host} {chain.pid}", str(chain.lines), "yes" if chain.ended else "no", chain.head)
            for chain in found.chains
        ]
        parts.append(Grid(("process", "lines", "ended", "head"), chains, right=frozenset({"lines"})))
    if found.unended:
        parts.append(
            Note(f"{plural(found.unended, 'chain')} without an end: running still, killed, or cut off")
        )
    if found.problems:
        problems = [(str(problem.line), problem.message) for problem in found.problems]
        parts.append(Grid(("line", "what is wrong"), problems, right=frozenset({"line"}), title="problems"))
        parts.append(
            Note(f"{plural(found.problem_count, 'problem')}: the log is not as it was written", warning=True)
        )
    else:
        parts.append(Note("every line follows the one before it"))
    return parts
