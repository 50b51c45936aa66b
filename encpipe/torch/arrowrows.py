"""Rows of Arrow arrays, moved: what `pyarrow` does slower or not at all. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encpipe.torch.buffers import Order

_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
_OFFSET_LIMIT = 2**31 - 1
"""Bytes that the 32-bit offsets of one string array reach."""


def concat(arrays: Sequence[pa.Array]) -> pa.Array:
    """One array of all; as large_string or large_binary where the 32-bit offsets would not reach."""
    kind = arrays[0].type
    if any(array.type != kind for array in arrays):  # some were too large for 32-bit offsets before
        arrays = [array.cast(_LARGE.get(array.type, array.type)) for array in arrays]
    elif kind in _LARGE and sum(array.nbytes for array in arrays) > _OFFSET_LIMIT:
        arrays = [array.cast(_LARGE[kind]) for array in arrays]
    return pa.concat_arrays(arrays)


def whole(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, not copied where it is one chunk."""
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks == 0:
        return pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return concat(column.chunks)


def take(array: pa.Array, order: Order) -> pa.Array:
    """The rows in that order. Row numbers are not checked."""
    if array.type in _LARGE and array.nbytes > _OFFSET_LIMIT:
        array = array.cast(_LARGE[array.type])
    if pa.types.is_large_list(array.type) and not array.null_count and not array.values.null_count:
        return _take_lists(array, order)
    return pc.take(array, pa.array(order), boundscheck=False)


def _take_lists(array: pa.Array, order: Order) -> pa.Array:
    """Lists of a primitive type as opaque bytes: Arrow copies a list in one piece then, not by elements."""
    kind = array.type.value_type
    width = kind.bit_width // 8
    offsets = lists_offsets(array) * width
    _, data = array.values.buffers()
    start = array.values.offset * width
    blobs = pa.Array.from_buffers(
        pa.large_binary(), len(array), [None, pa.py_buffer(offsets + start), data or pa.py_buffer(b"")]
    )
    taken = pc.take(blobs, pa.array(order), boundscheck=False)
    _, ends, data = taken.buffers()
    found = np.frombuffer(ends, np.int64)[taken.offset : taken.offset + len(taken) + 1]
    values = pa.Array.from_buffers(kind, int(found[-1]) // width, [None, data])
    return pa.LargeListArray.from_arrays(pa.array(found // width), values)


def lists_offsets(array: pa.Array) -> npt.NDArray[np.int64]:
    """Where each list of a large_list array begins in `array.values`, and where the last one ends."""
    found: npt.NDArray[np.int64] = array.offsets.to_numpy()
    return found


def large_lists(array: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Offsets from 0, one more than rows, and the elements between them. A null list is an empty one."""
    if array.null_count or pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy()
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        return offsets, array.flatten()  # which leaves out what lies under a null
    offsets = array.offsets.to_numpy().astype(np.int64)
    elements = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return offsets - offsets[0], elements
