"""What a rule shows of a dataset.

Rows that the rule hides are gone before anything of the client's touches them: the rule's filter is
evaluated by itself, and the client's filter on what it left, so that no error, count, number of row groups or
value in a dictionary depends on hidden rows. The client's filter goes to the files as well, but only to skip
row groups.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from encpipe.dataset import Dataset
from encpipe.errors import ConfigError, EncpipeError
from encpipe.filelist import FileEntry
from encpipe.gateway import wire
from encpipe.gateway.rules import Rule
from encpipe.gateway.wire import Conditions
from encpipe.projection import filter_columns, filter_failure

if TYPE_CHECKING:
    import pyarrow.compute as pc

_FIELD_ID: Final = b"PARQUET:field_id"


_WHOLE_BUFFERS: Final = (
    pa.types.is_dictionary,
    pa.types.is_run_end_encoded,
    pa.types.is_string_view,
    pa.types.is_binary_view,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


class FilterError(Exception):
    """A client's filter cannot be evaluated on rows that the client may see. `error` may be told to it."""

    def __init__(self, error: EncpipeError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True)
class Choice:
    """Columns and filter that fit a view."""

    columns: tuple[str, ...]
    filter: Conditions | None
    expression: pc.Expression | None


class View:
    """The columns and rows of one state of a dataset that a rule shows. Safe to use from several threads.

    Row groups are numbered anew: those without a visible row do not count.
    """

    def __init__(self, dataset: Dataset, rule: Rule, *, threads: int) -> None:
        self.dataset, self.rule, self._threads = dataset, rule, threads
        self.schema = _shown(dataset.schema, rule)
        self._lock = threading.Lock()
        self._files: list[FileEntry] = []
        self._numbered: tuple[list[int], list[int]] | None = None

    @property
    def groups(self) -> Sequence[int]:
        """Of each row group that has visible rows, its number in the files. The first look may count them."""
        return self._count()[0]

    @property
    def rows(self) -> Sequence[int]:
        """Visible rows of each of these row groups."""
        return self._count()[1]

    @property
    def files(self) -> Sequence[FileEntry]:
        """The files that the numbers are about."""
        self._count()
        return self._files

    def check(self, columns: Sequence[str] | None, filter: Conditions | None) -> Choice:
        """What is asked for, checked against the columns that are shown, and nothing else.

        Raises `ConfigError` `filter`; a column that is hidden is one that is not there.
        """
        chosen = list(self.schema.names if columns is None else columns)
        if not chosen or len(set(chosen)) != len(chosen):
            raise ConfigError(
                "columns are none, or one is named twice", hint="name each column once", code="filter"
            )
        for name in (*chosen, *wire.columns_of(filter)):
            if name not in self.schema.names:
                raise ConfigError(
                    f"the dataset has no column {name[:64]!r}",
                    hint=f"columns are: {', '.join(self.schema.names[:20])}",
                    code="filter",
                )
        return Choice(tuple(chosen), filter, _expression(filter, self.schema))

    def _count(self) -> tuple[list[int], list[int]]:
        with self._lock:
            if self._numbered is None:
                self._numbered = self._counted()
            return self._numbered

    def _counted(self) -> tuple[list[int], list[int]]:
        given = wire.as_filter(self.rule.filter)
        self._files = [f for f in self.dataset.files if given is None or self._may_hold(f, given)]
        with self.dataset.scan([], given, files=self._files).row_groups() as groups:
            if given is None:
                rows = list(groups.rows)
            else:
                with ThreadPoolExecutor(self._threads, thread_name_prefix="encpipe-count") as pool:
                    rows = list(pool.map(groups.count, range(len(groups))))
        numbers = [number for number, count in enumerate(rows) if count]
        return numbers, [rows[number] for number in numbers]

    def _may_hold(self, file: FileEntry, given: object) -> bool:
        with self.dataset.scan([], given, files=[file]).row_groups() as groups:
            return len(groups) > 0


