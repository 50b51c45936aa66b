"""Where commands hand their results: text for people, JSON for programs. Nothing else prints.

Results go to standard output, everything else to standard error. On a terminal there are tables, colours and
progress; on a pipe plain text and no progress; with `--json` one object and nothing else.
"""

from __future__ import annotations

import errno
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from encpipe.cli.parts import Facts, Grid, Note, Part, plain, plural, safe
from encpipe.errors import EncpipeError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

OnProgress = Callable[[Any], None]
"""Receives the library's `Progress` events, from any thread."""


class StdoutError(StorageError):
    """Standard output takes no more: a full disk, mostly. Nothing else can be said there either."""


class Output(Protocol):
    """How a command talks. `payload` is what `--json` prints; `view` is made only for people."""

    def result(self, payload: Mapping[str, Any], view: Callable[[], Sequence[Part]]) -> None: ...

    def progress(self, title: str) -> AbstractContextManager[OnProgress | None]: ...

    def error(self, error: EncpipeError) -> None: ...


def make_output(*, json: bool) -> Output:
    """The output for this process, as its streams are now."""
    return JsonOutput() if json else TextOutput()


class JsonOutput:
    """One JSON object on standard output; an error is `{"error": {"code", "message", "hint"}}`."""

    def result(self, payload: Mapping[str, Any], view: Callable[[], Sequence[Part]]) -> None:  # noqa: ARG002 - the interface's
        self._write(payload)

    def progress(self, title: str) -> AbstractContextManager[OnProgress | None]:  # noqa: ARG002 - the interface's
        return nullcontext()

    def error(self, error: EncpipeError) -> None:
        self._write({"error": {"code": error.code, "message": error.message, "hint": error.hint}})

    def _write(self, payload: Mapping[str, Any]) -> None:
        with writing_stdout():
            sys.stdout.write(jsonlib.dumps(payload, indent=2, allow_nan=False) + "\n")


class TextOutput:
    """Text for a person, or plain text on a pipe."""

    def result(self, payload: Mapping[str, Any], view: Callable[[], Sequence[Part]]) -> None:  # noqa: ARG002 - the interface's
        parts = view()
        with writing_stdout():
            if sys.stdout.isatty():
                _print_rich(parts)
                return
            sys.stdout.write(plain([part for part in parts if _on_pipe(part) == "out"]))
        for part in parts:
            if isinstance(part, Note) and part.pipe == "err":
                sys.stderr.write(f"encpipe: {safe(part.text)}\n")

    def progress(self, title: str) -> AbstractContextManager[OnProgress | None]:
        if not sys.stderr.isatty():
            return nullcontext()
        from encpipe.cli.progress import progress_bar

        return progress_bar(title)

    def error(self, error: EncpipeError) -> None:
        red, dim, off = ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") if sys.stderr.isatty() else ("", "", "")
        sys.stderr.write(f"encpipe: {red}error:{off} {safe(error.message)}\n")
        if error.hint:
            sys.stderr.write(f"{dim}hint:{off} {safe(error.hint)}\n")
        sys.stderr.flush()


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Flushes at its end. Raises `StdoutError` where the block or that fails, `BrokenPipeError` as it is."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StdoutError(
            f"standard output cannot be written: {os.strerror(error.errno or 0)}",
            hint="check where the output goes",
            code="storage-full" if full else "storage",
        ) from None


def _on_pipe(part: Part) -> str:
    return part.pipe if isinstance(part, Note) else "out"


def _print_rich(parts: Sequence[Part]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for number, part in enumerate(parts):
        if number:
            console.print()
        for shown in _rich(part, console.width):
            console.print(shown)


def _rich(part: Part, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    if isinstance(part, Note):
        yield Text(safe(part.text), style="yellow" if part.warning else "")
        return
    if part.title:
        yield Text(part.title, style="bold")
    if isinstance(part, Facts):
        yield _rich_facts(part)
        return
    count = part.fitting(width) if part.if_too_wide else len(part.columns)
    yield _rich_grid(part, count)
    if count < len(part.columns):
        more = plural(len(part.columns) - count, "more column")
        yield Text(f"{more}: {part.if_too_wide}", style="yellow")


def _rich_facts(facts: Facts) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in facts.rows:
        table.add_row(Text(label), Text(safe(value)))
    return table


def _rich_grid(grid: Grid, count: int) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="cyan", padding=(0, 2, 0, 0))
    for column in grid.columns[:count]:
        justify: Any = "right" if column in grid.right else "left"
        table.add_column(Text(safe(column)), justify=justify, no_wrap=bool(grid.if_too_wide), overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(safe(cell), style=grid.styles.get(cell, "")) for cell in row[:count]))
    return table
