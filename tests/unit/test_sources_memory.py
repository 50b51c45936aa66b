"""A row group much larger than the bound is streamed: peak memory, measured in a child process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CHILD = """
import sys
import pyarrow.parquet as pq
import encpipe.sources.parquet
from encpipe.sources import open_source

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

base = peak()
rows = 0
with open_source(sys.argv[1], row_group_bytes=16 << 20).files[0].open(threads=True) as reader:
    with pq.ParquetWriter("/dev/null", reader.schema) as writer:
        for table in reader.tables():
            writer.write_table(table)
            rows += table.num_rows
            del table
print(rows, (peak() - base) >> 10)
"""
COLUMNS = 33
ROWS = 1_200_000


@pytest.mark.parametrize("row_group", [ROWS, ROWS // 4])
def test_large_row_groups_are_read_in_bounded_memory(tmp_path: Path, row_group: int) -> None:
    random = np.random.default_rng(0)
    column = random.integers(0, 1 << 60, ROWS)
    table = pa.table({f"c{i}": column for i in range(COLUMNS)})
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=row_group, use_dictionary=False)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "f.parquet")], capture_output=True, text=True, check=True
    )
    rows, peak_mb = map(int, done.stdout.split())
    assert rows == ROWS
    assert peak_mb < 180, "302 MiB of values in row groups of 16 MiB"
