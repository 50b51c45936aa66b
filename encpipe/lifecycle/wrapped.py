"""The wrappings in copies of a manifest or a journal, wherever one is found. No I/O here."""

from __future__ import annotations

from encpipe import journal as journals
from encpipe import manifest
from encpipe.core import KekRecord
from encpipe.errors import IntegrityError
from encpipe.keys import WrappedKey
from encpipe.lifecycle.keysline import kek_records


def wrapped_in(data: bytes) -> tuple[str, list[tuple[KekRecord, WrappedKey]]]:
    """Dataset id and wrappings in a manifest or a journal. Raises `IntegrityError` for anything else."""
    try:
        found = manifest.parse(data)
        dataset_id, records, wrappings = found.core.dataset_id, kek_records(found), found.wrappings
    except IntegrityError:
        journal = journals.parse(data).journal
        dataset_id, wrappings = journal.dataset_id, journal.wrappings
        records = {record.id: record for record in journal.keks}
    return dataset_id, [
        (records[kek_id], wrapped)
        for kek_id, some in wrappings.items()
        if kek_id in records
        for wrapped in some
    ]


def may_be_torn(place: str, data: bytes) -> bool:
    """Whether what is neither manifest nor journal may have been one: those are text. Temp files of sealed
    lists and records are called the same, and are none."""
    return bool(data.strip(b"\0")) and ("/.tmp-" not in place or data.isascii())
