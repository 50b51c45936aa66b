"""Values that appear nowhere by chance, the ways they may be spelled, and a table full of them.

At least 50 random bits each, so that finding one is no accident. A bool or an int32 cannot be marked: its
bytes are everywhere. The four float32 of a fixed-size list together can.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

ROWS: Final = 1200
MARKED: Final = (0, 1, 299, 300, 650, 899, ROWS - 1)
"""Rows whose values are looked for: at the edges of row groups and files, and between."""


def table() -> pa.Table:
    """Columns number, real, moment, name, blob, four (a fixed-size list), many (a list); and label, unmarked.

    Random anew each time.
    """
    random = np.random.default_rng(secrets.randbits(64))
    numbers = random.integers(1 << 40, 1 << 62, ROWS, dtype=np.int64)
    lists = pa.ListArray.from_arrays(
        pa.array(range(0, 3 * ROWS + 1, 3), pa.int32()),
        pa.array(random.integers(1 << 40, 1 << 62, 3 * ROWS, dtype=np.int64)),
    )
    fours = pa.array(random.random(4 * ROWS, dtype=np.float32))
    return pa.table(
        {
            "number": pa.array(numbers),
            "real": pa.array(random.random(ROWS)),
            "moment": pa.array(random.integers(0, 1 << 61, ROWS, dtype=np.int64)).cast(pa.timestamp("ns")),
            "name": pa.array([secrets.token_urlsafe(12) for _ in range(ROWS)]),
            "blob": pa.array([secrets.token_bytes(24) for _ in range(ROWS)]),
            "four": pa.FixedSizeListArray.from_arrays(fours, 4),
            "many": lists,
            "label": pa.array(numbers % 2, pa.int32()),
        }
    )


def of_table(made: pa.Table) -> dict[str, tuple[bytes, ...]]:
    """Marker -> its spellings; a marker is named as its column and row."""
    marked = made.take(list(MARKED)).drop_columns(["label"])
    return {
        f"{column} of row {row}": tuple(dict.fromkeys(_spellings(value)))
        for column in marked.column_names
        for row, value in zip(MARKED, marked[column], strict=True)
    }


def of_key(key: bytes) -> dict[str, tuple[bytes, ...]]:
    return {"the master key": tuple(_of_bytes(key))}


def _spellings(value: pa.Scalar) -> Iterator[bytes]:
    """As bytes in memory, in either order; as text; as these bytes in hex and base64."""
    kind = value.type
    if pa.types.is_fixed_size_list(kind):
        yield from _of_bytes(np.array(value.as_py(), np.float32).tobytes())
    elif pa.types.is_list(kind):
        for item in value:
            yield from _spellings(item)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        raw = value.as_py()
        yield from _of_bytes(raw.encode() if isinstance(raw, str) else raw)
    else:
        number = value.value if pa.types.is_timestamp(kind) else value.as_py()
        array = np.array(number, np.float64 if pa.types.is_floating(kind) else np.int64)
        yield repr(number).encode()
        yield from _of_bytes(array.tobytes())
        yield array.byteswap().tobytes()
        if pa.types.is_timestamp(kind):
            yield str(datetime.fromtimestamp(number // 10**9)).encode()


def _of_bytes(raw: bytes) -> Iterator[bytes]:
    yield raw
    yield raw.hex().encode()
    for shift in range(3):  # where in a longer text of base64 it may begin
        text = base64.b64encode(bytes(shift) + raw)
        inner = text[(shift * 8 + 5) // 6 : (shift + len(raw)) * 8 // 6]
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))


class Finder:
    """Finds markers in bytes."""

    def __init__(self, markers: Mapping[str, Iterable[bytes]]) -> None:
        self._names = {spelling: name for name, spellings in markers.items() for spelling in spellings}
        self.shortest = min(map(len, self._names))
        self.longest = max(map(len, self._names))

    def found(self, data: bytes) -> str | None:
        """The name of a marker in `data`, or None."""
        if len(data) < self.shortest:
            return None
        return next((name for spelling, name in self._names.items() if spelling in data), None)

    def in_files(self, folder: Path) -> dict[Path, str]:
        """Files below a folder that hold a marker, or have one in their name."""
        found: dict[Path, Any] = {}
        for path in sorted(folder.rglob("*")):
            held = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[path] = self.found(held) or self.found(bytes(path))
        return {path: name for path, name in found.items() if name}
