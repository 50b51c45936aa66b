"""How the program ends: every error becomes two lines, or one JSON object, and an exit code.

Built on what typer exports, since newer versions of it no longer use the package `click`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from encpipe.cli.output import StdoutError, make_output, writing_stdout
from encpipe.errors import ConfigError, EncpipeError

PROGRAM: Final = "encpipe"
EXIT_BROKEN_PIPE: Final = 128 + 13
FIRST: Final = ("init", "keys")
"""Commands that stand first in the help."""
RESUMABLE: Final = ("append", "encrypt", "rekey")
"""Commands that a second run continues."""

_UsageError: Final = typer.BadParameter.__mro__[2]
"""Base of what typer raises for a command line that does not fit; typer itself exports only the subclass."""


class StoppedError(EncpipeError):
    """Ctrl-C."""

    exit_code = 130
    default_code = "interrupted"


class BrokenStdoutError(Exception):
    """Whoever read our standard output has enough."""


class Command(TyperCommand):
    """A command with examples at the end of its help."""

    examples: ClassVar[str] = ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if self.examples:
            lines = "".join(f"  {line}\n" if line else "\n" for line in self.examples.strip().splitlines())
            formatter.write(f"\nExamples:\n{lines}")


def with_examples(text: str) -> type[Command]:
    """The class of a command whose help ends with these command lines."""
    return type("CommandWithExamples", (Command,), {"examples": text})


class Program(TyperGroup):
    """The root command: ends as the module's docstring says, in a process and in typer's test runner."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # typer would end the process without our JSON
            raise StoppedError("stopped") from None
        except BrokenPipeError:  # the library maps those of its connections: this is standard output
            raise BrokenStdoutError from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 - the interface's; we always end the process ourselves
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        extra |= {"complete_var": complete_var, "windows_expand_args": windows_expand_args}
        sys.exit(self._run(given, prog_name or PROGRAM, {**extra, "standalone_mode": False}))

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands in the order they are worked with; typer would put the groups last."""
        return sorted(super().list_commands(ctx), key=lambda name: (name not in FIRST, name != "init"))

    def _run(self, args: list[str], prog_name: str, extra: dict[str, Any]) -> int:
        try:
            result = super().main(args=args, prog_name=prog_name, **extra)
            with writing_stdout():
                pass
        except (BrokenStdoutError, BrokenPipeError):
            _silence_stdout()
            return EXIT_BROKEN_PIPE
        except StdoutError as error:
            _silence_stdout()
            return _report(error, args)
        except Exception as error:  # noqa: BLE001 - the last stop: whatever it is, the user gets two clear lines
            return _report(error, args)
        return result if isinstance(result, int) else 0


def run(app: typer.Typer) -> NoReturn:
    """Run the program with `sys.argv` and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to fail
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines tell what our errors tell as well
    typer.main.get_command(app).main(prog_name=PROGRAM)
    raise AssertionError("unreachable")


def wants_json(args: list[str]) -> bool:
    """Whether `--json` is asked for, also where the rest of the command line does not parse."""
    return "--json" in (args[: args.index("--")] if "--" in args else args)


def _report(error: Exception, args: list[str]) -> int:
    if os.environ.get("ENCPIPE_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
    told = _as_told(error, args)
    with contextlib.suppress(StdoutError):
        make_output(json=wants_json(args) and not isinstance(told, StdoutError)).error(told)
        return told.exit_code
    _silence_stdout()
    make_output(json=False).error(told)
    return told.exit_code


def _as_told(error: Exception, args: list[str]) -> EncpipeError:
    if isinstance(error, StoppedError) and args and args[0] in RESUMABLE:
        return StoppedError("stopped", hint="the same command again continues where this one stopped")
    if isinstance(error, EncpipeError):
        return error
    if isinstance(error, typer.Abort):
        return StoppedError("stopped")
    if isinstance(error, _UsageError):
        return _usage_error(error)
    return EncpipeError(
        f"unexpected {type(error).__name__} in {_where(error)}",  # its text might hold data
        hint="this is a fault of encpipe: report it with the traceback that ENCPIPE_DEBUG=1 shows",
    )


def _usage_error(error: Any) -> EncpipeError:
    message = str(error.format_message()).strip().rstrip(".")
    ctx = getattr(error, "ctx", None)
    path = PROGRAM if ctx is None else ctx.command_path
    return ConfigError(message[:1].lower() + message[1:], hint=f"see {path} --help", code="usage")


def _where(error: Exception) -> str:
    """The last place in our own code that the error passed, as `module.py:line`."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(package)] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "unknown"


def _silence_stdout() -> None:
    """Let Python's last flush go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a test's stand-in has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
