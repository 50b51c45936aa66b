"""Partition columns from folder names such as `a=1/b=x%20y/`. Pure.

The rules are those of PyArrow's hive partitioning: names and values are percent-decoded, a column is int32
when each value is an integer of 32 bits, else string; a file outside a column's folders has null there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote

import pyarrow as pa

from encpipe.sources.base import unreadable

NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_INTEGER: Final = re.compile(r"-?[0-9]+")


def values_of(name: str) -> dict[str, str | None]:
    """Partition column -> value as text (None for null), in folder order. Raises `source-unreadable`."""
    values: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if not equals or not key:
            continue
        column, text = _decode(key, name), _decode(value, name)
        if column in values:
            raise unreadable(name, f"its path names the partition column {column!r} twice")
        values[column] = None if text in (NULL, "") else text
    return values


def _decode(text: str, name: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise unreadable(name, "a folder of its path is not percent-encoded UTF-8") from None


def infer(files: Iterable[Mapping[str, str | None]]) -> pa.Schema:
    """The partition columns of all files with their types, in the order first met."""
    integral: dict[str, bool] = {}
    known: set[str] = set()
    for values in files:
        for column, text in values.items():
            integral.setdefault(column, True)
            if text is not None:
                known.add(column)
                integral[column] = integral[column] and _is_int32(text)
    types = {c: pa.int32() if whole and c in known else pa.string() for c, whole in integral.items()}
    return pa.schema(list(types.items()))


def _is_int32(text: str) -> bool:
    return _INTEGER.fullmatch(text) is not None and len(text) < 32 and -(2**31) <= int(text) < 2**31


def complete(values: Mapping[str, str | None], partitions: pa.Schema) -> dict[str, str | None]:
    """`values` with null for every partition column the file's path does not name."""
    return {column: values.get(column) for column in partitions.names}
