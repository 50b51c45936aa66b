"""Our side of the group `loader`: epochs of `encpipe.torch.Loader`, and PyArrow decrypting into nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import pyarrow.parquet as pq

from benchmarks import datasets
from benchmarks.datasets import WORKERS
from benchmarks.peerscripts.touch import touch
from benchmarks.plainsource import PlainSource
from benchmarks.workloads import BINARIES, MIXED, NARROW, TOKENS, Workload
from encpipe.parquet.keyclients import UnwrappingClient
from encpipe.torch import Conversion, Loader

BATCH: Final[Mapping[str, int]] = {
    NARROW.name: 4096,
    TOKENS.name: 64,
    BINARIES.name: 64,
    MIXED.name: 4096,
}
"""Rows of a batch, ours and the peers'."""
ARROW: Final = Conversion(strings="arrow")

Epoch = Callable[[], int]


def count(batch: Mapping[str, Any]) -> int:
    """Its rows; no value is looked at."""
    return len(next(iter(batch.values())))


@contextmanager
def epochs(
    source: Path | PlainSource,
    workload: Workload,
    *,
    use: Callable[[Mapping[str, Any]], int] = count,
    threads: int = WORKERS,
    **options: Any,
) -> Iterator[Epoch]:
    """A function that goes through one epoch of one loader and returns the rows; nulls are 0."""
    opened: dict[str, Any] = {} if isinstance(source, PlainSource) else {"config": datasets.config()}
    batch_size = BATCH[workload.name]
    with Loader(source, batch_size, nulls=0, threads=threads, **opened, **options) as loader:
        yield lambda: sum(map(use, loader))
    if isinstance(source, PlainSource):
        source.close()


def ours(workload: Workload, *, plain: bool = False, **options: Any) -> Any:
    """`epochs` of a workload's encrypted or plaintext copy."""
    source = PlainSource(workload.ensure()) if plain else datasets.encrypted_workload(workload)
    return epochs(source, workload, **options)


def touched(workload: Workload, *, plain: bool = False, **options: Any) -> Any:
    """The same, with everything done to the batches that is done to the peers'."""
    return ours(workload, plain=plain, use=touch, **options)


class BareReader:
    """`read_row_group` on encrypted files by threads that have readers of their own, opened in each epoch as
    the loader's are; nothing is made of the tables."""

    def __init__(self, url: Path, threads: int = WORKERS) -> None:
        self._threads = threads
        self._dataset = datasets.open_encrypted(url)
        self._pool = ThreadPoolExecutor(threads)
        for _ in self._dataset.scan(threads=1):  # keys are unwrapped now
            break

    def __call__(self) -> int:
        """Read everything once. Returns the rows."""
        tasks: SimpleQueue[tuple[int, int]] = SimpleQueue()
        for file, entry in enumerate(self._dataset.files):
            for row_group in range(len(entry.row_groups)):
                tasks.put((file, row_group))
        return sum(self._pool.map(self._work, [tasks] * self._threads))

    def _work(self, tasks: SimpleQueue[tuple[int, int]]) -> int:
        rows = 0
        with ExitStack() as opened:
            readers: dict[int, pq.ParquetFile] = {}
            while True:
                try:
                    file, row_group = tasks.get_nowait()
                except Empty:
                    return rows
                if file not in readers:
                    readers[file] = self._open(file)
                    opened.callback(readers[file].close, force=True)
                rows += len(readers[file].read_row_group(row_group, use_threads=False))

    def _open(self, file: int) -> pq.ParquetFile:
        sealed = self._dataset._data.open(self._dataset.files[file])  # its checks are not wanted here
        client = UnwrappingClient(sealed.entry, sealed.layout, sealed.keys)
        return pq.ParquetFile(
            sealed.open_input(), decryption_properties=client.decryption_properties(), pre_buffer=False
        )

    def __enter__(self) -> BareReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._dataset.close()
