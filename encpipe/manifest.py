"""The manifest: the one object that makes a folder of files a dataset. No I/O here.

Three JSON lines (docs/format.md, "Manifest"). Rules enforced:

- line 1, the core (`encpipe.core`), fixes the state of the data, with one MAC under every active KEK;
- line 2 holds what re-wrap, grant and revoke change: wrappings and retained older cores;
- line 3 holds the tags. They cover the stored bytes of lines 1 and 2; nothing is written again to check;
- every field is checked before it is used, and nothing in here is trusted before its MAC was checked;
- nothing is written that would not be read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from encpipe import aead, strictjson
from encpipe.aead import Label
from encpipe.core import (
    FORMAT,
    MAX_KEKS,
    REQUIRES,
    STATES,
    Core,
    KekRecord,
    TaggedCore,
    check_commitment,
    kek_commitment,
    macs_json,
    parse_core,
    parse_keks,
    parse_macs,
    tag,
)
from encpipe.errors import EncpipeError, IntegrityError, ManifestError, StaleDatasetError
from encpipe.keys import Secret, WrappedKey
from encpipe.strictjson import Fields

__all__ = [
    "FORMAT",
    "MAX_KEKS",
    "REQUIRES",
    "STATES",
    "Core",
    "KekRecord",
    "Manifest",
    "TaggedCore",
    "build",
    "check_commitment",
    "kek_commitment",
    "parse",
    "parse_keks",
    "parse_wrappings",
    "rebuild",
    "wrappings_json",
]

MAX_MANIFEST_BYTES: Final = 16 << 20
MAX_WRAPPINGS: Final = 64
"""Wrappings one KEK may have."""
MAX_BLOB_BYTES: Final = 16 << 10
"""Length of one wrapping."""
MAX_SIGNATURES: Final = 64
RETAINED_GENERATIONS: Final = 16
"""Older generations that stay readable after a commit; `gc` removes what falls out."""
MAX_RETAINED: Final = 1000
Sign = Callable[[TaggedCore], Mapping[str, Any]]
"""Makes the signature of a core, as it stands in line 3."""
_KEK_ID: Final = re.compile(r"[0-9a-f]{32}")
_MASTER_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}:[!#-\[\]-~]{1,2000}")
"""A master key's URI: printable ASCII without blank, quote and backslash, since errors and hints show it."""


@dataclass(frozen=True)
class Manifest:
    """A parsed manifest. Nothing in it is to be trusted before `head.check` and `check_all` passed."""

    head: TaggedCore
    revision: int
    wrappings: Mapping[str, tuple[WrappedKey, ...]]
    retained: tuple[TaggedCore, ...]
    manifest_mac: bytes
    keys_line: bytes = field(repr=False)
    keys_raw: Mapping[str, Any] = field(repr=False)

    @property
    def core(self) -> Core:
        """The newest generation's core."""
        return self.head.core

    @property
    def signatures(self) -> tuple[Mapping[str, Any], ...]:
        """Those of the newest generation, as they were read."""
        return self.head.signatures

    @property
    def history(self) -> tuple[TaggedCore, ...]:
        """What a commit on top of this one retains, newest last."""
        return (*self.retained, self.head)[-RETAINED_GENERATIONS:]

    def generation(self, number: int) -> TaggedCore:
        """The core of a generation. Raises `StaleDatasetError` when it is not retained."""
        for tagged in (self.head, *self.retained):
            if tagged.core.generation == number:
                return tagged
        kept = ", ".join(str(t.core.generation) for t in (*self.retained, self.head)[-20:])
        raise StaleDatasetError(
            f"generation {number} is not in the manifest: it was removed, or never was",
            hint=f"generations there are: {kept}",
        )

    def check_all(self, footer_kek: Secret) -> None:
        """Raise `ManifestError` unless the manifest MAC covers core and keys lines."""
        message = _message(self.head.line, self.keys_line)
        aead.check_mac(_mac_key(footer_kek, self.core), message, self.manifest_mac, what="the manifest")


def _mac_key(footer_kek: Secret, core: Core) -> Secret:
    return aead.derive(footer_kek, Label.MANIFEST_MAC, bytes.fromhex(core.dataset_id))


def _message(core_line: bytes, keys_line: bytes) -> bytes:
    return core_line + b"\n" + keys_line + b"\n"


def build(
    core: Core,
    *,
    revision: int,
    wrappings: Mapping[str, Iterable[WrappedKey]],
    retained: Iterable[TaggedCore],
    keks: Mapping[str, Secret],
    keys_raw: Mapping[str, Any] | None = None,
    sign: Sign | None = None,
    footer_before: str | None = None,
) -> bytes:
    """The bytes of a manifest with a new core, signed by `sign`. `keks` must hold every active KEK, and the
    footer KEK of the generation before, whose id is `footer_before`.

    Raises `KeyError` when one is missing: a core without the MAC of every key name is never built. Raises
    `EncpipeError` `unsupported` when `parse` would not take the result, for example for its size.
    """
    head = tag(core, keks, before=footer_before)
    if sign is not None:
        head = replace(head, signatures=(sign(head),))
    return _assemble(
        head,
        keys_raw or {},
        revision=revision,
        wrappings=wrappings,
        retained=retained,
        mac_key=_mac_key(keks[core.footer_kek.id], core),
    )


