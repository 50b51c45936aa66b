"""`encpipe gc`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Grid, Note, Part, plural, size

if TYPE_CHECKING:
    from encpipe.lifecycle.gc import Collected

GC_EXAMPLES = """
encpipe gc encrypted/flights --dry-run
encpipe gc s3://bucket/flights --keep 3 --older-than 30d
encpipe gc encrypted/flights --keep 1 --grace 0
"""
MAX_LINES = 100


def gc(
    url: opt.Url,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=1, help="How many generations stay readable.", show_default=False
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Drop only generations that a newer one replaced this long ago: 30d, 12h.",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        str,
        typer.Option(
            "--grace", metavar="TIME", help="How long readers and stopped writes are waited for, or 0."
        ),
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would go.")] = False,
    expect_dataset: opt.ExpectDataset = None,
    min_generation: opt.MinGeneration = None,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Remove what a dataset does not need: old generations, stopped writes, leftovers of crashes.

    Without --keep and --older-than no generation goes that is readable now. Safe beside writers and readers.
    """
    from encpipe.lifecycle.gc import gc as collect

    settings = opt.settings(config, storage_option)
    output = make_output(json=json)
    with output.progress("removing") as progress:
        found = collect(
            url,
            keep=keep,
            older_than=None if older_than is None else opt.parse_duration(older_than, "--older-than"),
            grace=opt.parse_duration("0d" if grace == "0" else grace, "--grace"),
            dry_run=dry_run,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=settings.storage_options,
            expect_dataset=expect_dataset,
            min_generation=min_generation,
            progress=progress,
        )
    output.result(found.as_json(), lambda: gc_view(found))


def gc_view(found: Collected) -> list[Part]:
    """What gc did, for a person."""
    would = "would be removed" if found.dry_run else "removed"
    rows = [
        ("dataset", found.url),
        ("id", found.dataset_id),
        ("generations", ", ".join(map(str, found.kept))),
    ]
    if found.left:
        rows.append(("no longer readable", "generation " + ", ".join(map(str, found.left))))
    if found.keks:
        rows.append(("wrappings gone", f"of {plural(len(found.keks), 'KEK')} that no generation uses"))
    rows.append((would, f"{plural(len(found.removed), 'object')}, {size(found.removed_bytes)}"))
    if found.uploads:
        rows.append(("uploads", f"{found.uploads} unfinished, {would}"))
    if found.writes:
        rows.append(("stopped writes", f"{len(found.writes)} {would}"))
    if found.writes_kept:
        rows.append(("writes", f"{len(found.writes_kept)} under way, or stopped and may go on"))
    if found.waiting:
        count = plural(found.waiting, "object")
        rows.append(("waiting", f"{count}, {size(found.waiting_bytes)}, for a later gc"))
    parts: list[Part] = [Facts(rows)]
    if found.dry_run and found.removed:
        parts.append(Grid(("object",), [[path] for path in found.removed[:MAX_LINES]], title="would go"))
        if len(found.removed) > MAX_LINES:
            parts.append(Note(f"and {len(found.removed) - MAX_LINES:,} more: see --json"))
    if found.foreign:
        parts.append(Note(f"{plural(len(found.foreign), 'object')} not of encpipe left alone: see --json"))
    return parts
