"""The values of a column, without nulls and of a type that torch has. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from encpipe.errors import ConfigError, EncpipeError
from encpipe.torch.buffers import Anything

NullRule: TypeAlias = Literal["error", "mask"] | int | float
Nulls: TypeAlias = NullRule | Mapping[str, NullRule]
Lists: TypeAlias = Literal["offsets", "pad", "error"]
Decimals: TypeAlias = Literal["error", "float64", "int64"]
Strings: TypeAlias = Literal["list", "arrow"]

_TIME = (pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.timestamp("s"), pa.duration("s"))
_TEXT = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(1))
_VIEW = (pa.string_view(), pa.binary_view())
_TEMPORAL_IDS = frozenset(kind.id for kind in _TIME)
_TEXT_IDS = frozenset(kind.id for kind in (*_TEXT, *_VIEW))
_VIEW_IDS = frozenset(kind.id for kind in _VIEW)
_DTYPES = {
    pa.bool_(): torch.bool,
    pa.int8(): torch.int8,
    pa.int16(): torch.int16,
    pa.int32(): torch.int32,
    pa.int64(): torch.int64,
    pa.uint8(): torch.uint8,
    pa.uint16(): torch.uint16,
    pa.uint32(): torch.uint32,
    pa.uint64(): torch.uint64,
    pa.float16(): torch.float16,
    pa.float32(): torch.float32,
    pa.float64(): torch.float64,
}


@dataclass(frozen=True)
class Conversion:
    """What the types become for which there is a choice.

    `lists` of different lengths: `"offsets"` gives `NAME` (all values, one after the other) and
    `NAME_offsets` (int64, one more than rows, from 0 in each batch), `"pad"` gives `NAME` (rows, longest),
    filled up with 0, and `NAME_lengths` (int64), `"error"` refuses them.
    `decimals`: `"float64"`, `"int64"` (the unscaled integer: 1.50 is 150), or refused.
    `strings`, and binaries: a `"list"` of str or bytes, or the `"arrow"` array.
    `dtypes` casts tensors, by their name in the batch, as `Tensor.to` does.

    Raises `ConfigError` for another choice.
    """

    lists: Lists = "offsets"
    decimals: Decimals = "error"
    strings: Strings = "list"
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in (
            ("lists", ("offsets", "pad", "error")),
            ("decimals", ("error", "float64", "int64")),
            ("strings", ("list", "arrow")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it is one of {', '.join(choices)}")
        for name, dtype in self.dtypes.items():
            if not isinstance(dtype, torch.dtype):
                raise ConfigError(f"dtypes[{name!r}] is {dtype!r}: it is a torch.dtype, like torch.float32")


@dataclass(frozen=True)
class Part:
    """An array, where it has a value (None: everywhere), and what takes the place of a null."""

    array: pa.Array
    valid: npt.NDArray[np.bool_] | None
    filler: object = None

    @cached_property
    def values(self) -> Anything:
        """The numbers as they lie in memory, whatever stands where there is none."""
        return values_of(self.array)

    @cached_property
    def gaps(self) -> npt.NDArray[np.int64] | None:
        """The numbers of the values that are null; None where there are none."""
        return None if self.valid is None else np.flatnonzero(~self.valid)

    def mask(self) -> npt.NDArray[np.bool_]:
        """True where there is a value."""
        return np.ones(len(self.array), np.bool_) if self.valid is None else self.valid

    @property
    def all_null(self) -> bool:
        """Whether there is no value, so that Arrow may have no memory for them but that of the bitmap."""
        return self.gaps is not None and len(self.gaps) == len(self.array)

    def tensor(self) -> torch.Tensor:
        """The values as they lie in memory, one dimension, nulls replaced there.

        Not through NumPy, which shows Arrow's buffers as read-only: torch warns of those.
        """
        if self.gaps is None:
            return torch.from_dlpack(self.array)
        buffers = [None, self.array.buffers()[1]]
        bare = pa.Array.from_buffers(self.array.type, len(self.array), buffers, offset=self.array.offset)
        made = torch.from_dlpack(bare)
        made.numpy()[self.gaps] = self.filler
        return made

    def write(self, target: Anything) -> None:
        """The values, of which there are as many as in `target`, cast to its type."""
        with np.errstate(all="ignore"):  # what a cast cannot hold is the caller's wish
            np.copyto(target, self.values, casting="unsafe")
            if self.gaps is not None:
                target[self.gaps] = self.filler


@dataclass(frozen=True)
class Leaf:
    """The innermost values of one column, and the rules for them."""

    name: str
    kind: pa.DataType
    dtype: torch.dtype
    nulls: NullRule
    decimals: Decimals

    def plain(self, values: pa.Array) -> pa.Array:
        """The values as the type that the tensor has, with the same nulls.

        Raises `ConfigError` `nulls`, naming the column, for a null that may not be there.
        """
        values = self._plain(values)
        if values.null_count and self.nulls == "error":
            raise refuse_nulls(self.name)
        return values

    def part(self, values: pa.Array) -> Part:
        """What `plain` gave, to be written. Raises `ConfigError` `nulls` for a number of another type."""
        valid = valid_of(values)
        if valid is None:
            return Part(values, None)
        return Part(values, valid, filler_of(self.name, values.type, self.nulls).as_py())

    def _plain(self, values: pa.Array) -> pa.Array:
        kind = values.type
        if pa.types.is_dictionary(kind):
            return self._plain(values.dictionary_decode())
        if kind.id in _TEMPORAL_IDS:
            if kind.bit_width == 64:
                return values.view(pa.int64())
            return values.view(pa.int32()).cast(pa.int64())
        if pa.types.is_decimal(kind):
            return values.cast(pa.float64()) if self.decimals == "float64" else _unscaled(self.name, values)
        return values


def leaf_of(name: str, kind: pa.DataType, nulls: NullRule, conversion: Conversion) -> Leaf | None:
    """How values of this type become numbers; None where they cannot.

    Raises `EncpipeError` `unsupported` for a decimal about which nothing was chosen.
    """
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    dtype = torch.int64 if inner.id in _TEMPORAL_IDS else _DTYPES.get(inner)
    if pa.types.is_decimal(inner):
        if conversion.decimals == "error":
            raise unsupported(
                name, kind, 'choose with conversion=Conversion(decimals="float64"), or "int64": unscaled'
            )
        dtype = torch.float64 if conversion.decimals == "float64" else torch.int64
    return None if dtype is None else Leaf(name, kind, dtype, nulls, conversion.decimals)


def is_text(kind: pa.DataType) -> bool:
    """Whether it is one of strings or binaries, or a dictionary of them."""
    return (kind.value_type if pa.types.is_dictionary(kind) else kind).id in _TEXT_IDS


def plain_text(values: pa.Array) -> pa.Array:
    """Text without dictionary and views, for which Arrow lacks functions."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.type.id in _VIEW_IDS:
        return values.cast(pa.large_string() if pa.types.is_string_view(values.type) else pa.large_binary())
    return values


