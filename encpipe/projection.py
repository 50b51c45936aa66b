"""Which columns a read gives, which leaves it needs, and what a missing key makes of them. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe.errors import ConfigError, EncpipeError, ManifestError
from encpipe.filelist import FileList
from encpipe.parquet import SchemaOnDisk, count_leaves

if TYPE_CHECKING:
    import pyarrow.compute as pc

OnMissingKey = Literal["error", "skip", "null"]
MISSING_KEY_MARK: Final = b"encpipe.missing_key"
"""Field metadata of a column that is null, or lacks a part, for want of a key; holds the key name."""


@dataclass(frozen=True)
class Projection:
    """What a scan reads and gives.

    `leaves` are read from the files, `partitions` filled in from the file list; `schema` is the result's,
    `file_schema` that of the leaves. What is in neither is filled with null.
    """

    schema: pa.Schema
    leaves: tuple[str, ...]
    partitions: tuple[str, ...]
    file_schema: pa.Schema


def partition_value(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """A partition value from its text in the file list."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.scalar(text, pa.string()).cast(plain)


def list_of_names(names: Sequence[str], option: str) -> list[str]:
    """Refuse one string, which Python takes for a list of letters. Raises `ConfigError` `filter`."""
    if isinstance(names, str | bytes):
        raise ConfigError(
            f"{option} is a list of names, and this is a string",
            hint=f"put it in brackets: {option}=[{names!r}]",
            code="filter",
        )
    return list(names)


class Columns:
    """The columns of a dataset by every name they can be asked by."""

    def __init__(self, schema: pa.Schema, partitions: Sequence[str], leaves: Mapping[str, str]) -> None:
        self.schema = schema
        self.partitions = tuple(partitions)
        self._key_names = leaves
        self._in_files = SchemaOnDisk(pa.schema([f for f in schema if f.name not in partitions]))
        self._leaves_of: dict[str, tuple[str, ...]] = {}
        rest = list(leaves)
        for field in self._in_files.schema:
            count = count_leaves(field.type)
            self._leaves_of[field.name], rest = tuple(rest[:count]), rest[count:]
        self._top_of = {leaf: name for name, leaves in self._leaves_of.items() for leaf in leaves}

    @property
    def parquet_schema(self) -> pq.ParquetSchema:
        """The Parquet schema of every file."""
        return self._in_files.parquet_schema

    @property
    def all_leaves(self) -> tuple[str, ...]:
        """The leaf paths that Parquet makes of the schema, in file order."""
        return self._in_files.leaves

    def leaves(self, name: str) -> tuple[str, ...]:
        """The leaves that a column name or a dotted path covers; none for a partition column.

        Raises `ConfigError` `filter` for a name the dataset does not have.
        """
        if name in self.partitions:
            return ()
        if name in self._leaves_of:
            return self._leaves_of[name]
        found = tuple(leaf for leaf in self._key_names if leaf == name or leaf.startswith(name + "."))
        if not found:
            raise ConfigError(
                f"the dataset has no column {name!r}",
                hint=f"columns are: {', '.join(self.schema.names[:20])}",
                code="filter",
            )
        return found

    def key_name(self, leaf: str) -> str:
        """The key name that a leaf falls under."""
        return self._key_names[leaf]

    def key_names(self, leaves: Iterable[str]) -> set[str]:
        """The key names that these leaves fall under."""
        return {self._key_names[leaf] for leaf in leaves}

    def project(self, columns: Sequence[str] | None, *, missing: Mapping[str, OnMissingKey]) -> Projection:
        """What a read of `columns` (None: all) gives when the key names in `missing` cannot be had.

        Raises `ConfigError` `filter` for unknown or repeated columns.
        """
        names = list(self.schema.names) if columns is None else list_of_names(columns, "columns")
        if len(set(names)) != len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise ConfigError(f"column {twice!r} is selected twice", hint="name it once", code="filter")
        wanted = {name: self.leaves(name) for name in names}
        present = tuple(
            leaf for leaves in wanted.values() for leaf in leaves if self.key_name(leaf) not in missing
        )
        file_schema = self._in_files.project(present) if present else pa.schema([])
        fields: dict[str, pa.Field] = {}
        for name, leaves in wanted.items():
            field = self._field(name, leaves, file_schema, missing)
            if field is not None:
                fields.setdefault(field.name, field)
        return Projection(
            schema=pa.schema(list(fields.values()), metadata=self.schema.metadata),
            leaves=present,
            partitions=tuple(name for name in names if name in self.partitions),
            file_schema=file_schema,
        )

    def _field(
        self,
        name: str,
        leaves: tuple[str, ...],
        file_schema: pa.Schema,
        missing: Mapping[str, OnMissingKey],
    ) -> pa.Field | None:
        if name in self.partitions:
            return self.schema.field(name)
        top = name if name in self._leaves_of else self._top_of[leaves[0]]
        index = file_schema.get_field_index(top)
        lacking = [key for key in map(self.key_name, leaves) if key in missing]
        if index >= 0:
            field = file_schema.field(index)
            return _marked(field, lacking[0]) if lacking and missing[lacking[0]] == "null" else field
        if missing[lacking[0]] == "skip":
            return None
        return _marked(self.schema.field(top), lacking[0]).with_nullable(True)


