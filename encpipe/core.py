"""The core: line 1 of a manifest, which fixes one state of the data, and its MACs. No I/O here.

It names dataset, generation, file list (with its SHA-256) and KEKs, and carries one MAC under every active
KEK, so that no holder of one key can forge what another key protects (docs/format.md, "Manifest").
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from encpipe import aead, strictjson
from encpipe.aead import Label
from encpipe.errors import FormatError, ManifestError, UnwrapError
from encpipe.keys import KEY_NAME, Secret
from encpipe.strictjson import Fields

FORMAT: Final = "encpipe/1"
PARTITION_KEKS: Final = "partition-keks"
"""The feature of datasets whose policy asks for KEKs of single partitions."""

REQUIRES: Final[frozenset[str]] = frozenset({PARTITION_KEKS})
"""Features that a dataset may require and this version honours."""

MAX_KEKS: Final = 100_000
STATES: Final = ("active", "retired", "shredded")
_WHAT: Final = "the manifest's core"


@dataclass(frozen=True)
class KekRecord:
    """What the core says of one KEK. `commitment` fixes the KEK's bytes without showing them.

    `extra` keeps the fields that this version does not know.
    """

    id: str
    key_name: str
    created: str
    commitment: bytes
    state: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        return {
            **self.extra,
            "id": self.id,
            "key_name": self.key_name,
            "created": self.created,
            "commitment": self.commitment.hex(),
            "state": self.state,
        }


@dataclass(frozen=True)
class Core:
    """Line 1. `raw` keeps every field as it was read, unknown ones included."""

    dataset_id: str
    generation: int
    commit_id: str
    created: str
    footer_key: str
    list_id: str
    list_sha256: bytes
    keks: tuple[KekRecord, ...]
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def list_name(self) -> str:
        """The file list's path below the dataset."""
        return f"_encpipe/files-{self.generation}-{self.list_id}.sealed"

    @property
    def requires(self) -> tuple[str, ...]:
        """The features that a reader must know."""
        return tuple(self.raw.get("requires", ()))

    @property
    def footer_kek(self) -> KekRecord:
        """The KEK that seals the file list and MACs the manifest."""
        return self.active(self.footer_key)

    def active(self, key_name: str) -> KekRecord:
        """The KEK that new data of `key_name` goes under. Raises `ManifestError` for an unknown name."""
        for kek in self.keks:
            if kek.key_name == key_name and kek.state != "retired":
                return kek
        raise ManifestError(f"the manifest has no KEK of key name {key_name!r}")

    def kek(self, kek_id: str) -> KekRecord:
        """The KEK of this id. Raises `ManifestError` for an unknown one."""
        for kek in self.keks:
            if kek.id == kek_id:
                return kek
        raise ManifestError(f"the manifest has no KEK {kek_id}")

    @property
    def key_names(self) -> tuple[str, ...]:
        """The key names of this generation, the footer key first; not those only older ones used."""
        others = sorted({kek.key_name for kek in self.keks if kek.state != "retired"} - {self.footer_key})
        return (self.footer_key, *others)

    def as_json(self) -> dict[str, Any]:
        file_list = {**self.raw.get("file_list", {}), "id": self.list_id, "sha256": self.list_sha256.hex()}
        return {
            **self.raw,
            "format": FORMAT,
            "requires": list(self.requires),
            "dataset_id": self.dataset_id,
            "generation": self.generation,
            "commit_id": self.commit_id,
            "created": self.created,
            "footer_key": self.footer_key,
            "file_list": file_list,
            "keks": [kek.as_json() for kek in self.keks],
        }


