"""What people see of a write, and of rows."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Protocol

from encpipe.cli.parts import Facts, Grid, Note, Part, plural, size

if TYPE_CHECKING:
    import pyarrow as pa

CELL_CHARACTERS: Final = 40
"""A value is shown up to this long; `--json` has all of it."""


class WriteReport(Protocol):
    """The part of the library's `WriteReport` that is shown. `seconds` is wall time, `bytes_*` are bytes."""

    @property
    def dataset_id(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def resumed_files(self) -> int: ...
    @property
    def kms_calls(self) -> int: ...
    @property
    def master_keys(self) -> Any: ...


def write_payload(report: WriteReport) -> dict[str, Any]:
    """The report of a write as JSON."""
    return {
        "dataset_id": report.dataset_id,
        "generation": report.generation,
        "files": report.files,
        "rows": report.rows,
        "bytes_in": report.bytes_in,
        "bytes_out": report.bytes_out,
        "seconds": round(report.seconds, 3),
        "resumed_files": report.resumed_files,
        "kms_calls": report.kms_calls,
        "master_keys": _master_keys(report.master_keys),
    }


def write_view(report: WriteReport, target: str) -> list[Part]:
    """The report of a write for a person."""
    resumed = f", {report.resumed_files:,} of them by the run before" if report.resumed_files else ""
    rate = f", {size(int(report.bytes_in / report.seconds))}/s" if report.seconds > 0 else ""
    rows = [
        ("dataset", target),
        ("id", report.dataset_id),
        ("generation", str(report.generation)),
        ("written", f"{plural(report.files, 'file')}, {plural(report.rows, 'row')}{resumed}"),
        ("bytes", f"{size(report.bytes_in)} read, {size(report.bytes_out)} written"),
        ("time", f"{report.seconds:.1f} s{rate}"),
    ]
    rows += [(f"key name {name}", ", ".join(uris)) for name, uris in _master_keys(report.master_keys).items()]
    return [Facts(rows)]


def _master_keys(master_keys: Any) -> dict[str, list[str]]:
    """Key name -> URIs."""
    if isinstance(master_keys, Mapping):
        return {name: [uris] if isinstance(uris, str) else list(uris) for name, uris in master_keys.items()}
    return {"all": list(master_keys)}


def rows_payload(table: pa.Table, total: int) -> dict[str, Any]:
    """Rows as JSON objects; bytes are base64, times ISO 8601, decimals and infinities strings."""
    return {
        "columns": list(table.schema.names),
        "rows": [{name: to_json(value) for name, value in row.items()} for row in table.to_pylist()],
        "total_rows": total,
    }


def rows_view(table: pa.Table, total: int) -> list[Part]:
    """Rows as a table."""
    import pyarrow.types as pat

    if not table.schema.names:
        return [Note("no columns")]
    numeric = frozenset(
        field.name
        for field in table.schema
        if pat.is_integer(field.type) or pat.is_floating(field.type) or pat.is_decimal(field.type)
    )
    rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    shown = f"{plural(table.num_rows, 'row')} of {total:,}"
    return [Grid(table.schema.names, rows, right=numeric), Note(shown)]


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
    text = f"{value:.6g}" if isinstance(value, float) else str(to_json(value))
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 3] + "..."