def _marked(field: pa.Field, key_name: str) -> pa.Field:
    return field.with_metadata({**(field.metadata or {}), MISSING_KEY_MARK: key_name.encode()})


def columns_of(files: FileList, key_names: Collection[str]) -> Columns:
    """The columns of a generation.

    Raises `ManifestError` `file-list` for a list whose schema, columns and key names do not fit together:
    only a holder of the footer KEK can have sealed it.
    """
    columns = None
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(files.schema))
        if set(files.partitions) <= set(schema.names) and set(files.columns.values()) <= set(key_names):
            columns = Columns(schema, files.partitions, files.columns)
    except (pa.ArrowException, OSError, EncpipeError):
        columns = None
    if columns is None or columns.all_leaves != tuple(files.columns):
        raise ManifestError(
            "the file list contradicts itself: its schema, columns and key names do not fit together",
            hint="it was sealed by another program: write the dataset anew",
            code="file-list",
        )
    return columns


def filter_columns(expression: pc.Expression, schema: pa.Schema) -> tuple[str, ...]:
    """The top-level columns that a filter refers to.

    PyArrow does not tell, so it is found by binding the filter to ever smaller schemas, first of the columns
    whose names occur in its text. Raises `ConfigError` `filter` for a filter that does not fit the schema, or
    that names a column by its position: positions differ between dataset, file and result.
    """
    text = str(expression)
    if "FieldPath(" in text:
        raise ConfigError(
            "the filter names a column by its position",
            hint='name it: pyarrow.compute.field("name")',
            code="filter",
        )
    try:
        _bind(expression, list(schema))
        likely = [field for field in schema if field.name in text]
        needed = _needed(expression, likely if _binds(expression, likely) else list(schema), [])
        _evaluate_once(expression, needed)
    except (pa.ArrowException, TypeError) as error:
        raise ConfigError(
            f"the filter does not fit the dataset: {str(error).splitlines()[0][:200]}",
            hint=_TIME_ZONE_HINT if "timezone" in str(error) or "tz=" in str(error) else _FIT_HINT,
            code="filter",
        ) from None
    return tuple(field.name for field in needed)


_FIT_HINT: Final = "check column names and types; .schema shows them"
_TIME_ZONE_HINT: Final = (
    "compare a timestamp that has a time zone with a datetime that has one, such as "
    "datetime(2026, 1, 31, tzinfo=timezone.utc), and one without with one without"
)
_REASONS: Final = (
    ("Failed to parse", "a text cannot be read as the type it is cast to"),
    ("divide by zero", "it divides by zero"),
    ("overflow", "a result is outside the range of its type"),
    ("not in range", "a value is outside the range of the type it is cast to"),
    ("out of bounds", "a list has no element at the index it names"),
    ("truncated", "a cast would lose a part of a value"),
    ("lose data", "a cast would lose a part of a value"),
    ("array_filter", "PyArrow cannot filter rows with a column of such a type: select other columns"),
)
"""What PyArrow says -> what we say."""


def filter_failure(error: pa.ArrowException, columns: Sequence[str], file: str | None = None) -> Exception:
    """The error to raise for one that evaluating a filter on rows or partition values gave.

    `ConfigError` `filter`. PyArrow's own text is left out: it may hold a value of the data. What is no fault
    of the filter, such as want of memory, is given back.
    """
    if isinstance(error, pa.ArrowMemoryError | pa.ArrowCancelled):
        given_back: Exception = error
        return given_back
    text = str(error)
    reason = next((ours for theirs, ours in _REASONS if theirs in text), "a value is none that it can take")
    where = f" on file {file}" if file else ""
    named = f" (it uses {', '.join(map(repr, columns[:10]))})" if columns else ""
    return ConfigError(
        f"the filter{named} cannot be evaluated{where}: {reason}",
        hint="leave out the operation that fails, or filter the batches of a scan yourself, with such values "
        "replaced",
        code="filter",
    )


def _binds(expression: pc.Expression, fields: list[pa.Field]) -> bool:
    try:
        _bind(expression, fields)
    except pa.ArrowException:
        return False
    return True


def _bind(expression: pc.Expression, fields: list[pa.Field]) -> None:
    pa.schema(fields).empty_table().filter(expression)


def _evaluate_once(expression: pc.Expression, fields: list[pa.Field]) -> None:
    """On one row of nulls: some of what does not fit (time zones, regular expressions) binds nevertheless."""
    nulls = [pa.nulls(1, field.type) for field in fields]
    table = pa.Table.from_arrays(nulls, schema=pa.schema(fields)) if fields else pa.table({"": pa.nulls(1)})
    table.filter(expression)


def _needed(expression: pc.Expression, fields: list[pa.Field], kept: list[pa.Field]) -> list[pa.Field]:
    """Of `fields`, those without which the filter does not bind (`kept` are always there)."""
    if _binds(expression, kept):
        return []
    if len(fields) == 1:
        return fields
    half = len(fields) // 2
    left, right = fields[:half], fields[half:]
    needed_left = _needed(expression, left, kept + right)
    return needed_left + _needed(expression, right, kept + needed_left)
