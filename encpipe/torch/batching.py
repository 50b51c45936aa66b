"""Row groups of any size into batches of one exact size. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa


def exact_batches(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in the same order, `rows` in each table; the last one may be shorter, none is empty.

    A batch from within one table is a view of it; one that spans tables is made of views.
    """
    parts: list[pa.Table] = []
    missing = rows
    for table in tables:
        start = 0
        while start < len(table):
            part = table.slice(start, missing)
            start += len(part)
            missing -= len(part)
            parts.append(part)
            if missing == 0:
                yield pa.concat_tables(parts)
                parts, missing = [], rows
    if parts:
        yield pa.concat_tables(parts)