class Selected:
    """The row groups of a view, by its numbers, as a client chose to see them. To be closed."""

    def __init__(self, view: View, choice: Choice) -> None:
        self.view, self._filter, self._expression = view, choice.filter, choice.expression
        fields = [view.schema.field(name) for name in choice.columns]
        self.schema = pa.schema(fields, metadata=view.schema.metadata)
        more = [name for name in wire.columns_of(choice.filter) if name not in choice.columns]
        given = wire.as_filter(view.rule.filter)
        self._groups = view.dataset.scan([*choice.columns, *more], given, files=view.files).row_groups()
        self._survivors: dict[int, frozenset[int]] = {}
        self._starts = self._file_starts()

    def _file_starts(self) -> list[int]:
        starts = [0]
        for file in self.view.files:
            starts.append(starts[-1] + len(file.row_groups))
        return starts

    def read(self, number: int) -> pa.Table:
        """The rows of a row group. Raises `FilterError`, or what `RowGroups.read` raises."""
        inner = self.view.groups[number]
        if not self._may_match(inner):
            return self.schema.empty_table()
        table = self._groups.read(inner)
        if self.view.rule.filter is not None:
            table = _without_dictionaries(table)
        if self._expression is not None:
            try:
                table = table.filter(self._expression)
            except pa.ArrowException as error:
                failure = filter_failure(error, wire.columns_of(self._filter))
                raise (FilterError(failure) if isinstance(failure, EncpipeError) else failure) from None
        return pa.Table.from_arrays(table.select(self.schema.names).columns, schema=self.schema)

    def count(self, number: int) -> int:
        """How many rows `read` gives."""
        return self.view.rows[number] if self._expression is None else len(self.read(number))

    def close(self) -> None:
        """Close the files."""
        self._groups.close()

    def _may_match(self, inner: int) -> bool:
        """Whether statistics and partition values leave the client's filter a chance."""
        if self._filter is None:
            return True
        file = max(n for n, start in enumerate(self._starts) if start <= inner)
        if file not in self._survivors:
            self._survivors[file] = self._surviving(file)
        return inner in self._survivors[file]

    def _surviving(self, file: int) -> frozenset[int]:
        start, stop = self._starts[file], self._starts[file + 1]
        scan = self.view.dataset.scan
        try:
            with scan([], wire.as_filter(self._filter), files=[self.view.files[file]]).row_groups() as groups:
                return frozenset(start + n for n in (groups.surviving(0) if len(groups) else ()))
        except ConfigError:  # a filter that fails on statistics of hidden rows must not fail visibly
            return frozenset(range(start, stop))


def _expression(filter: Conditions | None, schema: pa.Schema) -> pc.Expression | None:
    if filter is None:
        return None
    import pyarrow.parquet as pq

    try:
        expression = pq.filters_to_expression(wire.as_filter(filter))
    except (ValueError, TypeError, LookupError, pa.ArrowException):
        raise ConfigError("the filter is not well formed", code="filter") from None
    filter_columns(expression, schema)
    return expression


def _shown(schema: pa.Schema, rule: Rule) -> pa.Schema:
    """The schema under a rule. Of a whole dataset it is the dataset's; else metadata of the schema is left
    out, since pandas and others keep names of all columns and the number of rows there."""
    if rule.columns is None and rule.filter is None:
        return schema
    fields = [_without_id(schema.field(name)) for name in rule.visible(schema.names)]
    if not fields:
        raise ConfigError(f"the rule of {rule.identity} shows no column of {rule.dataset!r}")
    if rule.filter is not None:
        fields = [_plain(field) for field in fields]
    return pa.schema(fields)


def _without_id(field: pa.Field) -> pa.Field:
    kept = {name: value for name, value in (field.metadata or {}).items() if name != _FIELD_ID}
    return field.with_metadata(kept or None)


def _plain(field: pa.Field) -> pa.Field:
    """A dictionary holds the values of hidden rows, too, and a view's buffers may: Arrow sends them whole."""
    if pa.types.is_dictionary(field.type):
        field = field.with_type(field.type.value_type)
    if _keeps_more_than_its_rows(field.type):
        raise EncpipeError(
            f"column {field.name!r}: a rule with a filter cannot show type {field.type}",
            hint="leave the column out of the rule",
            code="unsupported",
        )
    return field


def _keeps_more_than_its_rows(kind: pa.DataType) -> bool:
    inner = getattr(kind, "storage_type", kind)
    if any(is_a(inner) for is_a in _WHOLE_BUFFERS):
        return True
    return any(_keeps_more_than_its_rows(inner.field(n).type) for n in range(inner.num_fields))


def _without_dictionaries(table: pa.Table) -> pa.Table:
    for n, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = field.with_type(field.type.value_type)
            table = table.set_column(n, plain, table.column(n).cast(plain.type))
    return table
