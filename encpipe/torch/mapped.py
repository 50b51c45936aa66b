"""A dataset by row number, for samplers of PyTorch's own `DataLoader` and for random access."""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, SupportsIndex, Unpack, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch.utils import data

from encpipe import guard as guarding
from encpipe.access import AnyPath
from encpipe.dataset import Dataset
from encpipe.errors import ConfigError
from encpipe.guard import Guard
from encpipe.perprocess import PerProcess
from encpipe.torch.conversion import Batch, Conversion, Converter, Nulls
from encpipe.torch.feed import Opened, OpenOptions
from encpipe.torch.memory import MEMORY
from encpipe.torch.source import ScanSource
from encpipe.torch.values import Values, join, take

Sample = dict[str, Any]

_FEW = 4
"""Where this many times the rows asked for are there, they are taken before anything is converted."""
_NOT_TAKEN = {pa.string_view(), pa.binary_view()}
"""Types of which Arrow takes no rows."""


class Rows(Sequence[Sample]):
    """Some rows of a `MapDataset`: a sequence of samples, and the same rows as one `batch`.

    Samples are made when the first one is asked for, as views of what the batch is made of.
    """

    def __init__(self, values: Values, converter: Converter, count: int) -> None:
        self._values, self._converter, self._count = values, converter, count
        self._samples: list[Sample] | None = None

    @property
    def batch(self) -> Batch:
        """The rows in order as one batch."""
        return self._converter.finish(self._values)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        return self._made()[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._made())

    def _made(self) -> list[Sample]:
        if self._samples is None:
            self._samples = self._converter.samples(self._values)
        return self._samples


