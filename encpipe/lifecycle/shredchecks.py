"""What is asked before a master key is destroyed: what it still opens, and whether it is the one meant."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Final

from encpipe import journal as journals
from encpipe import strictjson
from encpipe.errors import ConfigError, EncpipeError, IntegrityError, ManifestError, StorageError
from encpipe.kms.pkcs11_settings import KeyPlace
from encpipe.lifecycle.wrapped import wrapped_in
from encpipe.manifest import Manifest
from encpipe.state import read_manifest
from encpipe.storage import Storage
from encpipe.strictjson import Fields

MARK_PATH: Final = "_encpipe/retiring.json"
MARK_FORMAT: Final = "encpipe/1 retiring"
_MAX_MARK_BYTES: Final = 1 << 20


def wrapped_by(found: Manifest, leaving: Collection[str] = ()) -> set[str]:
    """The URIs of the master keys that wrap KEKs of any generation, but for the KEKs with these ids."""
    return {w.master_key for kek_id, some in found.wrappings.items() if kek_id not in leaving for w in some}


def may_be_one(one: str, other: str) -> bool:
    """Whether two URIs may name one master key: the same, or spellings that only the service can tell apart.

    On a PKCS#11 token (RFC 7512) an attribute that is left out fits any; AWS KMS knows a key by id, ARN and
    aliases. The URIs of other services have one spelling.
    """
    scheme = one.partition(":")[0]
    if one == other or scheme != other.partition(":")[0]:
        return one == other
    if scheme == "pkcs11":
        try:
            first, second = KeyPlace.parse(one), KeyPlace.parse(other)
        except ConfigError:  # no such URI names a key
            return False
        pairs = ((first.serial, second.serial), (first.id, second.id))
        alike = all(a is None or b is None or a == b for a, b in pairs)
        return alike and (first.token, first.object) == (second.token, second.object)
    if scheme == "aws-kms":
        return "alias/" in one + other or _aws_id(one) == _aws_id(other)
    return False


def _aws_id(uri: str) -> str:
    return uri.rpartition("/")[2].rpartition(":")[2]


def places_under(storage: Storage, uri: str) -> list[str]:
    """The journals and the manifest of a dataset that have a wrapping by this master key, or may have one.

    Journals are read first: a write that ends meanwhile is then in the manifest. A tombstone has none; what
    else lies beside one is not committed any more. Raises `StorageError`, `IntegrityError`.
    """
    if read_manifest(storage)[1].core.footer_kek.state == "shredded":
        return []
    places = [path for path in _journals(storage) if _may_hold(storage, path, uri)]
    if any(may_be_one(other, uri) for other in wrapped_by(read_manifest(storage)[1])):
        places.append("the manifest")
    return places


def _journals(storage: Storage) -> Iterator[str]:
    return (journals.journal_path(writer_id) for writer_id in journals.writers(storage))


def _may_hold(storage: Storage, path: str, uri: str) -> bool:
    try:
        data = storage.read(path, limit=journals.MAX_JOURNAL_BYTES)
    except StorageError as error:
        if error.code == "not-found":
            return False
        raise
    try:
        return any(may_be_one(wrapped.master_key, uri) for _, wrapped in wrapped_in(data)[1])
    except IntegrityError:
        return True


class Mark:
    """An object of the dataset that tells the run after a stopped one which master keys it is to destroy.

    It guards against slips, and is not authenticated: who can write there can also name any master key in
    the manifest. Still, only a master key that the caller names is destroyed.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, dataset_id: str) -> set[str]:
        """The URIs of the master keys; none where there is no mark of this dataset. Raises `StorageError`."""
        try:
            data = self._storage.read(MARK_PATH, limit=_MAX_MARK_BYTES)
        except StorageError as error:
            if error.code == "not-found":
                return set()
            raise
        try:
            fields = Fields(strictjson.loads(data, what="the mark of a shred"), what="the mark of a shred")
            ours = (fields.text("format"), fields.text("dataset_id")) == (MARK_FORMAT, dataset_id)
            return set(fields.texts("master_keys", limit=10_000)) if ours else set()
        except ManifestError:
            return set()

    def write(self, dataset_id: str, uris: Collection[str]) -> None:
        """Name these as well. Raises `StorageError`, `ConflictError`."""
        named = sorted(self.read(dataset_id) | set(uris))
        data = strictjson.dumps({"format": MARK_FORMAT, "dataset_id": dataset_id, "master_keys": named})
        self._storage.commit(MARK_PATH, data, check=lambda _: None, is_ours=data.__eq__)

    def remove(self) -> None:
        """Remove it. One that stays does no harm."""
        with contextlib.suppress(EncpipeError):
            self._storage.delete(MARK_PATH)
