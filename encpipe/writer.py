"""Writing: a new dataset, or more files into one that is there.

Order of writes (docs/format.md, "Commit protocol"): journal, data files with a record each, file list,
manifest, journal removed. A stop at any point leaves the old generation as it was; the same call goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from encpipe import strictjson
from encpipe.access import Access, AnyPath, open_access, overlap
from encpipe.commit import Contents
from encpipe.config import Config
from encpipe.errors import ConfigError, EncpipeError
from encpipe.kms.registry import MasterKeys
from encpipe.parquet import SchemaOnDisk
from encpipe.parquet.schema import same_columns
from encpipe.policy import Policy
from encpipe.sealing import ProgressCallback
from encpipe.signing import writer_signing
from encpipe.sources import Source, open_source
from encpipe.sources.locate import WILD, base_of
from encpipe.state import State, load_state
from encpipe.writereport import WriteReport
from encpipe.writesession import WriteSession

__all__ = ["WriteReport", "append_dataset", "write_dataset"]

ROW_GROUP_BYTES: Final = 128 << 20
"""Row groups of the source are kept up to this uncompressed size; larger ones are split."""


def write_dataset(
    source: object,
    url: AnyPath,
    *,
    policy: Policy | None = None,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    source_format: str | None = None,
    workers: int | None = None,
    compression: str = "snappy",
    overwrite: bool = False,
    drop_column_keys: bool = False,
    restart: bool = False,
    progress: ProgressCallback | None = None,
) -> WriteReport:
    """Encrypt `source` into a new dataset at `url`.

    `source` is a path, folder, glob or URL of Parquet, CSV, JSON lines or Arrow IPC files, or any object with
    `__arrow_c_stream__` (PyArrow, pandas, Polars, DuckDB). Each source file becomes one encrypted file, row
    order and row groups kept. `policy` (default: the configuration's) is checked against the schema before
    anything is written. `source_options` are fsspec's storage options of the source.

    A write that was stopped is resumed by the same call; with another source or setting it is refused unless
    `restart` throws the first one's work away. `workers` files are sealed at once (default: one a core).

    With `overwrite` an existing dataset gets a new generation, and the old one stays readable until `gc`. A
    KEK stays in use where it is wrapped by just the master keys that the configuration names now (an alias
    counts as another key than the one it stands for); else a new KEK takes its place. The report's
    `master_keys` tells under which keys the new generation is. A column that falls under a column key and
    would fall under the footer key, or become a partition column, is refused (`PolicyError` `policy-weaker`)
    unless `drop_column_keys` allows it.

    With a signing key in the configuration the new generation is signed; what is there already must then
    be signed, too (`SignatureError`).

    Raises `ConfigError` (`exists`, policy, key and source errors), `KmsError`, `IntegrityError`,
    `StorageError` (`ConflictError` when another writer was first). After an error the old state is unchanged.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    with contextlib.closing(access.storage):
        signing = writer_signing(access.master_keys)
        found = _opened(source, access, source_format, source_options)
        session = WriteSession(
            "overwrite" if overwrite else "write",
            access,
            found,
            _new_contents(found, policy or access.config.policy),
            _digest(found, compression),
            workers=workers or os.cpu_count() or 1,
            compression=compression,
            restart=restart,
            progress=progress,
            drop_column_keys=drop_column_keys,
            signing=signing,
        )
        return session.run()


def append_dataset(
    source: object,
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    source_format: str | None = None,
    workers: int | None = None,
    compression: str = "snappy",
    restart: bool = False,
    progress: ProgressCallback | None = None,
) -> WriteReport:
    """Encrypt `source` into the existing dataset at `url`, as a new generation on top of the present one.

    The dataset's own policy and keys apply; columns and types must be those of the dataset (any order, and
    nulls only where the dataset may have them). Needs
    every key name of the dataset. When another writer appends at the same time, both succeed. Everything
    else is as in `write_dataset`.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    with contextlib.closing(access.storage):
        signing = writer_signing(access.master_keys)
        base = load_state(access.storage, access.master_keys, signers=signing.signers)
        found = _opened(source, access, source_format, source_options)
        session = WriteSession(
            "append",
            access,
            found,
            _base_contents(found, base),
            _digest(found, compression),
            workers=workers or os.cpu_count() or 1,
            compression=compression,
            restart=restart,
            progress=progress,
            signing=signing,
        )
        return session.run()


def _opened(source: object, access: Access, form: str | None, options: Mapping[str, Any] | None) -> Source:
    """The source, which is neither within the dataset nor around it."""
    _check_apart(source, access.storage.url)
    return open_source(
        source,
        format=form,
        storage_options=options,
        row_group_bytes=ROW_GROUP_BYTES,
        config=access.config,
    )


def _check_apart(source: object, url: str) -> None:
    """Refuse a source within the dataset, and a dataset within the source: a resumed write would read it."""
    if not isinstance(source, str | os.PathLike):
        return
    folder = os.fspath(source).rpartition("/")[0]
    if overlap(base_of(folder + "/") if WILD.search(folder) else source, url):
        raise ConfigError(
            f"the source {os.fspath(source)!r} and the dataset {url!r} are one place, or one holds the other",
            hint="give the dataset a folder of its own",
        )


def _new_contents(source: Source, policy: Policy) -> Contents:
    on_disk = SchemaOnDisk(source.schema)
    columns = policy.assign(on_disk.leaves, partitions=source.partitions.names)
    schema = pa.schema([*on_disk.schema, *source.partitions], metadata=on_disk.schema.metadata)
    return Contents(
        schema=schema.serialize().to_pybytes(),
        write_schema=source.schema,
        columns=columns,
        partitions=tuple(source.partitions.names),
        policy=policy,
    )


def _base_contents(source: Source, base: State) -> Contents:
    files = base.files
    full: pa.Schema = pa.ipc.read_schema(pa.py_buffer(files.schema))
    schema = pa.schema([f for f in full if f.name not in files.partitions], metadata=full.metadata)
    given = {f.name: f.type for f in [*SchemaOnDisk(source.schema).schema, *source.partitions]}
    wanted = {f.name: f.type for f in full}
    for name in sorted(wanted.keys() | given.keys()):
        if given.get(name) != wanted.get(name):
            raise EncpipeError(
                f"column {name!r} is {given.get(name, 'absent')} in the source "
                f"and {wanted.get(name, 'absent')} in the dataset",
                hint="cast or rename it in the source",
                code="unsupported",
            )
    if set(source.partitions.names) != set(files.partitions):
        raise ConfigError(
            "the source is partitioned by other columns than the dataset", code="policy-partition"
        )
    return Contents(
        schema=files.schema,
        write_schema=_write_schema(source, schema),
        columns=files.columns,
        partitions=files.partitions,
        policy=files.policy,
    )


def _write_schema(source: Source, wanted: pa.Schema) -> pa.Schema:
    """The source's schema in the order and nullability of the dataset's.

    Raises `EncpipeError` `unsupported` unless the files come out with just the dataset's leaf columns.
    """
    fields = []
    for field in wanted:
        given = source.schema.field(field.name)
        if given.nullable and not field.nullable:
            raise EncpipeError(
                f"column {field.name!r} may hold nulls in the source and must not in the dataset",
                hint="cast it in the source to a field with nullable=False, without nulls",
                code="unsupported",
            )
        fields.append(given.with_nullable(field.nullable))
    schema = pa.schema(fields, metadata=source.schema.metadata)
    if not same_columns(SchemaOnDisk(schema).parquet_schema, SchemaOnDisk(wanted).parquet_schema):
        raise EncpipeError(
            "the source's columns are stored in another way than the dataset's",
            hint="cast the source to the dataset's schema",
            code="unsupported",
        )
    return schema


def _digest(source: Source, compression: str) -> bytes:
    """Stands for the source and the settings that change what is written."""
    described = {
        "compression": compression,
        "row_group_bytes": ROW_GROUP_BYTES,
        "schema": hashlib.sha256(source.schema.serialize().to_pybytes()).hexdigest(),
        "files": [[file.name, file.fingerprint, dict(file.partition)] for file in source.files],
    }
    return hashlib.sha256(strictjson.dumps(described)).digest()
