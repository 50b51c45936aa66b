"""Arrow tables to tensors. No I/O, no keys.

What becomes of a column (`n` rows):

    integers, floats             tensor (n,) of the same type
    bool                         bool tensor (n,)
    date, time, timestamp,       int64 tensor (n,): days for date32, milliseconds for date64, else the unit of
    duration                     the column's type, counted as Arrow does (UTC for timestamps with a zone)
    fixed-size list of those     tensor (n, size), nested ones (n, size, size)
    string, binary               list of n str or bytes
    dictionary                   as its values
    anything else                `EncpipeError` `unsupported`

Nulls: `"error"` refuses them. A number takes their place (of a string or binary it cannot: refused). `"mask"`
puts 0, False or an empty string there and adds a bool tensor `NAME_mask` of the same shape as `NAME`, True
where there is a value, for every column that may hold nulls by its schema, whether this batch has one or not.

Tensors may be written to. Those of integer and float columns without nulls share memory with the decrypted
row group, which nothing else reads again: a kept tensor keeps the column's whole row group in memory;
`clone()` it to keep little. All others are copies.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encpipe.errors import ConfigError, EncpipeError

Nulls: TypeAlias = Literal["error", "mask"] | int | float
Batch: TypeAlias = dict[str, torch.Tensor | list[Any]]

_TIME = (pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.timestamp("s"), pa.duration("s"))
_TEXT = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(1))
_VIEW = (pa.string_view(), pa.binary_view())
_TEMPORAL_IDS = frozenset(kind.id for kind in _TIME)
_TEXT_IDS = frozenset(kind.id for kind in (*_TEXT, *_VIEW))
_VIEW_IDS = frozenset(kind.id for kind in _VIEW)


class Converter:
    """Makes tables of one schema into dicts of tensors, as this module's docstring says.

    Raises `EncpipeError` `unsupported` for a column that no tensor can hold, and `ConfigError` for a `nulls`
    that is none of the three, for a mask whose name another column has, and for no columns at all.
    """

    def __init__(self, schema: pa.Schema, nulls: Nulls = "error") -> None:
        number = isinstance(nulls, int | float) and not isinstance(nulls, bool)
        if not number and nulls not in ("error", "mask"):
            raise ConfigError(
                f"nulls is {nulls!r}: it is a number, or one of error, mask", hint='nulls="mask" or nulls=0'
            )
        if not schema.names:
            raise ConfigError("no column is left to make tensors of", code="filter")
        self._nulls = nulls
        for field in schema:
            _check(field.name, field.type)
        self._masked = {f.name for f in schema if nulls == "mask" and f.nullable}
        for name in sorted(self._masked):
            if mask_name(name) in schema.names:
                raise ConfigError(
                    f"the mask of column {name!r} would be called as another column: {mask_name(name)!r}",
                    hint="read them one at a time with columns=[...]",
                )

    def convert(self, table: pa.Table) -> Batch:
        """The table's columns in order, each followed by its mask.

        Raises `ConfigError` `nulls`, naming the column, for a null that may not be there.
        """
        batch: Batch = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            values, shape = _flat(array, (len(array),))
            filled = self._fill(name, values) if values.null_count else values
            if values.type.id in _TEXT_IDS:
                batch[name] = filled.to_pylist()
            else:
                batch[name] = _tensor(filled).reshape(shape)
            if name in self._masked:
                batch[mask_name(name)] = _mask(values).reshape(shape)
        return batch

    def _fill(self, name: str, values: pa.Array) -> pa.Array:
        if self._nulls == "error":
            raise ConfigError(
                f"column {name!r} has nulls",
                hint='pass nulls="mask", or a number to put in their place, or filter them out',
                code="nulls",
            )
        try:
            return pc.fill_null(values, _filler(values.type, None if self._nulls == "mask" else self._nulls))
        except (pa.ArrowInvalid, OverflowError):
            raise ConfigError(
                f"column {name!r} has nulls, and {self._nulls!r} is no {values.type} to take their place",
                hint='pass nulls="mask" or another number, or filter them out',
                code="nulls",
            ) from None


def mask_name(column: str) -> str:
    """What the mask of a column is called."""
    return f"{column}_mask"


def _filler(kind: pa.DataType, number: int | float | None) -> pa.Scalar:
    """`number` as `kind`, exactly; None stands for 0, False and the empty string.

    Raises `pa.ArrowInvalid` or `OverflowError` where it is none.
    """
    if kind.id in _TEXT_IDS:
        if number is not None:
            raise pa.ArrowInvalid("not a number")
        return pa.scalar(bytes(kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0)).cast(kind)
    if pa.types.is_boolean(kind):
        if number not in (None, 0, 1):
            raise pa.ArrowInvalid("not a truth value")
        return pa.scalar(bool(number))
    return pa.scalar(number or 0).cast(kind)


def _check(name: str, kind: pa.DataType) -> None:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if inner.id in _TEXT_IDS:
        return
    while pa.types.is_fixed_size_list(inner):
        inner = inner.value_type
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if inner.id not in _TEMPORAL_IDS and not any(test(inner) for test in tests):
        raise EncpipeError(
            f"column {name!r} is {kind}, which no tensor can hold", hint=_hint(kind), code="unsupported"
        )


def _hint(kind: pa.DataType) -> str:
    if pa.types.is_decimal(kind):
        return "cast it to float64 or to an integer of the smallest unit before it is encrypted"
    if any(t(kind) for t in (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view)):
        return "rows of different lengths make no tensor: pad them to a fixed-size list before encryption"
    return "choose other columns with columns=[...], or read it with encpipe.open_dataset"


def _flat(array: pa.Array, shape: tuple[int, ...]) -> tuple[pa.Array, tuple[int, ...]]:
    """The innermost values, as a type that torch has (or text), and the shape they are to get."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _flat(array.dictionary_decode(), shape)
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        if array.null_count:
            rows = np.repeat(array.is_valid().to_numpy(zero_copy_only=False), size)
            values = pc.if_else(pa.array(rows), values, pa.scalar(None, values.type))
        return _flat(values, (*shape, size))
    if kind.id in _VIEW_IDS:  # Arrow has no fill_null for views
        array = array.cast(pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary())
    if kind.id in _TEMPORAL_IDS:
        array = array.view(pa.int64() if kind.bit_width == 64 else pa.int32()).cast(pa.int64())
    return array, shape


def _tensor(array: pa.Array) -> torch.Tensor:
    """A one-dimensional tensor of an array without nulls."""
    if pa.types.is_boolean(array.type):
        return torch.from_numpy(array.to_numpy(zero_copy_only=False))
    # Not through NumPy, which shows Arrow's buffers as read-only: torch warns of those.
    return torch.from_dlpack(array)


def _mask(array: pa.Array) -> torch.Tensor:
    """A one-dimensional tensor, True where the array has a value."""
    if array.null_count == 0:
        return torch.ones(len(array), dtype=torch.bool)
    return _tensor(array.is_valid())
