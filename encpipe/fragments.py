"""What PyArrow's dataset module does for us: pruning by partition values and statistics, and its datasets.

Imported on first use: `pyarrow.dataset` loads pandas where it is installed, which takes 0.3 s.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from encpipe.errors import IntegrityError
from encpipe.filelist import FileEntry
from encpipe.parquet import SealedFile, UnwrappingClient, translated
from encpipe.projection import filter_columns, filter_failure, partition_value


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
    """The files whose partition values do not rule the filter out. No file is opened.

    Raises `ConfigError` `filter` where the filter cannot be evaluated on these values.
    """
    form = ds.ParquetFileFormat()
    nowhere = fs.LocalFileSystem()
    fragments = [
        form.make_fragment(str(n), nowhere, partition_expression=partition_expression(entry, schema))
        for n, entry in enumerate(files)
    ]
    dataset = ds.FileSystemDataset(fragments, schema, form, nowhere)
    try:
        return tuple(files[int(fragment.path)] for fragment in dataset.get_fragments(filter=expression))
    except pa.ArrowException as error:
        raise filter_failure(error, filter_columns(expression, schema)) from None


def surviving(
    file: SealedFile, expression: pc.Expression, *, leaves: Sequence[str], schema: pa.Schema
) -> Sequence[int]:
    """The row groups of a file whose statistics do not rule the filter out; `leaves` are the filter's.

    The KEKs of these leaves must have been unwrapped before. Raises `IntegrityError`, `StorageError`.
    """
    handle = file.open(only_keys=True)
    try:
        handle.check_chunks(leaves)
        client = UnwrappingClient(file.entry, file.layout, file.keys, handle.client.leaves)
        client.learn_from(handle.client)
        with translated(file.entry, client):
            known = partition_expression(file.entry, schema)
            fragment = _format(client).make_fragment(handle.source, partition_expression=known)
            fragment.ensure_complete_metadata()
            found = _not_ruled_out(fragment, client, expression, schema)
    finally:
        handle.close()
    if not client.footer_asked:  # PyArrow read the footer anew, and takes a plaintext one
        raise IntegrityError(
            f"file {file.entry.path} was replaced while it was read",
            hint="restore the file from a copy you trust",
            code="file-foreign",
        )
    return found


def _not_ruled_out(
    fragment: Any, client: UnwrappingClient, expression: pc.Expression, schema: pa.Schema
) -> Sequence[int]:
    """All of them where PyArrow cannot tell: whether filter or file is at fault shows when they are read."""
    try:
        return [info.id for info in fragment.subset(expression, schema=schema).row_groups]
    except pa.ArrowException:
        if client.failure is not None:
            raise
        return range(fragment.num_row_groups)


def checked_fragment(
    file: SealedFile, system: fs.FileSystem, path: str, *, leaves: Sequence[str], schema: pa.Schema
) -> Any:
    """A fragment for a PyArrow dataset, after every column chunk's key was checked.

    PyArrow opens the file anew, at every scan. Where one DEK seals the file it can then be no other; in a
    file with column keys PyArrow would take plaintext in its place. The KEKs of all leaves must have been
    unwrapped before.
    """
    known = partition_expression(file.entry, schema)
    handle = file.open(only_keys=True)
    try:
        handle.check_chunks(leaves)
        if file.layout.is_uniform:
            options = ds.ParquetFragmentScanOptions(decryption_properties=handle.client.uniform_properties())
            form = ds.ParquetFileFormat(default_fragment_scan_options=options)
            return form.make_fragment(path, system, partition_expression=known)
        client = _FragmentClient(file.entry, file.layout, file.keys, handle.client.leaves)
        # with `max_key_age` a KEK may be refused later, and a refusal in there would abort the process
        client.learn_from(handle.client)
        _read_ahead.serve(remote=file.pre_buffer)
    finally:
        handle.close()
    return _format(client).make_fragment(path, system, partition_expression=known)


def pyarrow_dataset(fragments: Sequence[Any], schema: pa.Schema, system: fs.FileSystem) -> ds.Dataset:
    """A PyArrow dataset of fragments that each have their own keys."""
    return ds.FileSystemDataset(fragments, schema, ds.ParquetFileFormat(), system)


def _format(client: UnwrappingClient) -> ds.ParquetFileFormat:
    options = ds.ParquetFragmentScanOptions(decryption_properties=client.decryption_properties())
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


QUIET_SECONDS: Final = 0.2
REMOTE_QUIET_SECONDS: Final = 2.0
"""For so long Arrow asks for no key before its threads count as idle; a request to S3 may take a while."""
MAX_WAIT_SECONDS: Final = 10.0


@dataclass
class _ReadAhead:
    """What Arrow's own threads do behind a PyArrow dataset: they read on after a scan was broken off.

    Python ends a thread that calls in while the interpreter shuts down, and Arrow then waits for that thread
    for ever (measured: every time). So the end of the program waits until no more keys are asked for; to
    refuse them instead would abort the process.
    """

    quiet: float = 0.0
    last_call: float = 0.0

    def serve(self, *, remote: bool) -> None:
        if not self.quiet:
            atexit.register(self.end)
        self.quiet = max(self.quiet, REMOTE_QUIET_SECONDS if remote else QUIET_SECONDS)

    def end(self) -> None:
        if not self.last_call:
            return
        now = self.last_call = time.monotonic()
        give_up = now + MAX_WAIT_SECONDS
        while now < min(give_up, self.last_call + self.quiet):
            time.sleep(QUIET_SECONDS / 20)
            now = time.monotonic()


_read_ahead = _ReadAhead()


class _FragmentClient(UnwrappingClient):
    """The key client of a fragment, called by threads that nobody waits for."""

    def unwrap_key(self, wrapped: str, key_id: str) -> bytes:
        _read_ahead.last_call = time.monotonic()
        return super().unwrap_key(wrapped, key_id)
