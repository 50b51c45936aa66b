"""What people see of a change of a dataset's wrappings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from encpipe.cli.parts import Facts, Grid, Note, Part, plural

if TYPE_CHECKING:
    from encpipe.lifecycle import KeysReport


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
    if report.dry_run:
        return [Facts(rows), changes, Note("nothing was changed: --dry-run")]
    return [Facts(rows), changes, *_leftovers(report)]


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
