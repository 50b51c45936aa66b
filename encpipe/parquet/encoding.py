"""Which columns to dictionary-encode and to compress: those where it makes the file smaller.

PyArrow's default tries every column and falls back only after the dictionary has grown past its limit, so
that random numbers and ids get a useless dictionary in front: larger, and slower to write and to read. And
it compresses what does not shrink, which every reader then pays for.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from encpipe.parquet.schema import count_leaves

SAMPLE_VALUES: Final = 16_384
DICTIONARY_LIMIT_BYTES: Final = 1 << 20
"""PyArrow's limit on a dictionary page; beyond it falls back to plain values."""
_VARIABLE_WIDTH: Final = (
    pa.types.is_string,
    pa.types.is_binary,
    pa.types.is_large_string,
    pa.types.is_large_binary,
)
_WORTH_IT: Final = 0.9
"""A dictionary is used when it is expected to take less than this share of the plain size."""
_TRIED_ROWS: Final = 2_048
_TRIED_BYTES: Final = 4 << 20
_WORTH_A_CODEC: Final = 0.95
"""A column is compressed when that takes less than this share of what it takes as it is."""


def dictionary_leaves(table: pa.Table, leaves: tuple[str, ...]) -> list[str]:
    """Of the table's leaf paths, those worth a dictionary, judged by a sample of its first values.

    Leaves inside structs and maps are left to PyArrow (a dictionary is tried).
    """
    plain = set()
    rest = iter(leaves)  # in the order of the columns
    for column in table.columns:
        mine = list(islice(rest, count_leaves(column.type)))
        if len(mine) == 1 and not _worth_a_dictionary(column, len(table)):
            plain.add(mine[0])
    return [leaf for leaf in leaves if leaf not in plain]


def _worth_a_dictionary(column: pa.ChunkedArray, rows: int) -> bool:
    import pyarrow.compute as pc  # 50 ms, and only writers need it

    sample = column.chunk(0).slice(0, SAMPLE_VALUES)
    values = _leaf_values(sample)
    if values is None or not len(values):
        return True
    total = len(values) * rows / len(sample)
    values = values.slice(0, SAMPLE_VALUES).drop_null()
    if not len(values):
        return True
    width = max(1.0, values.nbytes / len(values))
    return expected_share(pc.count_distinct(values).as_py(), len(values), width, total) < _WORTH_IT


def _leaf_values(sample: pa.Array) -> pa.Array | None:
    """The values of a leaf under any number of lists; None where this is not ours to judge."""
    kind = sample.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        sample, kind = sample.flatten(), kind.value_type
    ours = (
        pa.types.is_primitive(kind)
        or pa.types.is_fixed_size_binary(kind)
        or any(test(kind) for test in _VARIABLE_WIDTH)
    )
    return sample if ours else None


def expected_share(distinct: int, sampled: int, width: float, total: float) -> float:
    """Size of a dictionary-encoded row group relative to a plain one.

    `distinct` of `sampled` values differ, each `width` bytes on average; the row group holds `total`. How
    many values there are is taken to be the number that would show `distinct` in a random sample.
    """
    if distinct >= sampled:
        return math.inf
    low, high = float(distinct), 1e12
    for _ in range(60):
        middle = math.sqrt(low * high)
        if middle * -math.expm1(-sampled / middle) < distinct:
            low = middle
        else:
            high = middle
    entries = high * -math.expm1(-total / high)
    if entries * width > DICTIONARY_LIMIT_BYTES:
        return math.inf
    index_bytes = max(1, math.ceil(math.log2(entries + 1))) / 8
    return (entries * width + total * index_bytes) / (total * width)


def codecs(
    table: pa.Table, leaves: tuple[str, ...], compression: str, dictionary: list[str]
) -> dict[str, str]:
    """Leaf path -> codec: `compression`, or none where a sample of the table's rows hardly shrinks.

    The sample, of its first, middle and last rows, is written as Parquet to memory, with the same
    dictionaries.
    """
    if compression.lower() == "none" or not len(table):
        return dict.fromkeys(leaves, compression)
    sink = pa.BufferOutputStream()
    pq.write_table(_sample(table), sink, compression=compression, use_dictionary=dictionary)
    tried = pq.read_metadata(pa.BufferReader(sink.getvalue())).row_group(0)
    sizes = [
        (tried.column(n).total_compressed_size, tried.column(n).total_uncompressed_size)
        for n in range(tried.num_columns)
    ]
    return {
        leaf: compression if small < _WORTH_A_CODEC * large else "none"
        for leaf, (small, large) in zip(leaves, sizes, strict=True)
    }


def _sample(table: pa.Table) -> pa.Table:
    rows = max(1, min(_TRIED_ROWS, len(table) * _TRIED_BYTES // max(1, table.nbytes)) // 3)
    if 3 * rows >= len(table):
        return table
    starts = (0, (len(table) - rows) // 2, len(table) - rows)
    return pa.concat_tables([table.slice(start, rows) for start in starts])
