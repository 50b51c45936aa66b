"""What a scan reads for the columns and the filter it was given. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa

from encpipe.errors import ConfigError
from encpipe.filelist import FileEntry
from encpipe.projection import Columns, OnMissingKey, Projection, filter_columns

if TYPE_CHECKING:
    import pyarrow.compute as pc

Filter: TypeAlias = "pc.Expression | Sequence[Any]"
"""A PyArrow expression, or the (nested) list of tuples that `pyarrow.parquet.read_table` takes."""


@dataclass(frozen=True)
class Selection:
    """The columns to give (`out`), those to read for them and the filter (`read`), and the filter, which
    refers to the columns `needed`."""

    columns: Columns
    read: Projection
    out: Projection
    filter: pc.Expression | None
    needed: tuple[str, ...]

    @property
    def filter_leaves(self) -> tuple[str, ...]:
        """The leaves in the files that the filter refers to."""
        return tuple(leaf for name in self.needed for leaf in self.columns.leaves(name))

    def prune(self, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        """The files that their partition values do not rule out."""
        if self.filter is None or not set(self.needed) & set(self.columns.partitions):
            return files
        from encpipe import fragments

        return fragments.prune_by_partition(files, self.columns.schema, self.filter)


def select(
    columns: Columns,
    names: Sequence[str] | None,
    filter: Filter | None,
    *,
    missing: Mapping[str, OnMissingKey],
) -> Selection:
    """What to read for the columns `names` (None: all) and the filter, without the key names in `missing`.

    Raises `ConfigError` `filter` for a filter that is not well formed, for columns that the dataset does not
    have, and for a filter on a column that is missing or only selected in part.
    """
    expression = _expression(filter)
    out = columns.project(names, missing=missing)
    needed = tuple(filter_columns(expression, columns.schema)) if expression is not None else ()
    _refuse_missing(columns, needed, missing)
    extra = [name for name in needed if not is_whole(columns, name, out)]
    in_part = [name for name in extra if name in out.schema.names]
    if in_part:
        raise ConfigError(
            f"the filter uses column {in_part[0]!r}, of which only a part is selected",
            hint="select the whole column, or none of it",
            code="filter",
        )
    read = out
    if extra:
        read = columns.project([*(columns.schema.names if names is None else names), *extra], missing=missing)
    return Selection(columns, read, out, expression, needed)


def is_whole(columns: Columns, name: str, projection: Projection) -> bool:
    """Whether the projection reads all of a top-level column."""
    if name in columns.partitions:
        return name in projection.partitions
    return set(columns.leaves(name)) <= set(projection.leaves)


def _refuse_missing(columns: Columns, needed: Sequence[str], missing: Mapping[str, OnMissingKey]) -> None:
    for name in needed:
        lacking = columns.key_names(columns.leaves(name)) & set(missing)
        if lacking:
            raise ConfigError(
                f"the filter uses column {name!r}, whose key {min(lacking)!r} is missing",
                hint="a filter on a column that cannot be read would drop rows silently",
                code="filter",
            )


def _expression(given: Filter | None) -> pc.Expression | None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if given is None or isinstance(given, pc.Expression):
        return given
    if not isinstance(given, list | tuple):
        raise ConfigError(
            f"a filter is a pyarrow expression or a list of (column, op, value), not {type(given).__name__}",
            hint=_FILTER_HINT,
            code="filter",
        )
    try:
        return pq.filters_to_expression(given)
    except (ValueError, TypeError, LookupError, pa.ArrowException) as error:
        raise ConfigError(
            f"the filter is not well formed: {str(error)[:200]}", hint=_FILTER_HINT, code="filter"
        ) from None


_FILTER_HINT: Final = 'for example [("age", ">", 3)] or pyarrow.compute.field("age") > 3'
