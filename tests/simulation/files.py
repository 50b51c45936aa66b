"""Parquet files for a simulated dataset: sealed as encpipe does, or as an attacker would.

A forged file carries the entry that an honest writer would have committed to, as far as the forger could
keep it: an attacker with his own Parquet writer reuses the committed DEKs that he can unwrap. PyArrow draws
all DEKs itself, so it goes the other way round here: the entry commits to the DEKs of the forged file
wherever the forger held them, and to ones that stand nowhere else. A reader cannot tell the two apart.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

from encpipe import aead
from encpipe.aead import Label
from encpipe.deks import dek_commitment, wrap_dek
from encpipe.keys import Secret

COMMITMENTS = "encpipe.dek_commitments"
Wrap = Callable[[str, bytes], str]
"""(key id, DEK) -> wrapped DEK."""


@dataclass(frozen=True)
class SimFile:
    """A file's bytes and what the file list says of it, without path and partition values."""

    data: bytes
    entry: dict[str, Any]


class _Client(pe.KmsClient):
    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self._wrap = wrap
        self.deks: list[bytes] = []

    def wrap_key(self, dek: bytes, key_id: str) -> str:
        self.deks.append(dek)
        return self._wrap(key_id, dek)

    def unwrap_key(self, wrapped: str, key_id: str) -> bytes:
        raise NotImplementedError


def wrapper(file_id: str, keks: Mapping[str, Secret]) -> Wrap:
    """Wraps as the format says. `keks`: key id -> KEK."""
    return lambda key_id, dek: wrap_dek(keks[key_id], dek, file_id=file_id, key_id=key_id)


def seal_file(
    tables: Sequence[pa.Table], *, file_id: str, columns: Mapping[str, str], footer: str, wrap: Wrap
) -> SimFile:
    """A file as encpipe writes it, a row group for each table. `columns`: leaf path -> key id, in order."""
    return forge_file(tables, file_id=file_id, sealed=columns, committed=columns, footer=footer, wrap=wrap)


def forge_file(
    tables: Sequence[pa.Table],
    *,
    file_id: str,
    sealed: Mapping[str, str],
    committed: Mapping[str, str],
    footer: str,
    wrap: Wrap,
    uniform: bool = False,
    row_groups: Sequence[int] | None = None,
) -> SimFile:
    """A file whose leaves `sealed` (leaf -> key id) have their own DEK and all others are in clear, within an
    encrypted footer; with `uniform` all leaves are under the footer's DEK.

    The entry and the footer's vector speak of `committed`: a leaf sealed under the same key id has the DEK
    that stands in the file, any other one that nobody has. `row_groups` are those that the entry claims.
    """
    client = _Client(wrap)
    groups: dict[str, list[str]] = {}
    for leaf, key_id in sealed.items():
        groups.setdefault(key_id, []).append(leaf)
    options: dict[str, Any] = {"uniform_encryption": True} if uniform else {"column_keys": groups}
    config = pe.EncryptionConfiguration(
        footer_key=footer,
        encryption_algorithm="AES_GCM_V1",
        plaintext_footer=False,
        double_wrapping=False,
        data_key_length_bits=256,
        **options,
    )
    factory = pe.CryptoFactory(lambda _: client)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    footer_dek, *deks = client.deks
    leaves = [] if uniform else [leaf for group in groups.values() for leaf in group]
    own = dict(zip(leaves, deks, strict=True))
    vector = _vector(file_id, sealed, committed, own)
    return SimFile(
        *_write(tables, properties, vector, file_id, footer_dek, row_groups or [len(t) for t in tables])
    )


def _vector(
    file_id: str, sealed: Mapping[str, str], committed: Mapping[str, str], own: Mapping[str, bytes]
) -> bytes:
    commitments = {
        leaf: dek_commitment(file_id, own[leaf]).hex()
        if leaf in own and sealed[leaf] == key_id
        else aead.digest(Label.DEK_COMMITMENT, b"of a DEK that is in no file", leaf.encode()).hex()
        for leaf, key_id in committed.items()
    }
    return json.dumps(commitments, sort_keys=True, separators=(",", ":")).encode()


def _write(
    tables: Sequence[pa.Table],
    properties: Any,
    vector: bytes,
    file_id: str,
    footer_dek: bytes,
    row_groups: Sequence[int],
) -> tuple[bytes, dict[str, Any]]:
    sink = io.BytesIO()
    writer = pq.ParquetWriter(
        sink,
        tables[0].schema,
        encryption_properties=properties,
        compression="none",
        data_page_version="1.0",
        store_schema=True,
    )
    for table in tables:
        if len(table):
            writer.write_table(table)
    writer.add_key_value_metadata({COMMITMENTS: vector.decode()})
    writer.close()
    data = sink.getvalue()
    return data, {
        "id": file_id,
        "bytes": len(data),
        "rows": sum(row_groups),
        "row_groups": [n for n in row_groups if n],
        "sha256": hashlib.sha256(data).hexdigest(),
        "footer_dek": dek_commitment(file_id, footer_dek).hex(),
        "column_deks": aead.digest(Label.DEK_VECTOR, vector).hex(),
    }


def plaintext_file(table: pa.Table, *, size: int | None = None) -> bytes:
    """A plaintext Parquet file, padded to `size` bytes if given."""

    def made(padding: int) -> bytes:
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, table.schema, compression="none", store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"p": "x" * padding})
        return sink.getvalue()

    if size is None:
        return made(0)
    padding = size - len(made(0))
    for guess in range(max(0, padding - 8), padding + 8):
        if len(data := made(guess)) == size:
            return data
    raise AssertionError("no padding gives this size")
