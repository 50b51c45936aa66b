"""The journal of a write in progress: what a second run needs to go on where a first one stopped.

    _encpipe/pending/<writer id>/lock           held by the live owner
    _encpipe/pending/<writer id>/journal.json   dataset, KEK records and their wrappings, and a sealed body
    _encpipe/pending/<writer id>/<n>.sealed     one record for each finished file

No key stands here but wrapped, and nothing of source, policy or files but sealed (docs/format.md, "Journal").
A writer who signs also signs journal and records, and goes on only with what he signed himself.
The commit id of the manifest that a write commits is its writer id, so a write that was committed just before
it was stopped is recognised and not done twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from encpipe import aead, manifest, strictjson
from encpipe.aead import Label
from encpipe.errors import (
    DecryptionError,
    EncpipeError,
    FormatError,
    ManifestError,
    SignatureError,
    StorageError,
)
from encpipe.keys import KEY_NAME, Secret, WrappedKey
from encpipe.manifest import KekRecord
from encpipe.signing import SigningKey
from encpipe.storage import Storage
from encpipe.strictjson import Fields

FOLDER: Final = "_encpipe/pending/"
MAX_JOURNAL_BYTES: Final = 16 << 20
_CORE_DIGEST: Final = re.compile(r"(?:[0-9a-f]{64})?")
_WRITER_ID: Final = re.compile(r"[0-9a-f]{32}")
RESTART_HINT: Final = "start the write anew with --restart"
"""What helps where a stopped write cannot be gone on with."""


@dataclass(frozen=True)
class Journal:
    """What one write set out to do. `digest` stands for source, policy and settings: a second run that has
    another one is another write. `signature` is over all of it but the wrappings, so a re-wrap keeps it."""

    writer_id: str
    dataset_id: str
    base_core: str
    base_generation: int
    created: str
    owner: str
    footer_key: str
    keks: tuple[KekRecord, ...]
    wrappings: Mapping[str, tuple[WrappedKey, ...]]
    digest: bytes
    signature: str = ""

    @property
    def folder(self) -> str:
        """Where the journal lies, below the dataset."""
        return f"{FOLDER}{self.writer_id}/"

    @property
    def footer_kek_id(self) -> str:
        """The KEK that seals body and records."""
        return next(k.id for k in self.keks if k.key_name == self.footer_key and k.state == "active")

    def signed(self, key: SigningKey | None) -> Journal:
        """The same with the signature of `key`, or as it is when there is none."""
        return replace(self, signature=key.sign_journal(self.writer_id, self._signed())) if key else self

    def _signed(self) -> bytes:
        return strictjson.dumps({**self._public(), "wrappings": {}, "digest": self.digest.hex()})

    def as_bytes(self, footer_kek: Secret) -> bytes:
        """The journal object: the public fields and the sealed body.

        Raises `EncpipeError` `unsupported` for one that could not be read again.
        """
        public = self._public()
        body = strictjson.dumps({"digest": self.digest.hex(), "signature": self.signature})
        sealed = aead.seal(_key(footer_kek, self.writer_id), body, aad=_aad(public))
        data = strictjson.dumps({**public, "sealed": aead.to_text(sealed)})
        try:
            parse(data)
        except ManifestError as error:
            raise EncpipeError(
                f"this write cannot be recorded: {error.message}", code="unsupported"
            ) from None
        return data

    def _public(self) -> dict[str, Any]:
        return {
            "format": manifest.FORMAT,
            "writer_id": self.writer_id,
            "dataset_id": self.dataset_id,
            "base_core": self.base_core,
            "base_generation": self.base_generation,
            "created": self.created,
            "owner": self.owner,
            "footer_key": self.footer_key,
            "keks": [kek.as_json() for kek in self.keks],
            "wrappings": manifest.wrappings_json(self.wrappings),
        }


@dataclass(frozen=True)
class SealedJournal:
    """A parsed journal whose body is still sealed: its KEKs have to be unwrapped first."""

    journal: Journal
    public: Mapping[str, Any]
    sealed: bytes

    def open(self, footer_kek: Secret, key: SigningKey | None = None) -> Journal:
        """The whole journal. Raises `ManifestError` `journal` when it was edited or is not of this KEK;
        `SignatureError` when there is a `key` and it did not sign it."""
        try:
            sealing_key = _key(footer_kek, self.journal.writer_id)
            body = aead.open_sealed(sealing_key, self.sealed, aad=_aad(self.public))
        except DecryptionError:
            raise ManifestError(
                "the journal of a stopped write does not open: it was edited",
                hint=RESTART_HINT,
                code="journal",
            ) from None
        body_json = strictjson.loads(body, what="a journal", code="journal")
        fields = Fields(body_json, what="a journal", code="journal")
        signature = fields.text("signature") if "signature" in body_json else ""
        opened = replace(self.journal, digest=fields.sha256("digest"), signature=signature)
        if key is not None:
            check_signature(key, opened.writer_id, opened._signed(), signature)
        return opened


def _key(footer_kek: Secret, writer_id: str) -> Secret:
    return aead.derive(footer_kek, Label.JOURNAL, bytes.fromhex(writer_id))


def _aad(public: Mapping[str, Any]) -> bytes:
    return aead.encode_aad(Label.JOURNAL, hashlib.sha256(strictjson.dumps(public)).digest())


def check_signature(key: SigningKey, writer_id: str, signed: bytes, signature: str) -> None:
    try:
        key.check_journal(writer_id, signed, signature)
    except SignatureError:
        raise SignatureError(
            f"a stopped write was not signed by {key.signer}, and this call signs what it goes on with",
            hint=f"go on as the one who began it, or {RESTART_HINT}",
        ) from None


def parse(data: bytes) -> SealedJournal:
    """The journal in `data`. Raises `ManifestError` `journal` or `FormatError` for anything else."""
    raw = strictjson.loads(data, what="a journal", code="journal")
    fields = Fields(raw, what="a journal", code="journal")
    if fields.text("format") != manifest.FORMAT:
        raise FormatError("a journal has another format", hint="upgrade encpipe", code="format-newer")
    journal = Journal(
        writer_id=fields.hex_id("writer_id"),
        dataset_id=fields.hex_id("dataset_id"),
        base_core=fields.match("base_core", _CORE_DIGEST),
        base_generation=fields.integer("base_generation"),
        created=fields.text("created"),
        owner=fields.text("owner"),
        footer_key=fields.match("footer_key", KEY_NAME),
        keks=manifest.parse_keks(fields),
        wrappings=manifest.parse_wrappings(fields),
        digest=b"",
    )
    if not any(k.key_name == journal.footer_key and k.state == "active" for k in journal.keks):
        fields.refuse("has no KEK for its footer key")
    public = {name: value for name, value in raw.items() if name != "sealed"}
    return SealedJournal(journal, public, fields.data("sealed", limit=MAX_JOURNAL_BYTES))


def journal_path(writer_id: str) -> str:
    """Where the journal of a writer lies."""
    return f"{FOLDER}{writer_id}/journal.json"


def lock_path(writer_id: str) -> str:
    """What the live owner of a journal holds."""
    return f"{FOLDER}{writer_id}/lock"


def writers(storage: Storage) -> list[str]:
    """The writer ids that have a journal, live or not."""
    paths = (info.path for info in storage.list(FOLDER))
    found = (path.removeprefix(FOLDER).partition("/") for path in paths)
    return [writer for writer, _, name in found if name == "journal.json" and _WRITER_ID.fullmatch(writer)]


def folders(storage: Storage) -> list[str]:
    """The writer ids that have anything left here, with a journal or without one."""
    found = {info.path.removeprefix(FOLDER).partition("/")[0]: None for info in storage.list(FOLDER)}
    return [writer for writer in found if _WRITER_ID.fullmatch(writer)]


def load(storage: Storage, writer_id: str) -> SealedJournal:
    """A writer's journal. Raises `ManifestError` `journal`, or `StorageError` when it is gone."""
    found = parse(storage.read(journal_path(writer_id), limit=MAX_JOURNAL_BYTES))
    if found.journal.writer_id != writer_id:
        raise ManifestError("a journal stands in another writer's folder", hint=RESTART_HINT, code="journal")
    return found


def remove(storage: Storage, writer_id: str, data_files: Iterable[str] = ()) -> None:
    """Remove a journal, itself first, then its records and the given data files."""
    storage.delete(journal_path(writer_id))
    for path in data_files:
        storage.delete(path)
    for info in list(storage.list(f"{FOLDER}{writer_id}/")):
        if info.path != lock_path(writer_id):
            storage.delete(info.path)


def still_there(storage: Storage, writer_id: str) -> bool:
    """Whether the journal was not taken away from under its writer."""
    try:
        storage.size(journal_path(writer_id))
    except StorageError as error:
        if error.code == "not-found":
            return False
        raise
    return True