@dataclass(frozen=True)
class TaggedCore:
    """A core with its stored bytes and its MACs by KEK id: of the newest generation or a retained one.

    `signatures` are as they were read (`encpipe.signing` checks them).
    """

    core: Core
    line: bytes = field(repr=False)
    macs: Mapping[str, bytes] = field(repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    signatures: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the core's stored bytes, hex: what pins, resume states and signatures bind to."""
        return hashlib.sha256(self.line).hexdigest()

    def check(self, kek_id: str, kek: Secret) -> None:
        """Raise unless `kek` is the committed one and its MAC covers the core.

        To be called for every KEK a reader gets hold of: `UnwrapError` or `ManifestError`.
        """
        check_commitment(self.core.kek(kek_id), kek)
        tag = self.macs.get(kek_id)
        if tag is None:
            raise ManifestError(f"the manifest lacks the core MAC under KEK {kek_id}", code="manifest-mac")
        aead.check_mac(_mac_key(kek, self.core), self.line, tag, what=_WHAT)

    def as_json(self) -> dict[str, Any]:
        """As it stands among the retained generations."""
        signed = {"signatures": list(self.signatures)} if self.signatures else {}
        return {**self.extra, "core": self.line.decode(), "core_macs": macs_json(self.macs), **signed}


def kek_commitment(kek_id: str, kek: Secret) -> bytes:
    """HKDF-Expand(KEK, kek-commitment label || 0 || KEK id): binds to the KEK, tells nothing of it."""
    return aead.derive(kek, Label.KEK_COMMITMENT, bytes.fromhex(kek_id)).reveal()


def check_commitment(record: KekRecord, kek: Secret) -> None:
    """Raise `UnwrapError` unless `kek` is the KEK that `record` commits to."""
    if Secret(kek_commitment(record.id, kek)) != Secret(record.commitment):
        raise UnwrapError(
            f"a wrapping of key name {record.key_name!r} opens to another KEK than the manifest commits to",
            hint="someone put a wrapping of his own into the manifest: restore it from a copy you trust",
            code="kek-commitment",
        )


def tag(core: Core, keks: Mapping[str, Secret], *, before: str | None = None) -> TaggedCore:
    """The core as it is stored, with the MAC of every active KEK, and of the footer KEK `before` (the KEK id)
    of the generation it is built upon: so a reader who knows that one can tell that this one follows.

    Raises `KeyError` when one is missing: a core without the MAC of every key name is never made.
    """
    line = strictjson.dumps(core.as_json())
    under = dict.fromkeys(kek.id for kek in core.keks if kek.state == "active")
    if before is not None:
        under[before] = None
    return TaggedCore(core, line, {i: aead.mac(_mac_key(keks[i], core), line) for i in under})


def _mac_key(kek: Secret, core: Core) -> Secret:
    return aead.derive(kek, Label.CORE_MAC, bytes.fromhex(core.dataset_id))


def parse_core(line: bytes) -> Core:
    """The core in `line`. Raises `FormatError` for another or a newer format, `ManifestError` else."""
    if not line.startswith(b"{"):
        raise FormatError("this is not an encpipe manifest", hint="name the dataset's folder or URL")
    raw = strictjson.loads(line, what=_WHAT)
    fields = Fields(raw, what=_WHAT)
    _check_format(fields)
    file_list = fields.fields("file_list")
    core = Core(
        dataset_id=fields.hex_id("dataset_id"),
        generation=fields.integer("generation"),
        commit_id=fields.hex_id("commit_id"),
        created=fields.text("created"),
        footer_key=fields.match("footer_key", KEY_NAME),
        list_id=file_list.hex_id("id"),
        list_sha256=file_list.sha256("sha256"),
        keks=parse_keks(fields),
        raw=raw,
    )
    core.active(core.footer_key)
    return core


def _check_format(core: Fields) -> None:
    version = core.text("format")
    if version != FORMAT:
        newer = version.startswith("encpipe/")
        raise FormatError(
            f"the dataset has format {version[:40]!r}; this version reads {FORMAT!r}",
            hint="upgrade encpipe: pip install -U encpipe" if newer else "name an encpipe dataset",
            code="format-newer" if newer else "format",
        )
    unknown = sorted(set(core.texts("requires", limit=64)) - REQUIRES)
    if unknown:
        named = ", ".join(repr(name[:40]) for name in unknown[:4])
        raise FormatError(
            f"the dataset requires {named}, which this version does not know",
            hint="upgrade encpipe: pip install -U encpipe",
            code="format-newer",
        )


def parse_keks(fields: Fields) -> tuple[KekRecord, ...]:
    """The KEK records in field `keks`: ids unique, at most one that is not retired for each key name."""
    keks = tuple(_parse_kek(item) for item in fields.array("keks", limit=MAX_KEKS))
    current = [kek.key_name for kek in keks if kek.state != "retired"]
    if len({kek.id for kek in keks}) != len(keks) or len(set(current)) != len(current):
        fields.refuse("names a KEK twice, or two current KEKs for one key name")
    return keks


def _parse_kek(item: Any) -> KekRecord:
    fields = Fields(item, what="a KEK of the manifest")
    state = fields.text("state")
    if state not in STATES:
        fields.refuse(f"has the state {state[:40]!r}")
    return KekRecord(
        id=fields.hex_id("id"),
        key_name=fields.match("key_name", KEY_NAME),
        created=fields.text("created"),
        commitment=fields.sha256("commitment"),
        state=state,
        extra=fields.others("id", "key_name", "created", "commitment", "state"),
    )


def macs_json(macs: Mapping[str, bytes]) -> dict[str, str]:
    """The JSON of core MACs, as `parse_macs` reads it."""
    return {kek_id: tag.hex() for kek_id, tag in macs.items()}


def parse_macs(fields: Fields) -> dict[str, bytes]:
    """The MACs in field `core_macs`, by KEK id."""
    entries = fields.object("core_macs", limit=MAX_KEKS)
    macs = Fields(entries, what="the core MACs")
    return {kek_id: macs.sha256(kek_id) for kek_id in entries}
