"""Hugging Face datasets: an Arrow file in memory maps, read a batch at a time as torch tensors.

`Dataset.iter` without workers; with workers an IterableDataset that makes batches itself, so that the
DataLoader does not go row by row.
"""

from __future__ import annotations

import datasets
import pyarrow as pa
import torch
from packing import packed_table
from serving import Batches, Job, serve
from torch.utils.data import DataLoader

_SHARDS_PER_WORKER = 2


def convert(job: Job) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset(pa.concat_tables(map(packed_table, job.tables()))).save_to_disk(str(job.target))


def load(job: Job, workers: int) -> Batches:
    stored = datasets.load_from_disk(str(job.target))
    kinds = {"tokens": {"dtype": torch.int32}}.get(job.workload, {})
    if workers == 0:
        formatted = stored.with_format("torch", **kinds)
        return lambda: formatted.iter(job.batch_size)
    shards = stored.to_iterable_dataset(num_shards=_SHARDS_PER_WORKER * workers)
    batched = shards.with_format("torch").batch(job.batch_size)
    loader = DataLoader(batched, batch_size=None, num_workers=workers, persistent_workers=True)
    return lambda: loader


if __name__ == "__main__":
    serve(convert, load)
