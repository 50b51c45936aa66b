"""Plaintext Parquet through the loader's only door: what the same loader does without decryption."""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


class PlainSource:
    """The row groups of a folder of plaintext files, as a `RowGroupSource`.

    Handles are lent to one thread at a time and kept for the next, as encpipe's own are.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.rglob("*.parquet"))
        self._footers = [pq.read_metadata(path) for path in self._paths]
        self._starts = list(accumulate((footer.num_row_groups for footer in self._footers), initial=0))
        self._lock = threading.Lock()
        self._idle: dict[int, list[pq.ParquetFile]] = defaultdict(list)
        self.dataset_id, self.core_digest = "0" * 32, "0" * 64
        self.generation, self.missing_keys = 1, ()
        self.schema: pa.Schema = pq.read_schema(self._paths[0])
        counted = [
            (footer.row_group(n).num_rows, path.stat().st_size / footer.num_rows)
            for path, footer in zip(self._paths, self._footers, strict=True)
            for n in range(footer.num_row_groups)
        ]
        self.rows: Sequence[int] = [rows for rows, _ in counted]
        self.sizes: Sequence[int] = [int(rows * size) for rows, size in counted]

    def read(self, row_group: int) -> pa.Table:
        """The rows of a row group, columns one after another in the calling thread."""
        file = bisect_right(self._starts, row_group) - 1
        with self._lend(file) as reader:
            return reader.read_row_group(row_group - self._starts[file], use_threads=False)

    @contextlib.contextmanager
    def _lend(self, file: int) -> Iterator[pq.ParquetFile]:
        with self._lock:
            idle = self._idle[file]
            reader = idle.pop() if idle else None
        if reader is None:
            reader = pq.ParquetFile(self._paths[file], metadata=self._footers[file], pre_buffer=False)
        yield reader
        with self._lock:
            self._idle[file].append(reader)

    def close(self) -> None:
        """Close all handles."""
        with self._lock:
            readers = [reader for idle in self._idle.values() for reader in idle]
            self._idle.clear()
        for reader in readers:
            reader.close(force=True)
