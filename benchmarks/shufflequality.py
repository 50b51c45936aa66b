"""How well the loader mixes a dataset that is sorted by label, against a full shuffle of all rows.

    python -m benchmarks.shufflequality

Row groups of 4,096 rows, 16 labels, each in neighbouring row groups only: the worst case. Printed for each
order, as means over batches and seeds:

    at once    row groups that a batch of 256 rows draws from
    256 ...    how far the labels of a batch of so many rows are from those of the dataset (total variation: 0
               is the same share of each, 1 is nothing in common), divided by how far those of a full shuffle
               are, which is not 0 either: a batch is a sample
    memory     correlation between the mean place in the dataset of a batch of 256 and that of the next batch
    drift      correlation between a row's place in the epoch and its place in the dataset (absolute)

The figures are a function of the seeds: they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from encpipe.guard import Guard
from encpipe.torch import Loader

ROWS: Final = 4096
LABELS: Final = 16
SEEDS: Final = range(2)
BATCHES: Final = (256, 1024, 4096)
BUFFER: Final = 10_000
OPEN: Final = Guard(forbid_core_dumps=False, dont_dump=False, warn_swap=False)

Numbers = npt.NDArray[Any]


class Sorted:
    """A `RowGroupSource` of numbered rows, as many to a row group."""

    dataset_id, core_digest, generation, missing_keys = "d" * 32, "c" * 64, 1, ()
    schema = pa.schema({"i": pa.int64()})

    def __init__(self, groups: int, row_bytes: int) -> None:
        self.rows = (ROWS,) * groups
        self.sizes = (ROWS * row_bytes,) * groups

    def read(self, row_group: int) -> pa.Table:
        return pa.table({"i": np.arange(row_group * ROWS, (row_group + 1) * ROWS)})

    def close(self) -> None:
        """Nothing is open."""


def loaded(groups: int, seed: int, *, lanes: int, window: int, row_bytes: int) -> Numbers:
    """The row numbers of an epoch in the loader's order."""
    loader = Loader(
        Sorted(groups, row_bytes), 65_536, shuffle=True, seed=seed, lanes=lanes, window=window, guard=OPEN
    )
    return np.concatenate([batch["i"].numpy() for batch in loader])


def buffered(groups: int, seed: int) -> Numbers:
    """What a buffer of rows gives, of which a random one is replaced by the next row of the dataset."""
    random = np.random.default_rng(seed)
    total = groups * ROWS
    held = np.arange(BUFFER)
    found = np.empty(total, np.int64)
    for n, place in enumerate(random.integers(0, BUFFER, total - BUFFER).tolist()):
        found[n], held[place] = held[place], n + BUFFER
    found[total - BUFFER :] = random.permutation(held)
    return found


def distance(order: Numbers, groups: int, batch: int) -> float:
    """The mean total variation between the labels of a batch and those of the dataset."""
    labels = _batches(order, batch) * LABELS // (groups * ROWS)
    shares = np.stack([(labels == label).mean(axis=1) for label in range(LABELS)])
    return float(np.abs(shares - 1 / LABELS).sum(axis=0).mean() / 2)


def figures(order: Numbers, groups: int) -> Numbers:
    """Row groups at once, distances for all batch sizes, memory and drift of an order of rows."""
    batches = _batches(order, BATCHES[0])
    means = batches.mean(axis=1)
    at_once = np.mean([len(np.unique(rows)) for rows in batches[::50] // ROWS])
    distances = [distance(order, groups, batch) for batch in BATCHES]
    memory = np.corrcoef(means[:-1], means[1:])[0, 1]
    drift = abs(np.corrcoef(np.arange(len(order)), order)[0, 1])
    return np.array([at_once, *distances, memory, drift])


def _batches(order: Numbers, batch: int) -> Numbers:
    return order[: len(order) // batch * batch].reshape(-1, batch)


def orders(groups: int) -> Iterator[tuple[str, list[Numbers]]]:
    """Every line of the table: what it is called, and its orders by seed."""
    total = groups * ROWS
    yield "full shuffle", [np.random.default_rng(seed).permutation(total) for seed in SEEDS]
    for name, row_bytes in (("rows of 1 KiB", 1024), ("rows of 100 B", 100)):
        for lanes, window in ((8, 1), (8, 4), (8, 8), (16, 1), (16, 4), (32, 1), (32, 4)):
            shape = {"lanes": lanes, "window": window, "row_bytes": row_bytes}
            yield f"{lanes} lanes, window {window}, {name}", [loaded(groups, seed, **shape) for seed in SEEDS]
    yield f"a buffer of {BUFFER:,} rows", [buffered(groups, 0)]
    yield "no shuffle", [np.arange(total)]


def main() -> None:
    sizes = [f"{batch:,}" for batch in BATCHES]
    for groups in (64, 256):
        print(f"\n{groups} row groups\n")
        print(f"| order | at once | {' | '.join(sizes)} | memory | drift |")
        print("|---" * (len(sizes) + 4) + "|")
        full = None
        for name, found in orders(groups):
            at_once, *distances, memory, drift = np.mean([figures(order, groups) for order in found], axis=0)
            full = full or distances
            ratios = " | ".join(f"{one / ideal:.1f}" for one, ideal in zip(distances, full, strict=True))
            print(f"| {name} | {at_once:.0f} | {ratios} | {memory:+.2f} | {drift:.2f} |")


if __name__ == "__main__":
    main()
