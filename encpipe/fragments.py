"""What PyArrow's dataset module does for us: pruning by partition values and statistics, and its datasets.

Imported on first use: `pyarrow.dataset` loads pandas where it is installed, which takes 0.3 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from encpipe.filelist import FileEntry
from encpipe.parquet import SealedFile, UnwrappingClient, translated
from encpipe.projection import partition_value


def partition_expression(entry: FileEntry, schema: pa.Schema) -> pc.Expression:
    """What is true of every row of a file."""
    expression = pc.scalar(True)
    for name, text in entry.partition.items():
        value = partition_value(text, schema.field(name).type)
        condition = pc.field(name).is_null() if text is None else pc.field(name) == value
        expression = expression & condition
    return expression


def prune_by_partition(
    files: Sequence[FileEntry], schema: pa.Schema, expression: pc.Expression
) -> tuple[FileEntry, ...]:
    """The files whose partition values do not rule the filter out. No file is opened."""
    form = ds.ParquetFileFormat()
    nowhere = fs.LocalFileSystem()
    fragments = [
        form.make_fragment(str(n), nowhere, partition_expression=partition_expression(entry, schema))
        for n, entry in enumerate(files)
    ]
    dataset = ds.FileSystemDataset(fragments, schema, form, nowhere)
    return tuple(files[int(fragment.path)] for fragment in dataset.get_fragments(filter=expression))


def surviving(
    file: SealedFile, expression: pc.Expression, *, leaves: Sequence[str], schema: pa.Schema
) -> Sequence[int]:
    """The row groups of a file whose statistics do not rule the filter out; `leaves` are the filter's.

    The KEKs of these leaves must have been unwrapped before. Raises `IntegrityError`, `StorageError`.
    """
    handle = file.open(only_keys=True)
    try:
        handle.check_chunks(leaves)
        with translated(file.entry, handle.client):
            known = partition_expression(file.entry, schema)
            fragment = _format(handle.client).make_fragment(handle.source, partition_expression=known)
            subset = fragment.subset(expression, schema=schema)
            return [info.id for info in subset.row_groups]
    finally:
        handle.close()


def checked_fragment(
    file: SealedFile, system: fs.FileSystem, path: str, *, leaves: Sequence[str], schema: pa.Schema
) -> Any:
    """A fragment for a PyArrow dataset, after every column chunk's key was checked.

    The KEKs of all leaves must have been unwrapped before.
    """
    handle = file.open(only_keys=True)
    try:
        handle.check_chunks(leaves)
        client = UnwrappingClient(file.entry, file.layout, file.keys, handle.client.leaves)
    finally:
        handle.close()
    known = partition_expression(file.entry, schema)
    return _format(client).make_fragment(path, system, partition_expression=known)


def pyarrow_dataset(fragments: Sequence[Any], schema: pa.Schema, system: fs.FileSystem) -> ds.Dataset:
    """A PyArrow dataset of fragments that each have their own keys."""
    return ds.FileSystemDataset(fragments, schema, ds.ParquetFileFormat(), system)


def _format(client: UnwrappingClient) -> ds.ParquetFileFormat:
    options = ds.ParquetFragmentScanOptions(decryption_properties=client.decryption_properties())
    return ds.ParquetFileFormat(default_fragment_scan_options=options)