def rebuild(
    found: Manifest,
    *,
    revision: int,
    wrappings: Mapping[str, Iterable[WrappedKey]],
    retained: Iterable[TaggedCore],
    footer_kek: Secret,
) -> bytes:
    """The bytes of `found` with other wrappings or retained generations: for re-wrap, grant, revoke and gc.

    Line 1 stays byte for byte, core MACs and signatures as they are: pins and resume states hold on.
    `footer_kek` is that of the newest generation; `found` was checked with it. Raises `EncpipeError`
    `unsupported` when `parse` would not take the result.
    """
    return _assemble(
        found.head,
        found.keys_raw,
        revision=revision,
        wrappings=wrappings,
        retained=retained,
        mac_key=_mac_key(footer_kek, found.core),
    )


def _assemble(
    head: TaggedCore,
    keys_raw: Mapping[str, Any],
    *,
    revision: int,
    wrappings: Mapping[str, Iterable[WrappedKey]],
    retained: Iterable[TaggedCore],
    mac_key: Secret,
) -> bytes:
    keys = {
        **keys_raw,
        "revision": revision,
        "wrappings": wrappings_json(wrappings),
        "retained": [older.as_json() for older in retained],
    }
    keys_line = strictjson.dumps(keys)
    tags = {
        "core_macs": macs_json(head.macs),
        "manifest_mac": aead.mac(mac_key, _message(head.line, keys_line)).hex(),
        "signatures": list(head.signatures),
    }
    data = b"\n".join((head.line, keys_line, strictjson.dumps(tags), b""))
    try:
        parse(data)
    except IntegrityError as error:
        raise EncpipeError(
            f"no reader would take the manifest of this write: {error.message}",
            hint="nothing was committed; shorten what it names, or write the dataset anew",
            code="unsupported",
        ) from None
    return data


def parse(data: bytes) -> Manifest:
    """The manifest in `data`. Raises `FormatError` for another or a newer format, `ManifestError` else."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"the manifest is larger than {MAX_MANIFEST_BYTES} bytes")
    core_line, *rest = data.split(b"\n", 3)
    core = parse_core(core_line)
    if len(rest) != 3 or rest[2]:
        raise ManifestError("the manifest is not three lines: it was cut or edited")
    keys_line, tags_line, _ = rest
    keys_raw = strictjson.loads(keys_line, what="the manifest's keys line")
    keys = Fields(keys_raw, what="the manifest's keys line")
    tags = Fields(strictjson.loads(tags_line, what="the manifest's tags line"), what="the tags line")
    return Manifest(
        head=TaggedCore(core, core_line, parse_macs(tags), signatures=_parse_signatures(tags)),
        revision=keys.integer("revision"),
        wrappings=parse_wrappings(keys),
        retained=_parse_retained(keys, core),
        manifest_mac=tags.sha256("manifest_mac"),
        keys_line=keys_line,
        keys_raw=keys_raw,
    )


def wrappings_json(wrappings: Mapping[str, Iterable[WrappedKey]]) -> dict[str, Any]:
    """The JSON of wrappings by KEK id, as `parse_wrappings` reads it."""
    return {kek_id: [_wrapping_json(w) for w in some] for kek_id, some in wrappings.items()}


def _wrapping_json(wrapped: WrappedKey) -> dict[str, Any]:
    return {
        **wrapped.extra,
        "master_key": wrapped.master_key,
        "version": wrapped.version,
        "blob": aead.to_text(wrapped.blob),
        "created": wrapped.created,
    }


def parse_wrappings(fields: Fields) -> dict[str, tuple[WrappedKey, ...]]:
    """The wrappings in field `wrappings`, by KEK id."""
    found = {}
    for kek_id, items in fields.object("wrappings", limit=MAX_KEKS).items():
        if not _KEK_ID.fullmatch(kek_id) or not isinstance(items, list) or len(items) > MAX_WRAPPINGS:
            fields.refuse(f"has no list of at most {MAX_WRAPPINGS} wrappings for a KEK")
        found[kek_id] = tuple(_parse_wrapping(item) for item in items)
    return found


def _parse_wrapping(item: Any) -> WrappedKey:
    fields = Fields(item, what="a wrapping")
    return WrappedKey(
        master_key=fields.match("master_key", _MASTER_KEY),
        blob=fields.data("blob", limit=MAX_BLOB_BYTES),
        version=fields.text("version"),
        created=fields.text("created"),
        extra=fields.others("master_key", "blob", "version", "created"),
    )


def _parse_retained(fields: Fields, head: Core) -> tuple[TaggedCore, ...]:
    found = []
    for item in fields.array("retained", limit=MAX_RETAINED):
        entry = Fields(item, what="a retained generation")
        line = entry.text("core", limit=MAX_MANIFEST_BYTES).encode()
        extra = entry.others("core", "core_macs")
        signatures = _parse_signatures(entry) if "signatures" in extra else ()
        extra.pop("signatures", None)
        found.append(TaggedCore(parse_core(line), line, parse_macs(entry), extra, signatures))
    numbers = [tagged.core.generation for tagged in found] + [head.generation]
    if numbers != sorted(set(numbers)) or any(t.core.dataset_id != head.dataset_id for t in found):
        fields.refuse("retains what is no older generation of this dataset")
    return tuple(found)


def _parse_signatures(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    found = [Fields(item, what="a signature") for item in fields.array("signatures", limit=MAX_SIGNATURES)]
    return tuple({name: item.text(name) for name in ("signer", "signature")} for item in found)
