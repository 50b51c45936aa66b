"""The sealed file list: policy, schema, and what each file must be. No I/O here.

Sealed in one AES-256-GCM call under a key of its own, HKDF-Expand(footer KEK, file-list label || 0 || list
id), bound to dataset id, generation and list id; the manifest's core holds the SHA-256 of the sealed bytes
(docs/format.md, "File list").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from encpipe import aead, strictjson
from encpipe.aead import Label
from encpipe.errors import DecryptionError, EncpipeError, FormatError, ManifestError, PolicyError
from encpipe.keys import KEY_NAME, Secret
from encpipe.partitionkeks import PartitionKek, parse_partition_kek
from encpipe.policy import Policy
from encpipe.strictjson import Fields

MAX_FILES: Final = 10_000_000
MAX_COLUMNS: Final = 100_000
MAX_ROW_GROUPS: Final = 32_767
"""Row groups an encrypted Parquet file may have (the specification's ordinal is 16 bits)."""
MAX_SCHEMA_BYTES: Final = 64 << 20
_VERSION: Final = b"\x01"
_FILE_PATH: Final = re.compile(r"(?:[^/\x00]{1,255}/){1,32}[0-9a-f]{32}\.parquet")


_ENTRY_FIELDS: Final = (
    "id",
    "path",
    "bytes",
    "rows",
    "row_groups",
    "partition",
    "sha256",
    "footer_dek",
    "column_deks",
)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One data file, as committed.

    `path` is below the dataset; `size` is in bytes; `row_groups` holds the rows of each row group;
    `partition` the values of the partition columns as text, or None for null; `sha256` is over the whole
    file; `footer_commitment` fixes the footer DEK, `columns_commitment` the DEKs of the leaf
    columns, none of which there are where one DEK seals the whole file. `partition_keks` are the ids of the
    partition KEKs it is under, one for each key name, or none. `extra` keeps the fields that this version
    does not know.
    """

    id: str
    path: str
    size: int
    rows: int
    row_groups: tuple[int, ...]
    partition: Mapping[str, str | None]
    sha256: bytes
    footer_commitment: bytes
    columns_commitment: bytes
    partition_keks: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        partition_keks = {"partition_keks": list(self.partition_keks)} if self.partition_keks else {}
        return {
            **self.extra,
            **partition_keks,
            "id": self.id,
            "path": self.path,
            "bytes": self.size,
            "rows": self.rows,
            "row_groups": list(self.row_groups),
            "partition": dict(self.partition),
            "sha256": self.sha256.hex(),
            "footer_dek": self.footer_commitment.hex(),
            "column_deks": self.columns_commitment.hex(),
        }


@dataclass(frozen=True)
class FileList:
    """Everything a generation holds.

    `columns` maps each leaf path to its key name, in schema order; `schema` is the dataset's Arrow schema as
    an IPC message, partition columns included; `partitions` names the partition columns. `partition_keks` has
    those that the files are under.
    """

    policy: Policy
    schema: bytes
    columns: Mapping[str, str]
    partitions: tuple[str, ...]
    files: tuple[FileEntry, ...]
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)
    partition_keks: tuple[PartitionKek, ...] = ()

    @property
    def key_names(self) -> tuple[str, ...]:
        """The key names that its files use, sorted: the footer key and those of the columns."""
        return tuple(sorted({self.policy.footer_key, *self.columns.values()}))

    def as_json(self) -> dict[str, Any]:
        return {
            **self.raw,
            "policy": {**self.raw.get("policy", {}), **self.policy.as_json()},
            "schema": aead.to_text(self.schema),
            "columns": [[leaf, name] for leaf, name in self.columns.items()],
            "partitions": list(self.partitions),
            "partition_keks": [kek.as_json() for kek in self.partition_keks],
            "files": [entry.as_json() for entry in self.files],
        }


def _aad(dataset_id: str, generation: int, list_id: str) -> bytes:
    fields = (bytes.fromhex(dataset_id), generation.to_bytes(8, "big"), bytes.fromhex(list_id))
    return aead.encode_aad(Label.FILE_LIST, *fields)


def _key(footer_kek: Secret, list_id: str) -> Secret:
    return aead.derive(footer_kek, Label.FILE_LIST, bytes.fromhex(list_id))


def seal(file_list: FileList, *, footer_kek: Secret, dataset_id: str, generation: int, list_id: str) -> bytes:
    """The sealed object: 0x01 || nonce || ciphertext || tag.

    Raises `EncpipeError` `unsupported` for a list that contradicts itself: no reader would take it.
    """
    fault = _fault(file_list)
    if fault:
        raise EncpipeError(f"the file list of this write {fault}", code="unsupported")
    plaintext = strictjson.dumps(file_list.as_json())
    aad = _aad(dataset_id, generation, list_id)
    return _VERSION + aead.seal(_key(footer_kek, list_id), plaintext, aad=aad)


def open_sealed(
    sealed: bytes, *, footer_kek: Secret, dataset_id: str, generation: int, list_id: str
) -> FileList:
    """The list in `sealed`.

    Raises `ManifestError` unless it was sealed for just this place, `FormatError` for a newer version.
    """
    if sealed[:1] != _VERSION:
        raise FormatError("the file list has a version this encpipe does not know", code="format-newer")
    try:
        aad = _aad(dataset_id, generation, list_id)
        plaintext = aead.open_sealed(_key(footer_kek, list_id), sealed[1:], aad=aad)
    except DecryptionError:
        raise ManifestError(
            "the file list does not open: it was changed, or belongs to another generation or dataset",
            hint="restore the object from a copy you trust",
            code="file-list",
        ) from None
    return parse(plaintext)


def parse(plaintext: bytes) -> FileList:
    """The list in opened bytes.

    Raises `ManifestError` for anything not of the format, `FormatError` for what only a newer version knows.
    """
    raw = strictjson.loads(plaintext, what="the file list", code="file-list")
    fields = Fields(raw, what="the file list", code="file-list")
    partitions = fields.texts("partitions", limit=MAX_COLUMNS)
    files = tuple(parse_entry(item, partitions) for item in fields.array("files", limit=MAX_FILES))
    keks = fields.array("partition_keks", limit=MAX_FILES)
    found = FileList(
        policy=_parse_policy(fields.fields("policy")),
        schema=fields.data("schema", limit=MAX_SCHEMA_BYTES),
        columns=_parse_columns(fields),
        partitions=partitions,
        files=files,
        raw=raw,
        partition_keks=tuple(parse_partition_kek(item, code="file-list") for item in keks),
    )
    fault = _fault(found)
    if fault:
        fields.refuse(fault)
    return found


def _fault(listed: FileList) -> str:
    """What is wrong with a list as a whole; empty where nothing is."""
    files = listed.files
    if min(len({entry.path for entry in files}), len({entry.id for entry in files})) < len(files):
        return "names a file twice"
    if not listed.policy.partition_keys:
        none = not listed.partition_keks and not any(entry.partition_keks for entry in files)
        return "" if none else "has partition KEKs that its policy does not ask for"
    return _partition_fault(listed)


def _partition_fault(listed: FileList) -> str:
    columns, names, keks = listed.policy.partition_keys, listed.key_names, listed.partition_keks
    known = {kek.id: (kek.key_name, kek.partition) for kek in keks}
    if len(known) < len(keks):
        return "names a partition KEK twice"
    if not set(columns) <= set(listed.partitions):
        return "has partition keys by what is no partition column"
    if any(set(kek.partition) != set(columns) or kek.key_name not in names for kek in keks):
        return "has a partition KEK by other columns, or of another key name, than its policy"
    for entry in listed.files:
        values = {column: entry.partition[column] for column in columns}
        if [known.get(kek_id) for kek_id in entry.partition_keks] != [(name, values) for name in names]:
            return f"has a file under other KEKs than those of its partition: {entry.path[:200]}"
    return ""


def _parse_columns(fields: Fields) -> dict[str, str]:
    columns: dict[str, str] = {}
    for item in fields.array("columns", limit=MAX_COLUMNS):
        match item:
            case [str(leaf), str(name)] if KEY_NAME.fullmatch(name) and leaf not in columns:
                columns[leaf] = name
            case _:
                fields.refuse("has a column that is not a pair of leaf path and key name")
    return columns


def _parse_policy(fields: Fields) -> Policy:
    entries = fields.object("columns", limit=MAX_COLUMNS)
    columns = Fields(entries, what="the file list's policy", code="file-list")
    try:
        return Policy(
            footer_key=fields.match("footer_key", KEY_NAME),
            columns={name: columns.texts(name, limit=MAX_COLUMNS) for name in entries},
            plaintext_partitions=fields.texts("plaintext_partitions", limit=MAX_COLUMNS),
            strict=fields.flag("strict"),
            partition_keys=_texts_if_any(fields, "partition_keys"),
        )
    except PolicyError as error:
        fields.refuse(f"is not valid: {error.message}")


def _texts_if_any(fields: Fields, name: str) -> tuple[str, ...]:
    """A field that lists from before partition KEKs do not have."""
    return fields.texts(name, limit=MAX_COLUMNS) if fields.has(name) else ()


def parse_entry(item: Any, partitions: tuple[str, ...]) -> FileEntry:
    """One file's entry. Raises `ManifestError` for a path that could leave the dataset's folder."""
    fields = Fields(item, what="a file's entry", code="file-list")
    entry = FileEntry(
        id=fields.hex_id("id"),
        path=fields.match("path", _FILE_PATH),
        size=fields.integer("bytes"),
        rows=fields.integer("rows"),
        row_groups=_parse_row_groups(fields),
        partition=_parse_partition(fields, partitions),
        sha256=fields.sha256("sha256"),
        footer_commitment=fields.sha256("footer_dek"),
        columns_commitment=fields.sha256("column_deks"),
        partition_keks=_texts_if_any(fields, "partition_keks"),
        extra=fields.others(*_ENTRY_FIELDS, *(("partition_keks",) if fields.has("partition_keks") else ())),
    )
    folders = entry.path.split("/")[:-1]
    if any(part in (".", "..") for part in folders) or folders[0] == "_encpipe":
        fields.refuse("has a path that leaves the data folders")
    if sum(entry.row_groups) != entry.rows or not entry.path.endswith(f"/{entry.id}.parquet"):
        fields.refuse("contradicts itself")
    return entry


def _parse_row_groups(fields: Fields) -> tuple[int, ...]:
    rows = fields.array("row_groups", limit=MAX_ROW_GROUPS)
    if not all(type(n) is int for n in rows):
        fields.refuse("has a row count that is not a number")
    return tuple(rows)


def _parse_partition(fields: Fields, partitions: tuple[str, ...]) -> dict[str, str | None]:
    values = fields.object("partition", limit=len(partitions))
    if set(values) != set(partitions) or not all(v is None or isinstance(v, str) for v in values.values()):
        fields.refuse("has no value for each partition column")
    return values
