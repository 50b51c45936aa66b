"""MosaicML Streaming: MDS shards, read by StreamingDataset under a stock DataLoader."""

from __future__ import annotations

import pyarrow as pa
from packing import collated, packed_rows, packs
from serving import Batches, Job, serve
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

_ENCODINGS = {"int64": "int", "double": "float64", "string": "str", "binary": "bytes"}


def _vectors(schema: pa.Schema) -> dict[str, list[str]]:
    """What is kept as bytes: its own encoding of arrays takes several times as long."""
    return {"tokens": ["tokens"]} if "tokens" in schema.names else packs(schema)


def convert(job: Job) -> None:
    tables = list(job.tables())
    schema = tables[0].schema
    vectors = _vectors(schema)
    taken = {name for names in vectors.values() for name in names}
    others = {f.name: _ENCODINGS[str(f.type)] for f in schema if f.name not in taken}
    with MDSWriter(out=str(job.target), columns=dict.fromkeys(vectors, "bytes") | others) as writer:
        for table in tables:
            for batch in table.combine_chunks().to_batches(max_chunksize=1024):
                for row in packed_rows(batch):
                    writer.write(row | {name: row[name].tobytes() for name in vectors})


def load(job: Job, workers: int) -> Batches:
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(job.target), batch_size=job.batch_size, shuffle=False)
    loader = DataLoader(
        dataset,
        batch_size=job.batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collated,
    )
    return lambda: loader


if __name__ == "__main__":
    serve(convert, load)
