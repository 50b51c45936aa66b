"""KEKs of single partitions: random, and wrapped under the KEK of their key name. No I/O, no key service.

They stand in the sealed file list (docs/format.md, "Partition KEKs"): who takes one out of it, and away from
every copy of the list, makes the files of that partition unreadable, though the KEK of the key name stays.
Only who holds that KEK can make one, so the holder of the footer key alone cannot put other data in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from encpipe import aead
from encpipe.aead import Label
from encpipe.core import kek_commitment
from encpipe.errors import DecryptionError, UnwrapError
from encpipe.keys import KEY_BYTES, KEY_NAME, Secret, new_id
from encpipe.strictjson import Fields

WRAPPED_BYTES: Final = KEY_BYTES + aead.SEAL_OVERHEAD
MAX_COLUMNS: Final = 100_000
_FIELDS: Final = ("id", "key_name", "parent", "partition", "commitment", "wrapped")
_WHAT: Final = "a partition KEK"

Values = Mapping[str, str | None]
"""Partition column -> value as text, None for null."""


@dataclass(frozen=True, slots=True)
class PartitionKek:
    """The KEK of one key name for the files of one partition.

    `parent` is the id of the key name's KEK that wraps it, `partition` the values of the columns in the
    policy's `partition_keys`; `commitment` fixes its bytes, `wrapped` is nonce (12) || ciphertext (32) || tag
    (16). `extra` keeps the fields that this version does not know.
    """

    id: str
    key_name: str
    parent: str
    partition: Values
    commitment: bytes
    wrapped: bytes
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def make(
        cls, key_name: str, parent_id: str, parent: Secret, partition: Values, *, dataset_id: str
    ) -> PartitionKek:
        """A random KEK, wrapped under `parent`."""
        kek_id, kek = new_id(), Secret.random(KEY_BYTES)
        aad = _aad(dataset_id, key_name, kek_id, partition)
        wrapped = aead.seal(_key(parent, kek_id), kek.reveal(), aad=aad)
        return cls(kek_id, key_name, parent_id, dict(partition), kek_commitment(kek_id, kek), wrapped)

    def open(self, parent: Secret, *, dataset_id: str) -> Secret:
        """The KEK. Raises `UnwrapError` for another parent, dataset, key name or partition, or other bytes;
        with the code `kek-commitment` when it is not the committed one."""
        aad = _aad(dataset_id, self.key_name, self.id, self.partition)
        try:
            kek = Secret(aead.open_sealed(_key(parent, self.id), self.wrapped, aad=aad))
        except DecryptionError:
            raise UnwrapError(
                f"a partition KEK of key name {self.key_name!r} does not open: it was edited, or is of "
                "another partition, key name or dataset",
                hint="restore the file list from a copy you trust",
            ) from None
        if Secret(kek_commitment(self.id, kek)) != Secret(self.commitment):
            raise UnwrapError(
                f"a partition KEK of key name {self.key_name!r} is another than the file list commits to",
                hint="restore the file list from a copy you trust",
                code="kek-commitment",
            )
        return kek

    def as_json(self) -> dict[str, Any]:
        return {
            **self.extra,
            "id": self.id,
            "key_name": self.key_name,
            "parent": self.parent,
            "partition": dict(self.partition),
            "commitment": self.commitment.hex(),
            "wrapped": aead.to_text(self.wrapped),
        }


def _key(parent: Secret, kek_id: str) -> Secret:
    return aead.derive(parent, Label.PARTITION_KEK_WRAP, bytes.fromhex(kek_id))


def _aad(dataset_id: str, key_name: str, kek_id: str, partition: Values) -> bytes:
    """Null and the empty text are told apart by the first byte of a value."""
    fields = [bytes.fromhex(dataset_id), key_name.encode(), bytes.fromhex(kek_id)]
    for column, value in sorted(partition.items()):
        fields += (column.encode(), b"\0" if value is None else b"\1" + value.encode())
    return aead.encode_aad(Label.PARTITION_KEK_WRAP, *fields)


def parse_partition_kek(item: Any, *, code: str) -> PartitionKek:
    """One partition KEK as it stands in a list. Raises `ManifestError` with `code`."""
    fields = Fields(item, what=_WHAT, code=code)
    partition = fields.object("partition", limit=MAX_COLUMNS)
    if not partition or not all(value is None or isinstance(value, str) for value in partition.values()):
        fields.refuse("has no partition values")
    wrapped = fields.data("wrapped", limit=WRAPPED_BYTES)
    if len(wrapped) != WRAPPED_BYTES:
        fields.refuse(f"has a wrapped key that is not of {WRAPPED_BYTES} bytes")
    return PartitionKek(
        id=fields.hex_id("id"),
        key_name=fields.match("key_name", KEY_NAME),
        parent=fields.hex_id("parent"),
        partition=partition,
        commitment=fields.sha256("commitment"),
        wrapped=wrapped,
        extra=fields.others(*_FIELDS),
    )


class PartitionKeks:
    """The partition KEKs that one reader or writer knows, each opened when it is first needed and then kept.

    Safe to use from several threads: opening one twice does no harm.
    """

    def __init__(self, dataset_id: str) -> None:
        self._dataset_id = dataset_id
        self._known: dict[str, PartitionKek] = {}
        self._open: dict[str, Secret] = {}

    def learn(self, keks: Iterable[PartitionKek]) -> None:
        """Know these, too."""
        self._known.update((kek.id, kek) for kek in keks)

    def get(self, kek_id: str) -> PartitionKek | None:
        """The one of this id, if it is known."""
        return self._known.get(kek_id)

    def open(self, found: PartitionKek, parent: Secret) -> Secret:
        """The KEK itself. Raises `UnwrapError`."""
        kek = self._open.get(found.id)
        if kek is None:
            kek = self._open[found.id] = found.open(parent, dataset_id=self._dataset_id)
        return kek
