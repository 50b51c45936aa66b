"""LitData: chunks made by `optimize`, read by its StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming.item_loader import TokensLoader
from litdata.utilities.encryption import FernetEncryption
from packing import collated, packed_rows
from serving import Batches, Job, serve

_CHUNK_BYTES = "64MB"
"""As its documentation recommends."""
_WORKERS = 2
_PASSWORD = "as good as any"
_SALT = "fernet.json"


def _rows(bounds: tuple[int, int], *, path: str, alone: bool) -> Iterator[Any]:
    """The samples of a part of the Arrow file, as `optimize` wants them from its worker processes."""
    with pa.memory_map(path) as file:
        table = pa.ipc.open_file(file).read_all().slice(bounds[0], bounds[1] - bounds[0])
    for batch in table.to_batches(max_chunksize=4096):
        for row in packed_rows(batch):
            vectors = {name: torch.tensor(v) if isinstance(v, np.ndarray) else v for name, v in row.items()}
            yield vectors["tokens"] if alone else vectors


def _encryption(job: Job) -> FernetEncryption | None:
    """The key that the data was written under: made now, or as its saved salt says."""
    level = job.options.get("fernet")
    if level is None:
        return None
    salt = job.target / _SALT
    if salt.exists():
        return FernetEncryption.load(str(salt), _PASSWORD)
    made = FernetEncryption(password=_PASSWORD, level=level)
    made.save(str(salt))
    return made


def _item_loader(job: Job) -> TokensLoader | None:
    """Its loader for tokens gives ciphertext for what is encrypted, so that takes the common one."""
    fits = job.workload == "tokens" and "fernet" not in job.options
    return TokensLoader(block_size=2048) if fits else None


def convert(job: Job) -> None:
    table = pa.concat_tables(job.tables())
    job.target.mkdir(parents=True)
    path = job.target.with_suffix(".arrow")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4096)
    half = len(table) // 2
    del table
    optimize(
        functools.partial(_rows, path=str(path), alone=_item_loader(job) is not None),
        inputs=[(0, half), (half, job.rows)],
        output_dir=str(job.target),
        chunk_bytes=_CHUNK_BYTES,
        num_workers=_WORKERS,
        encryption=_encryption(job),
        item_loader=_item_loader(job),
        verbose=False,
    )
    path.unlink()


def load(job: Job, workers: int) -> Batches:
    dataset = StreamingDataset(
        str(job.target), item_loader=_item_loader(job), encryption=_encryption(job), shuffle=False
    )
    loader = StreamingDataLoader(
        dataset,
        batch_size=job.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collated,
    )
    return lambda: loader


if __name__ == "__main__":
    serve(convert, load)
