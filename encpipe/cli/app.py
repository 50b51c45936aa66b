"""The commands, in the order of the help."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from encpipe.cli import audit, doctor, gc, init, keys, lifecycle, read, serve, shred, sign, write
from encpipe.cli.program import Program, with_examples

app = typer.Typer(
    name="encpipe",
    cls=Program,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,  # plain and quick on a pipe
    pretty_exceptions_enable=False,  # they would show local variables, keys among them
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("init", cls=with_examples(init.EXAMPLES))(init.init)
app.add_typer(keys.app, name="keys")
app.command("encrypt", cls=with_examples(write.ENCRYPT_EXAMPLES))(write.encrypt)
app.command("append", cls=with_examples(write.APPEND_EXAMPLES))(write.append)
app.command("decrypt", cls=with_examples(read.DECRYPT_EXAMPLES))(read.decrypt)
app.command("inspect", cls=with_examples(read.INSPECT_EXAMPLES))(read.inspect)
app.command("head", cls=with_examples(read.HEAD_EXAMPLES))(read.head)
app.command("verify", cls=with_examples(read.VERIFY_EXAMPLES))(read.verify)
app.command("sign", cls=with_examples(sign.EXAMPLES))(sign.sign)
app.command("rewrap", cls=with_examples(lifecycle.REWRAP_EXAMPLES))(lifecycle.rewrap)
app.command("rekey", cls=with_examples(lifecycle.REKEY_EXAMPLES))(lifecycle.rekey)
app.command("grant", cls=with_examples(lifecycle.GRANT_EXAMPLES))(lifecycle.grant)
app.command("revoke", cls=with_examples(lifecycle.REVOKE_EXAMPLES))(lifecycle.revoke)
app.command("shred", cls=with_examples(shred.EXAMPLES))(shred.shred)
app.command("gc", cls=with_examples(gc.GC_EXAMPLES))(gc.gc)
app.add_typer(audit.app, name="audit")
app.command("serve", cls=with_examples(serve.EXAMPLES))(serve.serve)
app.command("doctor", cls=with_examples(doctor.DOCTOR_EXAMPLES))(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"encpipe {version('encpipe')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def encpipe(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Envelope encryption for Parquet datasets, decrypted only in memory.

    Start with `encpipe init`. Every command takes --json; `encpipe COMMAND --help` shows examples.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
