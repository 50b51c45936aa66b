"""The progress bar on standard error: files, bytes, rate, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from encpipe.cli.output import OnProgress


class Event(Protocol):
    """The part of the library's `Progress` that is shown."""

    @property
    def files_done(self) -> int: ...
    @property
    def files_total(self) -> int: ...
    @property
    def bytes_done(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """A bar for the length of the block, gone afterwards. The callable may be used by several threads."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[files]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=None, files="")
    lock = Lock()

    def show(event: Event) -> None:
        with lock:
            bar.start()
            bar.update(
                task,
                completed=event.bytes_done,
                total=event.bytes_total or None,
                files=f"{event.files_done:,}/{event.files_total:,} files",
            )

    try:
        yield show  # the bar starts with the first event: a passphrase may be asked for before
    finally:
        with lock:
            bar.stop()
