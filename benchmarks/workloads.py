"""The data that is measured: one generator, seed 0, snappy, made once and kept under `build/bench/data`.

Values are drawn from distributions that tables of these shapes have (identifiers that climb, categories with
few values, prices with two decimals, free floats, nulls, token ids by Zipf's law, incompressible images): a
column of zeros would be all encoding and no bytes, a column of noise all bytes and no encoding.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA: Final = Path(__file__).resolve().parents[1] / "build" / "bench" / "data"
SEED: Final = 0
RECIPE: Final = 1
"""Counts up when the values change: an older cached copy is then made anew."""

Rng = np.random.Generator
MakeBatch = Callable[[Rng, int, int], pa.RecordBatch]
"""(generator, first row, rows) -> the rows."""


@dataclass(frozen=True)
class Workload:
    """`files` files of `rows` rows each in row groups of `row_group` rows, made by `make`."""

    name: str
    files: int
    rows: int
    row_group: int
    make: MakeBatch

    @property
    def column(self) -> str:
        """The first column: the one that stands under a key of its own in the encrypted copy."""
        return str(self.make(np.random.default_rng(SEED), 0, 1).schema.names[0])

    def path(self, data: Path = DATA) -> Path:
        return data / f"{self.name}-{self.row_group}-v{RECIPE}"

    def ensure(self, data: Path = DATA) -> Path:
        """The folder of plaintext files, made now unless a whole one is there."""
        final = self.path(data)
        if not final.exists():
            partial = final.with_name(final.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for index in range(self.files):
                self.write_file(partial / f"part-{index}.parquet", seed=SEED + index)
            partial.rename(final)
        return final

    def write_file(self, path: Path, *, seed: int) -> None:
        """One file, made and written a row group at a time, so that its size is no matter of memory."""
        batches = self._batches(np.random.default_rng(seed))
        first = next(batches)
        with pq.ParquetWriter(path, first.schema, compression="snappy", data_page_version="1.0") as writer:
            writer.write_table(pa.Table.from_batches([first]), row_group_size=self.row_group)
            for batch in batches:
                writer.write_table(pa.Table.from_batches([batch]), row_group_size=self.row_group)

    def _batches(self, rng: Rng) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.rows, self.row_group):
            yield self.make(rng, start, min(self.row_group, self.rows - start))


def _identifier(rng: Rng, start: int, rows: int) -> pa.Array:
    return pa.array(np.arange(start, start + rows, dtype=np.int64) * 7 + rng.integers(0, 7, rows))


def _timestamp(rng: Rng, start: int, rows: int) -> pa.Array:
    seconds = 1_700_000_000 + start + np.cumsum(rng.integers(0, 3, rows))
    return pa.array(seconds * 1_000_000, pa.timestamp("us"))


def _category(rng: Rng, _: int, rows: int) -> pa.Array:
    return pa.array(np.minimum(rng.zipf(1.5, rows), 400).astype(np.int64))


def _count(rng: Rng, _: int, rows: int) -> pa.Array:
    return pa.array(rng.poisson(40, rows).astype(np.int64), mask=rng.random(rows) < 0.02)


def _price(rng: Rng, _: int, rows: int) -> pa.Array:
    return pa.array(np.round(rng.lognormal(3.0, 1.0, rows), 2))


def _real(rng: Rng, _: int, rows: int) -> pa.Array:
    return pa.array(rng.standard_normal(rows))


def _hashed(rng: Rng, _: int, rows: int) -> pa.Array:
    return pa.array(rng.integers(0, 1 << 62, rows))


_WORDS: Final = np.array([f"{stem}-{n}" for n in range(250) for stem in ("ash", "birch", "cedar", "oak")])


def _label(rng: Rng, _: int, rows: int) -> pa.Array:
    return pa.array(_WORDS[np.minimum(rng.zipf(1.4, rows), _WORDS.size) - 1])


def _text(rng: Rng, start: int, rows: int) -> pa.Array:
    picks = _WORDS[rng.integers(0, _WORDS.size, (3, rows))]
    return pa.array([f"{a} {b} {c} {start + n}" for n, (a, b, c) in enumerate(picks.T.tolist())])


NUMBERS: Final = (
    _identifier,
    _timestamp,
    _category,
    _count,
    _price,
    _real,
    _hashed,
    _real,
    _category,
    _price,
)


def _columns(makers: Iterator[tuple[str, Any]], rng: Rng, start: int, rows: int) -> pa.RecordBatch:
    columns = {name: make(rng, start, rows) for name, make in makers}
    return pa.RecordBatch.from_pydict(columns)


def _numbers(count: int) -> Iterator[tuple[str, Any]]:
    return ((f"c{n:03d}", NUMBERS[n % len(NUMBERS)]) for n in range(count))


def narrow_batch(rng: Rng, start: int, rows: int) -> pa.RecordBatch:
    """33 columns of 8 bytes."""
    return _columns(_numbers(33), rng, start, rows)


def tokens_batch(rng: Rng, _: int, rows: int) -> pa.RecordBatch:
    """One sequence of 2,048 token ids a row, out of a vocabulary of 50,000, by Zipf's law."""
    ids = np.exp(rng.random(rows * 2048, dtype=np.float32) * np.log(50_000)).astype(np.int32)
    values = pa.FixedSizeListArray.from_arrays(pa.array(ids), 2048)
    return pa.RecordBatch.from_pydict({"tokens": values})


def binaries_batch(rng: Rng, start: int, rows: int) -> pa.RecordBatch:
    """100,000 bytes a row that do not compress, as images do, and a label."""
    image = rng.bytes(100_000 * rows)
    offsets = np.arange(rows + 1, dtype=np.int32) * 100_000
    binary = pa.BinaryArray.from_buffers(
        pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(image)]
    )
    return pa.RecordBatch.from_pydict({"image": binary, "label": _category(rng, start, rows)})


def mixed_batch(rng: Rng, start: int, rows: int) -> pa.RecordBatch:
    """200 columns, of which 30 hold labels and 10 hold free text."""
    strings = [(f"s{n:03d}", _text if n % 4 == 0 else _label) for n in range(40)]
    return _columns(iter([*_numbers(160), *strings]), rng, start, rows)


NARROW: Final = Workload("narrow", 2, 500_000, 65_536, narrow_batch)
TOKENS: Final = Workload("tokens", 2, 20_000, 2_048, tokens_batch)
BINARIES: Final = Workload("binaries", 2, 2_000, 256, binaries_batch)
MIXED: Final = Workload("mixed", 2, 120_000, 30_000, mixed_batch)
JUDGED: Final = (NARROW, TOKENS, BINARIES, MIXED)
FINE: Final = (
    Workload("narrow", 2, 500_000, 4_096, narrow_batch),
    Workload("mixed", 2, 120_000, 4_096, mixed_batch),
)
"""Small row groups: printed, not judged."""


def large_batch(rng: Rng, start: int, rows: int) -> pa.RecordBatch:
    """33 columns of 8 bytes that hardly compress, so that the file is as large as its values."""
    return _columns(((f"c{n:02d}", _real if n % 2 else _hashed) for n in range(33)), rng, start, rows)


_LARGE_ROWS: Final = 2_000_000_000 // (33 * 8)
LARGE: Final = Workload("large", 1, _LARGE_ROWS, 1_048_576, large_batch)
LARGE_ONE_GROUP: Final = Workload("large", 1, _LARGE_ROWS, _LARGE_ROWS, large_batch)
"""A 2 GB file of 33 x 8 bytes, in row groups of 1,048,576 and as a single one."""
