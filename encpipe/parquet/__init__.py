"""Parquet Modular Encryption through PyArrow.

Guarantees, by construction:

- every file has fresh DEKs, its own factory and properties; every leaf column and the footer are sealed with
  AES-256-GCM; the footer is never in clear;
- a file opens only as the one its `FileEntry` commits to: size, footer DEK, column DEKs, row counts;
- before rows leave this package, the committed DEK of every projected leaf was asked for in that very read:
  else a column that someone rewrote in plaintext, or under another key, would pass unnoticed. Where all
  columns fall under the footer key one DEK seals the file, and it is the footer's that was asked for;
- no PyArrow error leaves: each becomes an `IntegrityError` or `StorageError` that names the file.

PyArrow aborts the process when it meets metadata of a column whose key is refused. So whoever calls here has
unwrapped the KEK of every column concerned before (`DatasetKeys.kek`).
"""

from __future__ import annotations

from encpipe.parquet.keyclients import UnwrappingClient
from encpipe.parquet.reading import Handle, SealedFile, translated
from encpipe.parquet.schema import Layout, SchemaOnDisk, count_leaves
from encpipe.parquet.writing import Sealed, SealedWriter

__all__ = [
    "Handle",
    "Layout",
    "SchemaOnDisk",
    "Sealed",
    "SealedFile",
    "SealedWriter",
    "UnwrappingClient",
    "count_leaves",
    "translated",
]
