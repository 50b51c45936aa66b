"""From what the user named to a `Source`: find files, tell their format, unify schemas."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final

import pyarrow as pa

from encpipe.config import Config
from encpipe.errors import ConfigError
from encpipe.sources import hive
from encpipe.sources.base import READ_ERRORS, Source, SourceFile, unreadable, unsupported
from encpipe.sources.locate import Located, locate
from encpipe.sources.unify import Target, unify
from encpipe.sources.writable import check_writable

DEFAULT_ROW_GROUP_BYTES: Final = 128 << 20
"""Decoded bytes that one row group may have before it is split."""
_OPENERS: Final = 8
"""Files whose schema is read at once."""


@dataclass(frozen=True)
class Format:
    """One format: the module that reads it, the suffixes that tell it, whether types are inferred."""

    module: str
    suffixes: tuple[str, ...]
    inferred: bool = False


def _packed(*suffixes: str) -> tuple[str, ...]:
    return tuple(
        f"{suffix}{packing}" for suffix in suffixes for packing in ("", ".gz", ".bz2", ".zst", ".zip")
    )


FORMATS: Final[Mapping[str, Format]] = {
    "parquet": Format("encpipe.sources.parquet", (".parquet", ".parq", ".pq")),
    "csv": Format("encpipe.sources.csv", _packed(".csv"), inferred=True),
    "json": Format("encpipe.sources.json", _packed(".jsonl", ".ndjson", ".json"), inferred=True),
    "arrow": Format("encpipe.sources.ipc", (".arrow", ".feather", ".ipc", ".arrows")),
}
"""Format name -> module with `schema_of` and `open_reader`, and suffixes."""


def open_source(
    src: str | os.PathLike[str] | object,
    *,
    format: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    row_group_bytes: int = DEFAULT_ROW_GROUP_BYTES,
    schema: pa.Schema | None = None,
    config: Config | None = None,
) -> Source:
    """What `src` holds: a file, folder, hive tree, glob or fsspec URL, or an object that streams Arrow.

    An object (a table, a reader, a data frame, a DuckDB relation: anything with `__arrow_c_stream__`) is one
    file, read once. `format` is a name of `FORMATS`; without it a file's suffix tells. In a folder, `format`
    picks the files of that format. Reads schemas only. Row groups hold at most about `row_group_bytes` of
    decoded values. `schema` gives types of CSV and JSON columns that are not to be inferred.

    Raises `EncpipeError` `source-unreadable`, `source-empty`, `unsupported`; `StorageError`; `ConfigError`.
    """
    if row_group_bytes < 1:
        raise ConfigError(f"row_group_bytes must be at least 1, not {row_group_bytes}")
    if format is not None and format not in FORMATS:
        raise ConfigError(f"no source format {format!r}", hint=f"known: {', '.join(FORMATS)}")
    if isinstance(src, str | os.PathLike):
        path = os.fspath(src)
        if isinstance(path, bytes):
            raise ConfigError("a source path must be text, not bytes")
        options = {**_configured(path, config), **(storage_options or {})}
        return _from_files(locate(path, options, config or Config()), format, row_group_bytes, schema)
    from encpipe.sources.stream import from_object

    return from_object(src, row_group_bytes)


def _configured(path: str, config: Config | None) -> Mapping[str, Any]:
    scheme = path.partition("://")[0] if "://" in path else "file"
    return {} if config is None else config.storage.get(scheme, {})


def format_of(name: str) -> str | None:
    """The format that a file's suffix names, or None."""
    lower = name.lower()
    return next((f for f, known in FORMATS.items() if lower.endswith(known.suffixes)), None)


def _choose(files: Sequence[Located], format: str | None) -> tuple[str, tuple[Located, ...]]:
    """The one format of all files, and those that have it."""
    told = [(located, format_of(located.name)) for located in files]
    if format is not None:
        matching = tuple(f for f, t in told if len(files) == 1 or t in (None, format))
        if not matching:
            raise unreadable(
                files[0].name,
                f"no file has the format {format}",
                hint="leave the format away (--format, source_format=)",
            )
        return format, matching
    for located, name in told:
        if name is None:
            raise unreadable(
                located.name,
                "its name does not tell its format",
                hint=f"give the format (--format, source_format=): {', '.join(FORMATS)}",
            )
        if name != told[0][1]:
            raise unsupported(
                f"the source mixes formats: {files[0].name!r} is {told[0][1]}, {located.name!r} is {name}",
                hint="name the files by a glob, or pick one format (--format, source_format=)",
            )
    return str(told[0][1]), tuple(files)


def _from_files(
    files: Sequence[Located], format: str | None, row_group_bytes: int, given: pa.Schema | None
) -> Source:
    name, chosen = _choose(files, format)
    if given is not None and not FORMATS[name].inferred:
        raise ConfigError(f"schema= is for CSV and JSON lines; {name} files say their types")
    module = import_module(FORMATS[name].module)
    with ThreadPoolExecutor(_OPENERS) as pool:
        schemas = list(pool.map(partial(module.schema_of, given=given), chosen))
    values = [hive.values_of(located.name) for located in chosen]
    partitions = hive.infer(values)
    whole = unify(zip((located.name for located in chosen), schemas, strict=True))
    partitions, data = _separate(partitions, whole)
    check_writable(data, chosen[0].name)
    made = []
    for located, schema, found in zip(chosen, schemas, values, strict=True):
        partition = hive.complete(found, partitions)
        fixed = {
            c: _scalar(partition[c], partitions.field(c).type, located)
            for c in partitions.names
            if c in schema.names
        }
        reader = partial(module.open_reader, located, Target(data, fixed), row_group_bytes)
        made.append(SourceFile(located.name, partition, located.fingerprint, located.size, reader))
    return Source(data, partitions, tuple(made), all(file.fingerprint for file in made))


def _separate(partitions: pa.Schema, whole: pa.Schema) -> tuple[pa.Schema, pa.Schema]:
    """Partition columns (typed as in the files, if they stand there too), and the data columns."""
    for index, column in enumerate(partitions):
        if column.name in whole.names:
            partitions = partitions.set(index, pa.field(column.name, whole.field(column.name).type))
    data = pa.schema(
        [column for column in whole if column.name not in partitions.names], metadata=whole.metadata
    )
    return partitions, data


def _scalar(text: str | None, kind: pa.DataType, located: Located) -> pa.Scalar:
    try:
        return pa.scalar(None, kind) if text is None else pa.scalar(text, pa.string()).cast(kind)
    except READ_ERRORS:
        raise unreadable(
            located.name, f"its partition value {text!r} is not of the column's type {kind}"
        ) from None
