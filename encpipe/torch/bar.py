"""A progress bar for an epoch: on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

from encpipe.torch.conversion import Batch

if TYPE_CHECKING:
    from encpipe.torch.feed import Session


def shown(batches: Generator[Batch, None, None], session: Session) -> Generator[Batch, None, None]:
    """The same batches; standard error shows meanwhile how far they are, how fast, and what time is left."""
    if not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=session.batches, epoch=session.epoch, rate="")
        for batch in batches:
            stats = session.meter.stats()
            rate = f"{stats.rows_per_second:,.0f} rows/s, waited {stats.wait_seconds:.1f} s"
            progress.update(task, completed=session.given, rate=rate)
            yield batch
