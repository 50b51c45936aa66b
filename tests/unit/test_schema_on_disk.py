"""Which Arrow schemas a dataset takes: those that come back from Parquet."""

from __future__ import annotations

import pyarrow as pa
import pytest

from encpipe.errors import EncpipeError
from encpipe.parquet import SchemaOnDisk

EMPTY = pa.list_(pa.int64(), 0)
UNREADABLE = {
    "at the top": EMPTY,
    "in a list": pa.list_(EMPTY),
    "in a struct": pa.struct([("a", pa.int64()), ("b", pa.struct([("c", EMPTY)]))]),
    "in a map": pa.map_(pa.string(), EMPTY),
    "in a list of a fixed size": pa.list_(EMPTY, 2),
    "in an extension type": pa.fixed_shape_tensor(pa.int64(), (0, 3)),
}


@pytest.mark.parametrize("kind", UNREADABLE.values(), ids=UNREADABLE)
def test_lists_of_the_fixed_size_0_are_refused(kind: pa.DataType) -> None:
    """PyArrow would write them, and the dataset could not be read."""
    with pytest.raises(EncpipeError, match="column 'x'") as refused:
        SchemaOnDisk(pa.schema([("id", pa.int64()), ("x", kind)]))
    assert refused.value.code == "unsupported"
    assert refused.value.hint


def test_lists_of_any_other_size_are_taken() -> None:
    schema = pa.schema([("x", pa.list_(pa.int64(), 1)), ("y", pa.list_(pa.int64()))])
    assert len(SchemaOnDisk(schema).leaves) == 2