def unsupported(name: str, kind: pa.DataType, hint: str) -> EncpipeError:
    """The error for a column that no tensor can hold."""
    return EncpipeError(f"column {name!r} is {kind}, which no tensor can hold", hint=hint, code="unsupported")


def refuse_nulls(name: str, what: str = "nulls") -> ConfigError:
    """The error for nulls about which nothing was said."""
    return ConfigError(
        f"column {name!r} has {what}",
        hint='pass nulls="mask" or a number to put in their place, for all columns or this one '
        f'(nulls={{{name!r}: "mask"}}), or filter them out',
        code="nulls",
    )


def fill(name: str, values: pa.Array, nulls: NullRule) -> pa.Array:
    """The values with 0, False, the empty string or the number in place of nulls.

    Raises `ConfigError` `nulls` where they are refused, or the number does not fit the type exactly.
    """
    if nulls == "error":
        raise refuse_nulls(name)
    return pc.fill_null(values, filler_of(name, values.type, nulls))


@cache
def filler_of(name: str, kind: pa.DataType, nulls: NullRule) -> pa.Scalar:
    """What takes the place of nulls. Raises `ConfigError` `nulls` for a number that is no such value."""
    try:
        return _filler(kind, None if isinstance(nulls, str) else nulls)
    except (pa.ArrowInvalid, OverflowError):
        raise ConfigError(
            f"column {name!r} has nulls, and {nulls!r} is no {kind} to take their place",
            hint='pass nulls="mask" or another number, or filter them out',
            code="nulls",
        ) from None


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


def _unscaled(name: str, values: pa.Array) -> pa.Array:
    """The integers that decimals are stored as, as int64 with the same nulls."""
    words = values.type.byte_width // 8
    if not words:
        return values.view(pa.int32()).cast(pa.int64())
    start, rows = values.offset, len(values)
    data: npt.NDArray[np.int64] = np.frombuffer(values.buffers()[1], np.int64)
    data = data.reshape(-1, words)[start : start + rows]
    low = np.ascontiguousarray(data[:, 0])
    valid = valid_of(values)
    beyond = (data[:, 1:] != (low >> 63)[:, None]).any(axis=1)
    if (beyond if valid is None else beyond & valid).any():
        raise EncpipeError(
            f"column {name!r} has a {values.type} whose unscaled integer is beyond int64",
            hint='choose conversion=Conversion(decimals="float64"), which rounds',
            code="unsupported",
        )
    return pa.array(low, mask=None if valid is None else ~valid)


def values_of(values: pa.Array) -> Anything:
    """All values as they lie in memory, whatever stands where there is none; not a copy except of bools."""
    start, rows = values.offset, len(values)
    data = values.buffers()[1]
    if data is None:
        return np.zeros(rows, values.type.to_pandas_dtype())
    if pa.types.is_boolean(values.type):
        return _bits(data, start, rows).view(np.bool_)
    found: Anything = np.frombuffer(data, values.type.to_pandas_dtype())[start : start + rows]
    return found


def valid_of(values: pa.Array) -> npt.NDArray[np.bool_] | None:
    """True where the array has a value; None where it has one everywhere."""
    if values.null_count == 0:
        return None
    return _bits(values.buffers()[0], values.offset, len(values)).view(np.bool_)


def _bits(data: pa.Buffer, start: int, rows: int) -> npt.NDArray[np.uint8]:
    skip = start // 8
    packed = np.frombuffer(data, np.uint8)[skip:]
    return np.unpackbits(packed, count=start - 8 * skip + rows, bitorder="little")[start - 8 * skip :]
