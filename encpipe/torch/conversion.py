"""Arrow tables to batches of tensors. No I/O, no keys.

What becomes of a column (`n` rows):

    integers, floats             tensor (n,) of the same type
    bool                         bool tensor (n,)
    date, time, timestamp,       int64 tensor (n,): days for date32, milliseconds for date64, else the unit of
    duration                     the column's type, counted as Arrow does (UTC for timestamps with a zone)
    decimal                      as `Conversion.decimals` says: refused, float64, or int64 (unscaled)
    fixed-size list of those     tensor (n, size), nested ones (n, size, size)
    list of those                as `Conversion.lists` says. "offsets": NAME, all values of the batch one
                                 after the other, and NAME_offsets, int64 (n + 1,): row i is
                                 NAME[NAME_offsets[i]:NAME_offsets[i + 1]]. "pad": NAME (n, longest of the
                                 batch), filled up with 0, and NAME_lengths, int64 (n,). Or refused
    string, binary               as `Conversion.strings` says: list of n str or bytes, or the `pa.Array`
    dictionary                   as its values
    anything else                `EncpipeError` `unsupported`

Nulls: `"error"` refuses them. A number takes their place (of a string or binary it cannot: refused; a null
list becomes an empty one where lengths differ). `"mask"` puts 0, False, an empty string or list there and
adds a bool tensor `NAME_mask` of the same shape as `NAME` ((n,) for lists of different lengths), True where
there is a value, for every column that may hold nulls by its schema, whether this batch has one or not. No
such mask shows nulls *inside* lists of different lengths: `"mask"` refuses them. Rules may be given
by column: `nulls={"a": "mask", "b": 0}`; for columns that are not named it is `"error"` then.

Stacks: `stack={"x": ["a", "b"]}` packs columns into one contiguous tensor `x` (n, columns) of the type that
NumPy finds for them all (int32 or int64 with float32: float64), or of `Conversion.dtypes["x"]`; a fixed-size
list of width k is k of its columns. What is stacked does not appear on its own. With `nulls="mask"` there is
`x_mask` (n, columns) where any of them may hold nulls; a column whose nulls a number fills is True in it.

May I write into a tensor? Yes: nothing else reads its memory, and each has a storage of its own, so that
`torch.save` and `share_memory_` take it alone. What does it keep in memory? Batches lie in larger pieces that
the loader made (a row group or more of that column); a kept tensor keeps its piece:
`clone()` it to keep little. When the last tensor of a piece is gone, later rows are put in its memory: an
address (`data_ptr`) is no way to hold on to values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import torch

from encpipe.configtable import did_you_mean
from encpipe.errors import ConfigError
from encpipe.torch.buffers import numpy_dtype
from encpipe.torch.columns import Cuts, Dense, Kind, native, split
from encpipe.torch.leaves import Conversion, NullRule, Nulls, is_text, leaf_of, unsupported
from encpipe.torch.ragged import Ragged
from encpipe.torch.stacks import Stack, stacks_of
from encpipe.torch.texts import Text
from encpipe.torch.values import Column, Values, length

__all__ = ["Batch", "Conversion", "Converter", "Nulls"]

Batch: TypeAlias = dict[str, "torch.Tensor | list[Any] | pa.Array"]

_CHOOSE = "choose other columns with columns=[...], or read it with encpipe.open_dataset"
_CAST_ROWS = 16_384
"""Numbers cast at once: torch starts threads of its own for more than 32,768."""


class Converter:
    """Makes tables of one schema into dicts of tensors, as this module's docstring says; in any thread.

    Raises `EncpipeError` `unsupported` for a column that no tensor can hold, and `ConfigError` for a rule for
    nulls that is none of the three, or for a column that there is not, for a stack of columns that there are
    not or that no tensor can hold together, for two things of one name, for a cast of something that is no
    tensor, and for no columns at all.
    """

    def __init__(
        self,
        schema: pa.Schema,
        nulls: Nulls = "error",
        *,
        stack: Mapping[str, Sequence[str]] | None = None,
        conversion: Conversion = Conversion(),  # noqa: B008 - frozen, and shows the defaults
    ) -> None:
        if not isinstance(conversion, Conversion):
            raise ConfigError(f"conversion is {conversion!r}: it is an encpipe.torch.Conversion")
        rules = _rules(nulls, schema.names)
        if not schema.names:
            raise ConfigError("no column is left to make tensors of", code="filter")
        self._dtypes = dict(conversion.dtypes)
        kinds = {field.name: _kind(field, rules[field.name], conversion) for field in schema}
        self._stacks = stacks_of(kinds, stack or {}, conversion.dtypes)
        stacked = {name for made in self._stacks for name in made.names}
        self._alone = {name: kind for name, kind in kinds.items() if name not in stacked}
        self._check_names()
        ragged = [kind for kind in self._alone.values() if isinstance(kind, Ragged)]
        self.made_late = tuple(name for kind in ragged for name in kind.made_late)
        """The tensors that are made when batches are cut: lists of different lengths."""

    def _check_names(self) -> None:
        owners: dict[str, str] = {}
        tensors: set[str] = set()
        parts: list[tuple[str, Kind | Stack]] = [*self._alone.items(), *((s.name, s) for s in self._stacks)]
        for owner, part in parts:
            tensors.update(part.tensors)
            for name in (*part.others, *part.tensors):
                if name in owners:
                    raise ConfigError(
                        f"two things would be called {name!r}: one of {owners[name]!r}, one of {owner!r}",
                        hint="read them one at a time with columns=[...], or call a stack by another name",
                    )
                owners[name] = owner
        for name in self._dtypes:
            if name not in tensors:
                raise ConfigError(
                    f"no tensor is called {name!r}, to be cast", hint=did_you_mean(name, tensors)
                )

    def load(self, table: pa.Table, *, to_move: bool = False) -> Values:
        """The table's rows. With `to_move` they are as cheap to move as can be before they are finished.

        Raises `ConfigError` `nulls`, naming the column, for a null that may not be there.
        """
        values: Values = {}
        for name, kind in self._alone.items():
            if to_move and isinstance(kind, Text):
                values.update(kind.load_to_move(table[name]))
            else:
                values.update(kind.load(table[name]))
        for stack in self._stacks:
            values.update(stack.load(table))
        for name, dtype in self._dtypes.items():
            column = values.get(name)
            if isinstance(column, torch.Tensor) and column.dtype != dtype:
                values[name] = _cast(column, dtype)
        return values

    def split(self, values: Values, rows: int) -> list[Batch]:
        """Consecutive batches of `rows` rows, the last one shorter, none empty; views where possible."""
        total = length(values)
        cuts = [(start, min(start + rows, total)) for start in range(0, total, rows)]
        return self._batches(values, cuts) if cuts else []

    def finish(self, values: Values) -> Batch:
        """All rows as one batch."""
        return self._batches(values, [(0, length(values))])[0]

    def samples(self, values: Values) -> list[dict[str, Any]]:
        """Each row by itself: numbers are tensors without a dimension, lists those of their own length."""
        columns = {name: self._rows(name, column) for name, column in values.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _rows(self, name: str, column: Column) -> Sequence[Any]:
        if isinstance(column, torch.Tensor):
            return list(column.unbind())
        rows, dtype = self._alone[name].rows(column), self._dtypes.get(name)
        return rows if dtype is None else [row.to(dtype) for row in rows]

    def _batches(self, values: Values, cuts: Cuts) -> list[Batch]:
        columns: dict[str, Sequence[Any]] = {}
        for name, column in values.items():
            if isinstance(column, torch.Tensor):
                columns[name] = split(column, cuts)
                continue
            finished = self._alone[name].finish(column, cuts)
            for part, batches in finished.items():
                dtype = self._dtypes.get(part)
                columns[part] = batches if dtype is None else [batch.to(dtype) for batch in batches]
        return [dict(zip(columns, batch, strict=True)) for batch in zip(*columns.values(), strict=True)]


def _cast(column: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(column.shape, dtype=dtype)
    flat, source = out.reshape(-1), column.reshape(-1)
    for start in range(0, len(flat), _CAST_ROWS):
        flat[start : start + _CAST_ROWS].copy_(source[start : start + _CAST_ROWS])
    return out


def _rules(nulls: Nulls, names: Sequence[str]) -> dict[str, NullRule]:
    """The rule for each column."""
    if not isinstance(nulls, Mapping):
        return dict.fromkeys(names, _rule("nulls", nulls))
    for name in nulls:
        if name not in names:
            raise ConfigError(
                f"nulls has a rule for column {name!r}, which is not read",
                hint=did_you_mean(str(name), set(names)),
            )
    return {name: _rule(f"nulls[{name!r}]", nulls.get(name, "error")) for name in names}


def _rule(what: str, given: Any) -> NullRule:
    rule: NullRule = getattr(given, "item", lambda: given)()  # of a NumPy number, the number
    number = isinstance(rule, int | float) and not isinstance(rule, bool)
    if not number and rule not in ("error", "mask"):
        raise ConfigError(
            f"{what} is {rule!r}: it is a number, or one of error, mask",
            hint='nulls="mask" or nulls=0, or such a rule for each of some columns: nulls={"column": 0}',
        )
    return rule


def _kind(field: pa.Field, nulls: NullRule, conversion: Conversion) -> Kind:
    """How the column is to be read. Raises `EncpipeError` `unsupported` where no tensor can hold it."""
    masked = nulls == "mask" and field.nullable
    if is_text(field.type):
        return Text(field.name, masked, nulls, conversion.strings == "arrow")
    inner = field.type
    variable = _is_list(inner)
    if variable:
        if conversion.lists == "error":
            raise unsupported(field.name, inner, 'conversion=Conversion(lists="offsets"), or "pad", reads it')
        inner = inner.value_type
    shape = []
    while pa.types.is_fixed_size_list(inner):
        shape.append(inner.list_size)
        inner = inner.value_type
    leaf = leaf_of(field.name, inner, nulls, conversion)
    if leaf is None:
        raise unsupported(field.name, field.type, _CHOOSE)
    if variable:
        return Ragged(leaf, tuple(shape), masked, conversion.lists == "pad")
    wish = conversion.dtypes.get(field.name, leaf.dtype)
    return Dense(leaf, tuple(shape), masked, numpy_dtype(wish) or native(leaf))


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in tests)
