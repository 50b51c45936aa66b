"""What people see of a change of a dataset's wrappings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from encpipe.cli.parts import Facts, Grid, Note, Part, plural, size

if TYPE_CHECKING:
    from encpipe.lifecycle import KeysReport, Rekeyed


UNCHANGED: Final = "nothing was changed: --dry-run"


def keys_view(report: KeysReport) -> list[Part]:
    """The report of a re-wrap, a grant or a revocation for a person."""
    rows = [
        ("dataset", report.url),
        ("id", report.dataset_id),
        ("generation", f"{report.generation}, revision {report.revision}"),
        ("core", f"{report.core_digest}, unchanged"),
        ("key service", plural(report.kms_calls, "call")),
    ]
    if not report.changes:
        note = "nothing would change" if report.dry_run else "nothing was to be changed"
        return [Facts(rows), Note(note), *_leftovers(report)]
    changes = Grid(
        ("key name", "KEK", "opened anew by", "no more by", "still by"),
        [
            (c.key_name, c.kek_id[:8], _listed(c.added), _listed(c.removed), _listed(c.kept))
            for c in report.changes
        ],
        title="would change" if report.dry_run else "changed",
    )
    rekeyed = [] if report.rekeyed is None else rekey_view(report.rekeyed)
    if report.dry_run:
        return [Facts(rows), changes, *(rekeyed or [Note(UNCHANGED)])]
    return [Facts(rows), changes, *_leftovers(report), *rekeyed]


def rekey_view(report: Rekeyed) -> list[Part]:
    """The report of a re-key for a person."""
    resumed = f", {report.resumed_files:,} of them by the run before" if report.resumed_files else ""
    files = f"{plural(report.files, 'file')}, {plural(report.rows, 'row')}{resumed}"
    rows = [
        ("dataset", report.url),
        ("id", report.dataset_id),
        ("generation", str(report.generation)),
        ("would encrypt again" if report.dry_run else "encrypted again", f"{files}, {size(report.bytes_in)}"),
        ("key service", plural(report.kms_calls, "call")),
    ]
    rows += [
        (f"new key of {name}", "opened by " + ", ".join(uris)) for name, uris in report.master_keys.items()
    ]
    if report.dry_run:
        return [Facts(rows), Note(UNCHANGED)]
    older = ", ".join(map(str, report.older_generations))
    note = f"generation {older}: still readable with the old keys, until: encpipe gc URL --keep 1"
    return [Facts(rows), Note(note, warning=True)]


def _listed(keys: Iterable[tuple[str, str]]) -> str:
    named = (f"{uri} (version {version})" if version else uri for uri, version in keys)
    return ", ".join(named) or "-"


def _leftovers(report: KeysReport) -> list[Part]:
    if report.dry_run:
        return []
    if not report.leftovers:
        return [
            Note("no other wrapping is left in journals, temp files and older versions; backups nobody sees")
        ]
    rows = [
        (left.place, left.key_name or "-", _listed([(left.master_key, left.version)]), left.why)
        for left in report.leftovers
    ]
    return [
        Grid(("place", "key name", "wrapped by", "what it is"), rows, title="left elsewhere"),
        Note("these are wrappings that the manifest does not have any more", warning=True),
    ]
