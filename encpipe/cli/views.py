"""What people see of a write, and of rows."""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from encpipe.cli.parts import Facts, Grid, Note, Part, plural, size

if TYPE_CHECKING:
    import pyarrow as pa

    from encpipe.writer import WriteReport

CELL_CHARACTERS: Final = 40
"""A value is shown up to this long; `--json` has all of it."""
EARLIER_STAY: Final = "earlier generations stay readable until they are let go: encpipe gc URL --keep 1"


def write_view(report: WriteReport, target: str, *, overwritten: bool = False) -> list[Part]:
    """The report of a write for a person."""
    resumed = (
        f", {plural(report.resumed_files, 'file')} of them by the run before" if report.resumed_files else ""
    )
    rate = f", {size(int(report.bytes_in / report.seconds))}/s" if report.seconds > 0 else ""
    rows = [
        ("dataset", target),
        ("id", report.dataset_id),
        ("generation", str(report.generation)),
        ("written", f"{plural(report.files, 'file')}, {plural(report.rows, 'row')}{resumed}"),
        ("bytes", f"{size(report.bytes_in)} read, {size(report.bytes_out)} written"),
        ("time", f"{report.seconds:.1f} s{rate}"),
    ]
    rows += [(f"key name {name}", ", ".join(uris)) for name, uris in report.master_keys.items()]
    if overwritten and report.generation > 1:
        return [Facts(rows), Note(EARLIER_STAY, warning=True)]
    return [Facts(rows)]


def rows_payload(table: pa.Table, total: int, missing_keys: Sequence[str]) -> dict[str, Any]:
    """Rows as JSON objects; bytes are base64, times ISO 8601, decimals and infinities strings."""
    return {
        "columns": list(table.schema.names),
        "rows": [{name: to_json(value) for name, value in row.items()} for row in _rows(table)],
        "total_rows": total,
        "missing_keys": list(missing_keys),
    }


def rows_view(table: pa.Table, total: int, missing_keys: Sequence[str], *, nulls: bool) -> list[Part]:
    """Rows as a table. `nulls` is whether columns without a key are shown as null, not left out."""
    import pyarrow.types as pat

    notes: list[Part] = []
    if missing_keys:
        without = "null for want of a key:" if nulls else "without"
        notes = [Note(f"{without} columns under {', '.join(missing_keys)}", warning=True, pipe="err")]
    if not table.schema.names:
        return [Note("no columns"), *notes]
    numeric = frozenset(
        field.name
        for field in table.schema
        if pat.is_integer(field.type) or pat.is_floating(field.type) or pat.is_decimal(field.type)
    )
    rows = [[_cell(value) for value in row.values()] for row in _rows(table)]
    shown = f"{plural(table.num_rows, 'row')} of {total:,}"
    grid = Grid(table.schema.names, rows, right=numeric, if_too_wide="choose with --select, or see --json")
    return [grid, Note(shown, pipe="none"), *notes]


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python objects; nanoseconds, which Python's own types do not have, as text."""
    import pyarrow as pa

    for i, field in enumerate(table.schema):
        if field.type == pa.timestamp("ns"):
            table = table.set_column(i, field.name, table.column(i).cast(pa.string()))
        elif pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            cut = table.column(i).cast(pa.timestamp("us", field.type.tz), safe=False)
            table = table.set_column(i, field.name, cut)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def to_json(value: Any) -> Any:
    """One Arrow value as JSON."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Decimal():
            return str(value)
        case datetime.timedelta():
            return value.total_seconds()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case dict():
            return {str(key): to_json(inner) for key, inner in value.items()}
        case list() | tuple():
            return [to_json(inner) for inner in value]
        case _:
            return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        text = json.dumps(to_json(value), ensure_ascii=False)
    else:
        text = f"{value:.6g}" if isinstance(value, float) else str(to_json(value))
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 3] + "..."
