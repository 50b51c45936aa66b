"""The records of a write's finished files, beside its journal: what the file list needs of each.

Sealed like the journal, and signed where it is (docs/format.md, "Journal").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from encpipe import aead, filelist, strictjson
from encpipe import journal as journals
from encpipe.aead import Label
from encpipe.errors import ConflictError, DecryptionError, EncpipeError, ManifestError
from encpipe.filelist import FileEntry
from encpipe.journal import RESTART_HINT, Journal, check_signature
from encpipe.keys import Secret
from encpipe.partitionkeks import PartitionKek, parse_partition_kek
from encpipe.signing import SigningKey
from encpipe.storage import Storage
from encpipe.strictjson import Fields

MAX_RECORD_BYTES: Final = 16 << 20
_RECORD: Final = re.compile(r"(0|[1-9][0-9]{0,9})\.sealed")


class Records:
    """The records of a journal's finished files, by position in the source."""

    def __init__(
        self, storage: Storage, journal: Journal, footer_kek: Secret, key: SigningKey | None = None
    ) -> None:
        self._storage, self._journal = storage, journal
        self._footer_kek, self._signing_key = footer_kek, key
        self.partition_keks: dict[str, PartitionKek] = {}
        """What the write has made, by id, as far as records of files under them were read or added here."""

    def _path(self, n: int) -> str:
        return f"{self._journal.folder}{n}.sealed"

    def _key(self, n: int) -> Secret:
        context = bytes.fromhex(self._journal.writer_id) + n.to_bytes(8, "big")
        return aead.derive(self._footer_kek, Label.JOURNAL_FILE, context)

    def _aad(self, n: int) -> bytes:
        ids = (bytes.fromhex(self._journal.dataset_id), bytes.fromhex(self._journal.writer_id))
        return aead.encode_aad(Label.JOURNAL_FILE, *ids, n.to_bytes(8, "big"))

    def add(self, n: int, entry: FileEntry, made: Iterable[PartitionKek] = ()) -> None:
        """Record that file `n` of the source is finished, and its partition KEKs that the write made.

        Raises `EncpipeError` `unsupported` for an entry that could not be read again, and `ConflictError`
        where there are new KEKs and the journal is gone: a shred took it, and looks for such records once.
        """
        keks = [kek.as_json() for kek in made]
        plaintext = strictjson.dumps({**entry.as_json(), **({"made": keks} if keks else {})})
        try:
            self._parse(plaintext, tuple(entry.partition))
        except ManifestError as error:
            raise EncpipeError(
                f"the file list cannot hold {entry.path[:200]!r}: {error.message}", code="unsupported"
            ) from None
        aad = self._aad(n)
        if self._signing_key is not None:
            signature = self._signing_key.sign_journal(self._journal.writer_id, aad + plaintext)
            plaintext += b"\n" + signature.encode()
        if keks and not journals.still_there(self._storage, self._journal.writer_id):
            raise ConflictError(
                "this write was thrown away in the meantime, by a shred or by a run with --restart",
                hint="run the command again",
            )
        self._storage.create(self._path(n), aead.seal(self._key(n), plaintext, aad=aad))

    def read(self, n: int, partitions: tuple[str, ...]) -> FileEntry:
        """The entry of file `n`. Raises `ManifestError` `journal` for an edited one, or `SignatureError`."""
        sealed, aad = self._storage.read(self._path(n), limit=MAX_RECORD_BYTES), self._aad(n)
        try:
            plaintext = aead.open_sealed(self._key(n), sealed, aad=aad)
        except DecryptionError:
            raise ManifestError(
                f"record {n} of a stopped write does not open: it was edited",
                hint=RESTART_HINT,
                code="journal",
            ) from None
        described, _, signature = plaintext.partition(b"\n")
        if self._signing_key is not None:
            text = signature.decode("ascii", "replace")
            check_signature(self._signing_key, self._journal.writer_id, aad + described, text)
        return self._parse(described, partitions)

    def _parse(self, plaintext: bytes, partitions: tuple[str, ...]) -> FileEntry:
        raw = strictjson.loads(plaintext, what="a journal record", code="journal")
        fields = Fields(raw, what="a journal record", code="journal")
        keks = fields.array("made", limit=filelist.MAX_COLUMNS) if fields.has("made") else []
        for kek in [parse_partition_kek(item, code="journal") for item in keks]:
            self.partition_keks[kek.id] = kek
        raw.pop("made", None)
        return filelist.parse_entry(raw, partitions)

    def numbers(self) -> Iterator[int]:
        """The files that are recorded. Objects of other names are left alone."""
        for info in self._storage.list(self._journal.folder):
            name = _RECORD.fullmatch(info.path.removeprefix(self._journal.folder))
            if name is not None:
                yield int(name[1])