class MapDataset(data.Dataset):  # type: ignore[misc] # mypy does not follow torch here: slow
    """The rows of an encrypted dataset by number, for samplers and random access.

        data = MapDataset("s3://bucket/scans", ["image", "label"])
        sampler = BatchSampler(RandomSampler(data), 256, drop_last=False)
        for batch in DataLoader(data, sampler=sampler, batch_size=None, collate_fn=data.collate): ...
        data[-1]["label"], data.batch([3, 1, 3])["image"]

    Rows are numbered from 0 in the dataset's order, from -1 backwards. There is no filter: row numbers would
    depend on it, and counting rows means reading the dataset. `columns`, `stack`, `nulls` and `conversion`
    are as for `Loader`; `options` are those of `open_dataset`, and go with a URL.

    Row groups are decrypted whole, and **each thread keeps the last one it read** in memory, in clear, until
    it reads another one or `close`. So rows asked for together are read together: one row group once, however
    many of its rows are wanted. A row from anywhere costs a whole row group: for training in shuffled order
    `Loader` and `IterableDataset` are faster by orders of magnitude.

    Works in worker processes (fork, spawn or forkserver). A pickle carries URL and wrapped keys, never a key,
    and no rows. Tensors may be written to: what is kept is not seen in them.

    Raises what `open_dataset` and `Dataset.scan` raise, `ConfigError` for columns that make no tensors, and
    `TypeError` for an unknown argument.
    """

    def __init__(
        self,
        url_or_dataset: AnyPath | Dataset,
        columns: Sequence[str] | None = None,
        *,
        stack: Mapping[str, Sequence[str]] | None = None,
        nulls: Nulls = "error",
        conversion: Conversion = Conversion(),  # noqa: B008 - frozen, and shows the defaults
        guard: Guard = Guard(),  # noqa: B008 - frozen, and shows the defaults
        **options: Unpack[OpenOptions],
    ) -> None:
        opened = Opened(url_or_dataset, options, of=MapDataset)
        try:
            source = ScanSource(opened.dataset, columns, None, threads=1)
            converter = Converter(source.schema, nulls, stack=stack, conversion=conversion)
        except BaseException:
            opened.close()
            raise
        self._begin(source, converter, guard, opened.dataset if opened.owned else None)

    def _begin(self, source: ScanSource, converter: Converter, guard: Guard, owned: Dataset | None) -> None:
        self._converter, self._guard, self._owned = converter, guard, owned
        self._ends = list(np.cumsum(source.rows))
        self._reading = PerProcess(_Reading(source, guard, owned), _Reading.inherited)

    @property
    def schema(self) -> pa.Schema:
        """The columns that are read, as they are stored."""
        return self._reading.get().source.schema

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """One row.

        Raises `IndexError` for a number beyond the rows, while reading `IntegrityError`, `KmsError`,
        `StorageError`, or `ConfigError` `nulls`.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[SupportsIndex]) -> Rows:
        """Rows in the order of their numbers, each row group read once. `DataLoader` calls this for batches.

        Raises what `__getitem__` raises.
        """
        numbers = self._numbers(indices)
        return Rows(self._values(numbers), self._converter, len(numbers))

    def batch(self, indices: Iterable[SupportsIndex]) -> Batch:
        """Rows in the order of their numbers, as one batch. Raises what `__getitem__` raises."""
        return self.__getitems__(indices).batch

    @staticmethod
    def collate(rows: Rows) -> Batch:
        """For `DataLoader(collate_fn=data.collate)`: a batch without samples in between.

        Raises `ConfigError` for anything but what `__getitems__` gave.
        """
        if not isinstance(rows, Rows):
            raise ConfigError(
                f"collate got a {type(rows).__name__}, not the rows of one MapDataset",
                hint="leave collate_fn out, where rows come from several datasets or one at a time",
            )
        return rows.batch

    def _numbers(self, indices: Iterable[SupportsIndex]) -> npt.NDArray[np.int64]:
        rows = len(self)
        found = np.fromiter(map(operator.index, indices), np.int64)
        beyond = found[(found < -rows) | (found >= rows)]
        if len(beyond):
            raise IndexError(f"row {beyond[0]} of {rows}")
        return np.where(found < 0, found + rows, found)

    def _values(self, numbers: npt.NDArray[np.int64]) -> Values:
        reading = self._reading.get()
        if not len(numbers):
            return self._converter.load(reading.source.schema.empty_table())
        groups = np.searchsorted(self._ends, numbers, side="right")
        places, parts = [], []
        for group in sorted(set(groups.tolist()), key=lambda group: (not reading.keeps(group), group)):
            here = np.flatnonzero(groups == group)
            table = reading.table(group)
            rows = numbers[here] - (self._ends[group] - len(table))
            places.append(here)
            parts.append(self._load(table, rows))
        joined = join(parts)
        return joined if len(parts) == 1 else take(joined, np.argsort(np.concatenate(places)))

    def _load(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> Values:
        """Those rows, in that order, in memory of their own: the table is kept."""
        if _FEW * len(rows) < len(table) and _NOT_TAKEN.isdisjoint(table.schema.types):
            return self._converter.load(table.take(pa.array(rows)))
        return take(self._converter.load(table), rows)

    def close(self) -> None:
        """Release files and rows, and what was opened here. A `Dataset` that was given stays open."""
        self._reading.get().close()

    def __enter__(self) -> MapDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> tuple[ScanSource, Converter, Guard, Dataset | None]:
        return self._reading.get().source, self._converter, self._guard, self._owned

    def __setstate__(self, state: tuple[ScanSource, Converter, Guard, Dataset | None]) -> None:
        self._begin(*state)


class _Reading:
    """What one process reads with, and the row group that each of its threads read last."""

    def __init__(self, source: ScanSource, guard: Guard, owned: Dataset | None) -> None:
        self.source, self._guard, self._owned = source, guard, owned
        self._kept = threading.local()
        with ExitStack() as closers:
            closers.callback(MEMORY.release)
            if owned is not None:
                closers.callback(owned.close)
            closers.enter_context(guarding.hold(guard))
            closers.callback(source.close)
            self._close = weakref.finalize(self, closers.pop_all().close)

    def inherited(self) -> _Reading:
        """The same for a forked child: nothing that the parent has open or keeps is used."""
        return _Reading(self.source.reopened(), self._guard, self._owned)

    def keeps(self, group: int) -> bool:
        """Whether this thread has it."""
        return getattr(self._kept, "group", None) == group

    def table(self, group: int) -> pa.Table:
        """The rows of a row group. Raises `ValueError` after `close`."""
        if not self._close.alive:
            raise ValueError("this dataset is closed")
        if not self.keeps(group):
            self._kept.__dict__.clear()  # first, so that there is never more than one
            self._kept.table = self.source.read(group)
            self._kept.group = group
        return self._kept.table

    def close(self) -> None:
        """Idempotent."""
        self._kept = threading.local()
        self._close()
