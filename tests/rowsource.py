"""Plaintext row groups in memory for a loader, in place of an encrypted dataset; notes what is read.

source = MemorySource([100, 7, 0, 250])     # columns: i, the row's number; s, the same as text
ids(Loader(source, 32, shuffle=True))
source.reads                                # row groups in the order in which reading began
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from encpipe.guard import Guard
from encpipe.torch import Loader

CORE = "c" * 64
ROW_BYTES = 2000
"""So large that lanes take turns by short runs (`encpipe.torch.order.RUN`): few rows are many rounds then."""


def numbered(start: int, rows: int) -> pa.Table:
    """`rows` rows, the first with number `start`."""
    numbers = range(start, start + rows)
    return pa.table({"i": pa.array(numbers, pa.int64()), "s": pa.array(map(str, numbers), pa.string())})


class MemorySource:
    """A `RowGroupSource` of row groups of these sizes. `before_read` is called with each number first."""

    generation = 1

    def __init__(
        self,
        rows: Sequence[int],
        *,
        core_digest: str = CORE,
        dataset_id: str = "d" * 32,
        missing_keys: tuple[str, ...] = (),
        row_bytes: int = ROW_BYTES,
        make: Callable[[int, int], pa.Table] = numbered,
    ) -> None:
        self.core_digest, self.dataset_id, self.missing_keys = core_digest, dataset_id, missing_keys
        self.rows = tuple(rows)
        self.sizes = tuple(row_bytes * count for count in rows)
        starts = itertools.accumulate(rows, initial=0)
        self._tables = [make(start, count) for start, count in zip(starts, rows, strict=False)]
        self.schema = make(0, 0).schema
        self.before_read: Callable[[int], object] = lambda row_group: None
        self.reads: list[int] = []
        self.closed = 0

    def read(self, row_group: int) -> pa.Table:
        self.reads.append(row_group)
        self.before_read(row_group)
        return self._tables[row_group]

    def close(self) -> None:
        self.closed += 1


def load(source: MemorySource, batch_size: int = 1024, **options: Any) -> Loader:
    """A loader without a guard, which takes longer to set up than such an epoch."""
    unguarded = Guard(forbid_core_dumps=False, dont_dump=False, warn_swap=False)
    return Loader(source, batch_size, **{"threads": 1, "guard": unguarded, **options})


def steps(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    """The row numbers of each batch. The other column is checked to have come along."""
    found = []
    for batch in batches:
        numbers = batch["i"].tolist()
        assert list(map(str, numbers)) == list(batch["s"])
        found.append(numbers)
    return found


def ids(batches: Iterable[dict[str, Any]]) -> list[int]:
    """The row numbers of all batches."""
    return list(itertools.chain.from_iterable(steps(batches)))


def ranks(source: MemorySource, world_size: int, **options: Any) -> list[Loader]:
    """A loader for each rank."""
    return [load(source, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
