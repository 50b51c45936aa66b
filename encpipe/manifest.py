"""The manifest: the one object that makes a folder of files a dataset. No I/O here.

Three JSON lines (docs/format.md, "Manifest"). Rules enforced:

- line 1, the core, names dataset, generation, file list (with its SHA-256) and KEKs; it carries one MAC
  under every active KEK, so that no holder of one key can forge what another key protects;
- line 2 holds what re-wrap, grant and revoke change: wrappings and retained older cores;
- line 3 holds the tags. They cover the stored bytes of lines 1 and 2; nothing is written again to check;
- every field is checked before it is used, and nothing in here is trusted before its MAC was checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from encpipe import aead, strictjson
from encpipe.aead import Label
from encpipe.errors import FormatError, ManifestError, StaleDatasetError, UnwrapError
from encpipe.keys import KEY_NAME, KeyContext, Secret, WrappedKey
from encpipe.strictjson import Fields

FORMAT: Final = "encpipe/1"
REQUIRES: Final[frozenset[str]] = frozenset()
"""Features that a dataset may require and this version honours."""

MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_KEKS: Final = 100_000
MAX_WRAPPINGS: Final = 64
"""Wrappings one KEK may have."""
MAX_BLOB_BYTES: Final = 16 << 10
"""Length of one wrapping."""
RETAINED_GENERATIONS: Final = 16
"""Older generations that stay readable after a commit; `gc` removes what falls out."""
MAX_RETAINED: Final = 1000
STATES: Final = ("active", "retired", "shredded")


@dataclass(frozen=True)
class KekRecord:
    """What the core says of one KEK. `commitment` fixes the KEK's bytes without showing them."""

    id: str
    key_name: str
    created: str
    commitment: bytes
    state: str

    def as_json(self) -> dict[str, Any]:
        return {
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
        """All key names, the footer key first."""
        others = sorted({kek.key_name for kek in self.keks} - {self.footer_key})
        return (self.footer_key, *others)

    def as_json(self) -> dict[str, Any]:
        return {
            **self.raw,
            "format": FORMAT,
            "requires": list(self.raw.get("requires", ())),
            "dataset_id": self.dataset_id,
            "generation": self.generation,
            "commit_id": self.commit_id,
            "created": self.created,
            "footer_key": self.footer_key,
            "file_list": {"id": self.list_id, "sha256": self.list_sha256.hex()},
            "keks": [kek.as_json() for kek in self.keks],
        }


@dataclass(frozen=True)
class TaggedCore:
    """A core with its stored bytes and its MACs by KEK id: of the newest generation or a retained one."""

    core: Core
    line: bytes = field(repr=False)
    macs: Mapping[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the core's stored bytes, hex: what pins, resume states and signatures bind to."""
        return hashlib.sha256(self.line).hexdigest()

    def context(self, kek: KekRecord) -> KeyContext:
        """What the wrappings of `kek` are bound to."""
        return KeyContext(self.core.dataset_id, kek.key_name, kek.id)

    def check(self, kek_id: str, kek: Secret) -> None:
        """Raise unless `kek` is the committed one and its MAC covers the core.

        To be called for every KEK a reader gets hold of: `UnwrapError` or `ManifestError`.
        """
        check_commitment(self.core.kek(kek_id), kek)
        tag = self.macs.get(kek_id)
        if tag is None:
            raise ManifestError(f"the manifest lacks the core MAC under KEK {kek_id}", code="manifest-mac")
        aead.check_mac(_core_mac_key(kek, self.core), self.line, tag, what="the manifest's core")


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest. Nothing in it is to be trusted before `head.check` and `check_all` passed."""

    head: TaggedCore
    revision: int
    wrappings: Mapping[str, tuple[WrappedKey, ...]]
    retained: tuple[TaggedCore, ...]
    manifest_mac: bytes
    signatures: tuple[Mapping[str, Any], ...]
    keys_line: bytes = field(repr=False)
    keys_raw: Mapping[str, Any] = field(repr=False)

    @property
    def core(self) -> Core:
        """The newest generation's core."""
        return self.head.core

    @property
    def history(self) -> tuple[TaggedCore, ...]:
        """What a commit on top of this one retains, newest last."""
        return (*self.retained, self.head)[-RETAINED_GENERATIONS:]

    def generation(self, number: int) -> TaggedCore:
        """The core of a generation. Raises `StaleDatasetError` when it is not retained."""
        for tagged in (self.head, *self.retained):
            if tagged.core.generation == number:
                return tagged
        kept = ", ".join(str(t.core.generation) for t in (*self.retained, self.head))
        raise StaleDatasetError(
            f"generation {number} is not in the manifest: it was removed, or never was",
            hint=f"generations there are: {kept}",
        )

    def check_all(self, footer_kek: Secret) -> None:
        """Raise `ManifestError` unless the manifest MAC covers core and keys lines."""
        message = _manifest_message(self.head.line, self.keys_line)
        key = _manifest_mac_key(footer_kek, self.core)
        aead.check_mac(key, message, self.manifest_mac, what="the manifest")


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


def _core_mac_key(kek: Secret, core: Core) -> Secret:
    return aead.derive(kek, Label.CORE_MAC, bytes.fromhex(core.dataset_id))


def _manifest_mac_key(footer_kek: Secret, core: Core) -> Secret:
    return aead.derive(footer_kek, Label.MANIFEST_MAC, bytes.fromhex(core.dataset_id))


def _manifest_message(core_line: bytes, keys_line: bytes) -> bytes:
    return core_line + b"\n" + keys_line + b"\n"


def build(
    core: Core,
    *,
    revision: int,
    wrappings: Mapping[str, Iterable[WrappedKey]],
    retained: Iterable[TaggedCore],
    keks: Mapping[str, Secret],
    keys_raw: Mapping[str, Any] | None = None,
) -> bytes:
    """The bytes of a manifest with a new core. `keks` must hold every active KEK.

    Raises `KeyError` when one is missing: a core without the MAC of every key name is never built.
    """
    core_line = strictjson.dumps(core.as_json())
    core_macs = {
        kek.id: aead.mac(_core_mac_key(keks[kek.id], core), core_line)
        for kek in core.keks
        if kek.state == "active"
    }
    keys = {
        **(keys_raw or {}),
        "revision": revision,
        "wrappings": wrappings_json(wrappings),
        "retained": [{"core": r.line.decode(), "core_macs": _macs_json(r.macs)} for r in retained],
    }
    keys_line = strictjson.dumps(keys)
    footer_kek = keks[core.footer_kek.id]
    tags = {
        "core_macs": _macs_json(core_macs),
        "manifest_mac": aead.mac(
            _manifest_mac_key(footer_kek, core), _manifest_message(core_line, keys_line)
        ).hex(),
        "signatures": [],
    }
    return b"\n".join((core_line, keys_line, strictjson.dumps(tags), b""))


def _macs_json(macs: Mapping[str, bytes]) -> dict[str, str]:
    return {kek_id: tag.hex() for kek_id, tag in macs.items()}


def _wrapping_json(wrapped: WrappedKey) -> dict[str, Any]:
    return {
        "master_key": wrapped.master_key,
        "version": wrapped.version,
        "blob": aead.to_text(wrapped.blob),
        "created": wrapped.created,
    }


def parse(data: bytes) -> Manifest:
    """The manifest in `data`. Raises `FormatError` for another or a newer format, `ManifestError` else."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    lines = data.split(b"\n")
    _check_format(lines[0])
    if len(lines) != 4 or lines[3]:
        raise ManifestError("the manifest is not three lines: it was cut or edited")
    core_line, keys_line, tags_line = lines[:3]
    keys_raw = strictjson.loads(keys_line, what="the manifest's keys line")
    keys = Fields(keys_raw, what="the manifest's keys line")
    tags = Fields(strictjson.loads(tags_line, what="the manifest's tags line"), what="the tags line")
    return Manifest(
        head=TaggedCore(_parse_core(core_line), core_line, _parse_macs(tags)),
        revision=keys.integer("revision"),
        wrappings=parse_wrappings(keys),
        retained=_parse_retained(keys),
        manifest_mac=tags.sha256("manifest_mac"),
        signatures=tuple(tags.array("signatures", limit=MAX_WRAPPINGS)),
        keys_line=keys_line,
        keys_raw=keys_raw,
    )


def _check_format(core_line: bytes) -> None:
    if not core_line.startswith(b"{"):
        raise FormatError("this is not an encpipe manifest", hint="name the dataset's folder or URL")
    core = Fields(strictjson.loads(core_line, what="the manifest's core"), what="the manifest's core")
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
        raise FormatError(
            f"the dataset requires {', '.join(unknown)}, which this version does not know",
            hint="upgrade encpipe: pip install -U encpipe",
            code="format-newer",
        )


def _parse_core(line: bytes) -> Core:
    raw = strictjson.loads(line, what="the manifest's core")
    fields = Fields(raw, what="the manifest's core")
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


def parse_keks(fields: Fields) -> tuple[KekRecord, ...]:
    """The KEK records in field `keks`: ids unique, one that is not retired for each key name."""
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
    )


def wrappings_json(wrappings: Mapping[str, Iterable[WrappedKey]]) -> dict[str, Any]:
    """The JSON of wrappings by KEK id, as `parse_wrappings` reads it."""
    return {kek_id: [_wrapping_json(w) for w in some] for kek_id, some in wrappings.items()}


def parse_wrappings(fields: Fields) -> dict[str, tuple[WrappedKey, ...]]:
    """The wrappings in field `wrappings`, by KEK id."""
    found = {}
    for kek_id, items in fields.object("wrappings", limit=MAX_KEKS).items():
        if not isinstance(items, list) or len(items) > MAX_WRAPPINGS:
            fields.refuse(f"has no list of at most {MAX_WRAPPINGS} wrappings for a KEK")
        found[kek_id] = tuple(_parse_wrapping(item) for item in items)
    return found


def _parse_wrapping(item: Any) -> WrappedKey:
    fields = Fields(item, what="a wrapping")
    return WrappedKey(
        master_key=fields.text("master_key"),
        blob=fields.data("blob", limit=MAX_BLOB_BYTES),
        version=fields.text("version"),
        created=fields.text("created"),
    )


def _parse_retained(fields: Fields) -> tuple[TaggedCore, ...]:
    found = []
    for item in fields.array("retained", limit=MAX_RETAINED):
        entry = Fields(item, what="a retained generation")
        line = entry.text("core", limit=MAX_MANIFEST_BYTES).encode()
        found.append(TaggedCore(_parse_core(line), line, _parse_macs(entry)))
    return tuple(found)


def _parse_macs(fields: Fields) -> dict[str, bytes]:
    entries = fields.object("core_macs", limit=MAX_KEKS)
    macs = Fields(entries, what="the core MACs")
    return {kek_id: macs.sha256(kek_id) for kek_id in entries}
