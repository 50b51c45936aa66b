"""What people see of an inspection, a verification and an export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from encpipe.cli.parts import Facts, Grid, Note, Part, plural, size

if TYPE_CHECKING:
    from encpipe.export import DecryptReport
    from encpipe.inspection import Contents, Inspection
    from encpipe.verification import Verification

MAX_LINES: Final = 100
"""Columns, problems or objects shown; `--json` has all."""
MAX_DAYS: Final = 100_000
"""Beyond this, a wrapping's time could not be read."""


def inspect_view(found: Inspection) -> list[Part]:
    """A dataset for a person."""
    proof = (
        "checked with the footer key" if found.authenticated else "not checked: anybody may have written it"
    )
    rows = [
        ("dataset", found.url),
        ("id", found.dataset_id),
        ("generation", f"{found.generation}, revision {found.revision}, {found.created}"),
        ("core", found.core_digest),
        ("manifest", proof),
    ]
    if found.connection is not None:
        rows.append(("connection", str(found.connection)))
    rows += [("signed by", f"{s.signer}{'' if s.trusted else ' (not trusted)'}") for s in found.signers]
    if found.retained_generations:
        rows.append(("also readable", "generation " + ", ".join(map(str, found.retained_generations))))
    if found.pending_writes:
        rows.append(("stopped writes", str(found.pending_writes)))
    if found.contents is not None:
        rows += _content_rows(found.contents)
    parts: list[Part] = [Facts(rows), *_keys(found)]
    if found.contents is not None:
        parts += _limited(
            "columns", ("column", "type", "key name"), [list(column) for column in found.contents.columns]
        )
    else:
        parts.append(Note(f"files and columns are not shown: {found.why_no_contents}", warning=True))
    return parts


def _content_rows(contents: Contents) -> list[tuple[str, str]]:
    groups = plural(contents.row_groups, "row group")
    rows = [
        ("rows", f"{contents.rows:,}"),
        ("files", f"{contents.files:,} with {groups}, {size(contents.bytes)}"),
    ]
    if contents.partitions:
        rows.append(("partitions", ", ".join(contents.partitions)))
    if contents.partition_keks:
        counts = ", ".join(f"{count:,} of {name}" for name, count in contents.partition_keks.items())
        rows.append(("partition KEKs", f"{counts}: by {', '.join(contents.policy['partition_keys'])}"))
    return rows


def _keys(found: Inspection) -> list[Part]:
    rows = [
        (
            kek.key_name + (" (footer)" if kek.key_name == found.footer_key else ""),
            kek.state,
            kek.created[:10],
            wrapping.master_key,
            wrapping.version,
            _days(wrapping.age_days),
            "yes" if wrapping.trusted else "no",
        )
        for kek in found.keks
        for wrapping in kek.wrappings
    ]
    columns = ("key name", "state", "created", "wrapped by", "version", "wrapped for", "trusted")
    parts: list[Part] = [Grid(columns, rows, title="keys"), _openers(found)]
    due = {f"{kek.key_name} ({kek.rewrap})": None for kek in found.keks if kek.rewrap}
    if due:
        names = ", ".join(due)
        parts.append(Note(f"to be re-wrapped by encpipe rewrap: {names}", warning=True))
    return parts


def _days(days: int) -> str:
    return plural(days, "day") if days < MAX_DAYS else "unknown"


def _openers(found: Inspection) -> Grid:
    rows = [
        (opener.master_key, ", ".join(opener.key_names), _what(found, opener.key_names, opener.columns))
        for opener in found.openers
    ]
    return Grid(("master key", "opens", "so it gives"), rows, title="who can open what")


def _what(found: Inspection, key_names: tuple[str, ...], columns: tuple[str, ...]) -> str:
    what = "" if found.contents is None else plural(len(columns), "column")
    if found.footer_key in key_names:
        return what or "the dataset"
    return f"{what}{', ' if what else ''}only with the footer key"


def verify_view(found: Verification) -> list[Part]:
    """A verification for a person."""
    how = (
        "every page and every file's SHA-256" if found.deep else "manifest, list, sizes, footers, row counts"
    )
    rows = [
        ("dataset", found.url),
        ("id", found.dataset_id),
        ("generation", str(found.generation)),
        ("checked", f"{plural(found.files, 'file')}, {plural(found.rows, 'row')}: {how}"),
    ]
    if found.unchecked_key_names:
        rows.append(("not checked", "columns under " + ", ".join(found.unchecked_key_names)))
    if found.pending:
        rows.append(("stopped writes", plural(len(found.pending), "object")))
    parts: list[Part] = [Facts(rows)]
    if found.unlisted:
        unlisted = [[path] for path in found.unlisted]
        parts += _limited("objects that are not part of the dataset, and never read", ("object",), unlisted)
    if found.problems:
        problems = [[problem.path or "-", problem.code, problem.message] for problem in found.problems]
        parts += _limited("problems", ("file", "code", "what is wrong"), problems)
        count = plural(len(found.problems), "problem")
        parts.append(Note(f"{count}: restore what is damaged from a copy you trust", warning=True))
    else:
        parts.append(Note("no problem found" if found.deep else "no problem found; --deep reads everything"))
    return parts


def decrypt_view(report: DecryptReport) -> list[Part]:
    """An export for a person."""
    rows = [
        ("dataset", f"{report.url}, generation {report.generation}"),
        ("plaintext in", report.target),
        (
            "written",
            f"{plural(report.files, 'file')}, {plural(report.rows, 'row')}, {size(report.bytes_out)}",
        ),
    ]
    if report.missing_keys:
        rows.append(("without", "columns under " + ", ".join(report.missing_keys)))
    return [Facts(rows)]


def _limited(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> list[Part]:
    parts: list[Part] = [Grid(columns, rows[:MAX_LINES], title=title)]
    if len(rows) > MAX_LINES:
        parts.append(Note(f"and {len(rows) - MAX_LINES:,} more: see --json"))
    return parts
