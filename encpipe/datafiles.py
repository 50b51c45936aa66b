"""The data files of an open dataset: each opened with its own keys, in the shape that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from encpipe.errors import EncpipeError
from encpipe.filelist import FileEntry
from encpipe.handover import OpenDataset
from encpipe.layouts import Layouts
from encpipe.parquet import SealedFile
from encpipe.projection import Columns, OnMissingKey, columns_of
from encpipe.rowgroups import MAX_OPEN_FILES, Plan
from encpipe.selection import Selection, is_whole
from encpipe.state import MANIFEST_PATH, State
from encpipe.wholefiles import WholeFiles, open_at_once

if TYPE_CHECKING:
    import pyarrow.dataset as ds


class _Shape(NamedTuple):
    """What all files of the generation share."""

    columns: Columns
    layouts: Layouts


def _shape_of(state: State) -> _Shape:
    return _Shape(columns_of(state.files, state.view.core.key_names), state.layouts)


class DataFiles:
    """The files of one generation. Safe to use from several threads, and in a forked child.

    With `whole` each is read into memory as a whole, and used only if its SHA-256 is the committed one. No
    I/O and no call to a key service before the first use, where the dataset was not loaded yet.
    """

    def __init__(self, opened: OpenDataset, *, whole: bool) -> None:
        self._open = opened
        self.whole = WholeFiles() if whole else None
        self._made = _shape_of(opened.state) if opened.loaded else None

    @property
    def _shape(self) -> _Shape:
        if self._made is None:  # twice does no harm, and a lock might stay locked in a forked child
            self._made = _shape_of(self._open.state)
        return self._made

    @property
    def columns(self) -> Columns:
        """The columns that every file has, and those that are partition columns."""
        return self._shape.columns

    def unwrap(self, leaves: Sequence[str]) -> None:
        """Get hold of the KEKs that reading these leaves takes. Raises what `DatasetKeys.kek` raises."""
        state = self._open.state
        for name in sorted(self.columns.key_names(leaves)):
            state.keys.kek(state.view.core.active(name).id)

    def plan(self, chosen: Selection, files: Sequence[FileEntry], *, threads: int | None) -> Plan:
        """How to read what was chosen of these files. The KEKs it takes must have been unwrapped."""
        return Plan(
            files=tuple(files),
            open_file=self.open,
            read=chosen.read,
            out=chosen.out.schema,
            full_schema=self.columns.schema,
            filter=chosen.filter,
            filter_leaves=chosen.filter_leaves,
            threads=threads or pa.cpu_count(),
            open_files=self._at_once(files),
        )

    def _at_once(self, files: Sequence[FileEntry]) -> int:
        if self.whole is None:
            return MAX_OPEN_FILES
        return open_at_once(max((entry.size for entry in files), default=0), MAX_OPEN_FILES)

    def open(self, entry: FileEntry) -> SealedFile:
        """One file, which is read when it is opened."""

        def stored() -> pa.NativeFile:
            return self._open.open_input(entry.path)

        whole = self.whole
        return SealedFile(
            entry,
            self._shape.layouts.of(entry),
            self._open.state.keys,
            stored if whole is None else lambda: whole.open(entry, stored),
            self.columns.parquet_schema,
            pre_buffer=self._open.storage.remote and whole is None,
        )

    def as_pyarrow(
        self, names: Sequence[str] | None, *, missing: Mapping[str, OnMissingKey], unchecked: bool
    ) -> ds.Dataset:
        """A PyArrow dataset over the files. Raises as `Dataset.to_pyarrow` says; `unchecked` allows one in
        which PyArrow does not notice another file."""
        if not (unchecked or (self._shape.layouts.shared.is_uniform and self.whole is None)):
            raise EncpipeError(
                "PyArrow would not notice another file, even a plaintext file, in the place of a checked one",
                hint="use scan() or the dataset itself as an Arrow stream; where nobody else can write the "
                "storage, to_pyarrow(trust_storage_after_the_check=True)",
                code="unsupported",
            )
        projection = self.columns.project(names, missing=missing)
        self.unwrap(projection.leaves)
        kept = [name for name in projection.schema.names if is_whole(self.columns, name, projection)]
        schema = pa.schema([projection.schema.field(name) for name in kept], projection.schema.metadata)
        from encpipe import fragments

        storage = self._open.storage
        made = [
            fragments.checked_fragment(
                self.open(entry),
                *storage.arrow_path(entry.path),
                leaves=projection.leaves,
                schema=self.columns.schema,
            )
            for entry in self._open.state.files.files
        ]
        return fragments.pyarrow_dataset(made, schema, storage.arrow_path(MANIFEST_PATH)[0])
