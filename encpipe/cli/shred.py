"""`encpipe shred`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Grid, Note, Part, plural
from encpipe.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from encpipe.lifecycle.shredreport import NewFile, RetiredMaster, ShredReport

EXAMPLES = """
encpipe shred encrypted/flights --dry-run
encpipe shred encrypted/flights --confirm 5f0c2c5a8f2a4b0f9c1d3e5a7b9c0d1e --report shredded.json
encpipe shred s3://bucket/flights --key-name pii --confirm 5f0c2c5a8f2a4b0f9c1d3e5a7b9c0d1e
encpipe shred encrypted/flights --partition year=2020 --confirm 5f0c2c5a8f2a4b0f9c1d3e5a7b9c0d1e
encpipe shred encrypted/flights --retire-master local:old=local:new --also encrypted/people
encpipe shred --verify-report shredded.json
"""
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""How a partition of nulls is spelled, as Hive does."""
MAX_TRIED = 20
"""Tries that a person is shown."""
_VERDICTS = {
    "destroyed": "destroyed: no copy of it can be opened any more",
    "removed": "removed: no copy was found; one that somebody kept may still open",
    "incomplete": "incomplete: see what is left",
}

_UNTRIED = "; no fresh process could try it"


def shred(
    url: Annotated[str | None, typer.Argument(metavar="URL", help="The dataset.", show_default=False)] = None,
    key_name: Annotated[
        list[str] | None,
        typer.Option(
            "--key-name",
            metavar="NAME",
            help="Only the columns under this key name. Repeat it for more.",
            show_default=False,
        ),
    ] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            "--partition",
            metavar="COL=VALUE[,COL=VALUE]",
            help="Only this partition, where the policy has partition keys. Repeat it for more.",
            show_default=False,
        ),
    ] = None,
    retire_master: Annotated[
        list[str] | None,
        typer.Option(
            "--retire-master",
            metavar="OLD[=NEW]",
            help="Destroy this master key, too, after what stays was re-wrapped by NEW. WHATEVER ELSE IT "
            "WRAPPED IS LOST. Repeat it for more.",
            show_default=False,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            metavar="URL",
            help="A dataset that stays, and moves away from the master keys to be destroyed. Repeat it.",
            show_default=False,
        ),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            metavar="ID",
            help="The dataset id. Default: to be typed on the terminal.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Keep the report in a new file.", show_default=False),
    ] = None,
    verify_report: Annotated[
        Path | None,
        typer.Option(
            "--verify-report",
            metavar="FILE",
            help="Shred nothing: check who signed this report.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would go.")] = False,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Make a dataset, or some of its columns, unreadable for everybody, for good.

    There is no way back. Exits with 5 when something is left.
    """
    if verify_report is not None:
        _verify(verify_report, config, json=json)
        return
    if url is None:
        raise ConfigError("URL is missing", hint="encpipe shred --help", code="usage")
    from encpipe.lifecycle import shred as work
    from encpipe.lifecycle.shredreport import exists, new_file

    settings = opt.settings(config, storage_option)
    if report is not None and report.exists():
        raise exists(report)
    plan_only = dry_run or confirm is not None
    typed = confirm if plan_only else _typed(url, json=json)
    with nullcontext() if report is None or dry_run else new_file(report) as file:
        done = work(
            url,
            confirm=typed,
            key_names=key_name,
            partitions=[_partition(value) for value in partition] if partition else None,
            retire_master=dict(_move(value) for value in retire_master or ()),
            also=also or (),
            dry_run=dry_run,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=settings.storage_options,
        )
        unsaved = None if file is None else _save(done, file)
    make_output(json=json).result(done.as_json(), lambda: _view(done))
    if unsaved is not None:
        make_output(json=False).error(unsaved)  # standard output has the report
        raise typer.Exit(unsaved.exit_code)
    if done.verdict == "incomplete":
        raise typer.Exit(StorageError.exit_code)


def _save(done: ShredReport, file: NewFile) -> StorageError | None:
    """The error that kept the report from its file."""
    try:
        file.save(done)
    except StorageError as error:
        hint = "what was shredded is shredded: keep the report that was printed (--json has all of it)"
        return StorageError(error.message, hint=hint, code=error.code)
    return None


def _typed(url: str, *, json: bool) -> str:
    """The dataset id as somebody types it, who is told what it is for."""
    if json or not person_is_there():
        raise ConfigError(
            "this needs the dataset id as a confirmation, and there is nobody to ask",
            hint="add --confirm ID (encpipe inspect shows it)",
            code="usage",
        )
    typed: str = typer.prompt(f"{url} cannot be read any more after this. Type its dataset id", err=True)
    return typed.strip()


def person_is_there() -> bool:
    """Whether somebody can type an answer."""
    return sys.stdin.isatty()


def _partition(value: str) -> dict[str, str | None]:
    pairs = [opt.split(pair, "--partition", "--partition year=2020") for pair in value.split(",")]
    return {column: None if text == NULL_PARTITION else text for column, text in pairs}


def _move(value: str) -> tuple[str, str]:
    old, _, new = value.partition("=")
    if ":" not in old or (new and ":" not in new):
        raise ConfigError(
            f"--retire-master {value}: not a master key URI",
            hint="for example --retire-master local:old=local:new",
            code="usage",
        )
    return old, new


def _verify(file: Path, config: Path | None, *, json: bool) -> None:
    from encpipe.lifecycle import verify_shred_report

    found = verify_shred_report(file, config=config)
    make_output(json=json).result(found, lambda: _signed_view(found))


def _signed_view(found: Mapping[str, Any]) -> list[Part]:
    rows = [(name.replace("_", " "), str(found.get(name, ""))) for name in ("url", "dataset_id", "scope")]
    rows += [
        ("key names", ", ".join(map(str, found.get("key_names", ())))),
        ("verdict", str(found.get("verdict", ""))),
        ("created", str(found.get("created", ""))),
        ("signed by", str(found.get("signer", ""))),
    ]
    return [Facts(rows)]


def _view(done: ShredReport) -> list[Part]:
    rows = [
        ("dataset", done.url),
        ("id", done.dataset_id),
        ("generation", f"{done.generation}, revision {done.revision}"),
        ("key names", ", ".join(done.key_names)),
        *(("partition", ", ".join(f"{k}={v}" for k, v in values.items())) for values in done.partitions),
        ("KEKs", f"{len(done.keks):,}, wrapped by {', '.join(done.master_keys) or 'nothing any more'}"),
        ("copies", plural(len(done.removed), "place") + (" would go" if done.dry_run else " removed")),
        *(("master key", _retired(master)) for master in done.retired),
    ]
    if done.dry_run:
        return [Facts(rows), Note("nothing was changed: --dry-run")]
    rows.append(("signed by", done.signer or "nobody"))
    untried = done.verdict == "removed" and done.untried
    said = _VERDICTS[done.verdict] + (_UNTRIED if untried else "")
    verdict = Note(said, warning=untried or done.verdict == "incomplete")
    return [
        Facts(rows),
        *_tried(done),
        *_remaining(done),
        verdict,
        *(Note(f"note: {note}") for note in done.notes),
    ]


def _retired(master: RetiredMaster) -> str:
    if master.failed:
        return f"{master.uri}: not destroyed: {master.failed}"
    if master.missing:
        return f"{master.uri}: not there, so not destroyed by this run"
    until = f" at {master.until}, until then it can be taken back" if master.until else ""
    return f"{master.uri}: destroyed{until}"


def _tried(done: ShredReport) -> Sequence[Part]:
    shown = done.tried[:MAX_TRIED]
    if not shown:
        return []
    rows = [(one.what, one.code or "OPENS") for one in shown]
    more = len(done.tried) - len(shown)
    grid = Grid(("tried in a fresh process", "what it met"), rows, styles={"OPENS": "bold red"})
    return [grid, Note(f"and {more:,} more: see --json")] if more else [grid]


def _remaining(done: ShredReport) -> Sequence[Part]:
    if not done.remaining:
        return []
    rows = [(one.place, one.key_name or "-", one.master_key or "-", one.why) for one in done.remaining]
    return [Grid(("place", "key name", "wrapped by", "why"), rows, title="left")]
