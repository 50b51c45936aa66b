"""The keyring file: parse, open, seal. Pure: no I/O. docs/keyring.md is the specification.

Two JSON lines. The first, the header, is readable without a key and authenticated as AAD; the second holds
the sealed master keys. Rules enforced here:

- a checksum tells damage from a wrong passphrase before a passphrase is asked for; it is no protection,
- Argon2id parameters are bounded before they are used,
- the commitment is checked before the seal, so a file opens under one passphrase only,
- every byte counts: the header's are authenticated as stored, the second line has one spelling only.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Any, ClassVar, Final, Literal, NoReturn, cast

from encpipe import aead, strictjson
from encpipe.aead import Label
from encpipe.errors import ConfigError, DecryptionError, FormatError, IntegrityError, KmsError
from encpipe.keys import KEY_BYTES, KEY_NAME, Secret
from encpipe.kms.keyringkeys import MAX_KEYS, MAX_VERSION, MAX_VERSIONS, STATES, Keyring, KeyVersion

MAX_FILE_BYTES: Final = 4 << 20
"""A keyring file may be this long."""
SALT_BYTES: Final = 16
SEAL_ID_BYTES: Final = 16

FORMAT: Final = "encpipe-keyring"
FORMAT_VERSION: Final = 1
_CREATED: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_HEADER_FIELDS: Final = frozenset({"format", "version", "protection", "commitment", "keys", "seal_id"})

_RESTORE: Final = "restore the keyring from a backup; nothing was changed"

ProtectionKind = Literal["passphrase", "key-file"]


def damaged(what: str, why: str) -> NoReturn:
    """Raise the `IntegrityError` of a damaged keyring."""
    raise IntegrityError(f"{what} {why}", hint=_RESTORE, code="keyring-damaged")


@dataclass(frozen=True)
class KdfParams:
    """Argon2id cost. The default is the second choice of RFC 9106, section 4: 64 MiB, 3 passes, 4 lanes.

    Raises `ValueError` out of bounds: 8 MiB .. 1 GiB, 1 .. 16 passes, 1 .. 16 lanes.
    """

    FAST_FOR_TESTS: ClassVar[KdfParams]
    """The lowest cost that parses. Never for a keyring that protects anything."""

    memory_kib: int = 64 << 10
    passes: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        if not (8 << 10 <= self.memory_kib <= 1 << 20 and 1 <= self.passes <= 16 and 1 <= self.lanes <= 16):
            raise ValueError("Argon2id parameters are out of bounds")


KdfParams.FAST_FOR_TESTS = KdfParams(memory_kib=8 << 10, passes=1, lanes=1)


@dataclass(frozen=True)
class Protection:
    """What the keyring is sealed under: a passphrase (`kdf` set) or a key file (`kdf` None)."""

    kind: ProtectionKind
    salt: bytes
    kdf: KdfParams | None = None

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"kind": self.kind, "salt": aead.to_text(self.salt)}
        if self.kdf is not None:
            value["kdf"] = "argon2id"
            value |= {name: getattr(self.kdf, name) for name in ("memory_kib", "passes", "lanes")}
        return value


@dataclass(frozen=True)
class SealedKeyring:
    """A parsed keyring file, not opened. `keys` is not authenticated until `open` has passed."""

    protection: Protection
    keys: Mapping[str, tuple[KeyVersion, ...]]
    what: str
    _header: bytes
    _commitment: bytes
    _seal_id: bytes
    _sealed: bytes

    def open(self, root: Secret) -> Keyring:
        """The master keys, opened with the root key that the passphrase or key file gives.

        Raises `KmsError` `passphrase-wrong` for another root key, `IntegrityError` `keyring-damaged` for
        edited bytes. The former is no denial: readers that go on without a denied key must not go on here.
        """
        if not compare_digest(_commitment(root, self.protection.salt), self._commitment):
            noun = "passphrase" if self.protection.kind == "passphrase" else "key file"
            raise KmsError(
                f"this {noun} does not open {self.what}",
                hint=f"check the {noun}: without the right one nobody can open this keyring",
                code="passphrase-wrong",
            )
        key = aead.derive(root, Label.KEYRING_SEAL, self._seal_id)
        try:
            plain = aead.open_sealed(key, self._sealed, aad=_aad(self._header))
            return Keyring.unpack(self.keys, plain)
        except (DecryptionError, ValueError):
            damaged(self.what, "does not open: it was edited")


def seal(keyring: Keyring, root: Secret, protection: Protection) -> bytes:
    """The bytes of a keyring file. Every call seals under a key of its own. `ConfigError` if too long."""
    seal_id = secrets.token_bytes(SEAL_ID_BYTES)
    header = strictjson.dumps(
        {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "protection": protection.as_json(),
            "commitment": aead.to_text(_commitment(root, protection.salt)),
            "seal_id": aead.to_text(seal_id),
            "keys": {name: [v.as_json() for v in versions] for name, versions in keyring.versions.items()},
        }
    )
    key = aead.derive(root, Label.KEYRING_SEAL, seal_id)
    sealed = aead.seal(key, keyring.pack(), aad=_aad(header))
    data = header + b"\n" + _second_line(header, sealed) + b"\n"
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            "the keyring would be too long", hint="spread the master keys over several keyrings"
        )
    return data


def parse(data: bytes, *, what: str) -> SealedKeyring:
    """Read a keyring file's bytes. Asks for no key.

    Raises `IntegrityError` `keyring-damaged`, or `FormatError` `format` for something else than a keyring and
    `format-newer` for a newer one. `what` names the file in errors.
    """
    if len(data) > MAX_FILE_BYTES:
        damaged(what, f"is longer than {MAX_FILE_BYTES} bytes")
    if not data:
        damaged(what, "is empty")
    header, _, rest = data.partition(b"\n")
    fields = _fields(header, what)
    if fields.text("format") != FORMAT:
        raise FormatError(f"{what} is not a keyring", hint="check the path")
    if fields.integer("version") != FORMAT_VERSION:
        raise FormatError(
            f"{what} was written by a newer encpipe", hint="upgrade encpipe", code="format-newer"
        )
    sealed = _fields(rest, what).data("sealed", limit=MAX_FILE_BYTES)
    if rest != _second_line(header, sealed) + b"\n":
        damaged(what, "was damaged: its checksum does not fit its bytes")
    if set(strictjson.loads(header, what=what, code="keyring-damaged")) != _HEADER_FIELDS:
        damaged(what, "has other fields than a keyring")
    return SealedKeyring(
        protection=_protection(fields.fields("protection"), what),
        keys=_keys(fields.object("keys", limit=MAX_KEYS), what),
        what=what,
        _header=header,
        _commitment=fields.data("commitment", limit=KEY_BYTES),
        _seal_id=fields.data("seal_id", limit=SEAL_ID_BYTES),
        _sealed=sealed,
    )


def _commitment(root: Secret, salt: bytes) -> bytes:
    return aead.derive(root, Label.KEYRING_COMMITMENT, salt).reveal()


def _aad(header: bytes) -> bytes:
    return aead.encode_aad(Label.KEYRING_SEAL, header)


def _second_line(header: bytes, sealed: bytes) -> bytes:
    checksum = sha256(header + b"\n" + sealed).hexdigest()
    return strictjson.dumps({"checksum": checksum, "sealed": aead.to_text(sealed)})


def _fields(line: bytes, what: str) -> strictjson.Fields:
    try:
        value = strictjson.loads(line, what=what, code="keyring-damaged")
    except IntegrityError as error:
        error.hint = _RESTORE
        raise
    return strictjson.Fields(value, what=what, error=IntegrityError, code="keyring-damaged")


def _protection(fields: strictjson.Fields, what: str) -> Protection:
    kind, salt = fields.text("kind"), fields.data("salt", limit=SALT_BYTES)
    if kind not in ("passphrase", "key-file") or len(salt) != SALT_BYTES:
        damaged(what, "has a protection that this version does not know")
    kdf = None
    if kind == "passphrase":
        if fields.text("kdf") != "argon2id":
            damaged(what, "names a key derivation that this version does not know")
        try:
            kdf = KdfParams(fields.integer("memory_kib"), fields.integer("passes"), fields.integer("lanes"))
        except ValueError:
            damaged(what, "has Argon2id parameters out of bounds")
    return Protection(cast(ProtectionKind, kind), salt, kdf)


def _keys(value: dict[str, Any], what: str) -> dict[str, tuple[KeyVersion, ...]]:
    keys = {}
    for name in sorted(value):
        if not KEY_NAME.fullmatch(name):
            damaged(what, "has a master key with a malformed name")
        named = f"{what}, master key {name}"
        entries = strictjson.Fields(value, what=what, error=IntegrityError, code="keyring-damaged").array(
            name, limit=MAX_VERSIONS
        )
        versions = tuple(_version(entry, named) for entry in entries)
        numbers = [v.version for v in versions]
        if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 1 or numbers[-1] > MAX_VERSION:
            damaged(named, "has versions out of order")
        if [v.state for v in versions] != ["retired"] * (len(versions) - 1) + ["active"]:
            damaged(named, "has versions in states that do not fit")
        keys[name] = versions
    return keys


def _version(value: Any, what: str) -> KeyVersion:
    fields = strictjson.Fields(value, what=what, error=IntegrityError, code="keyring-damaged")
    state = fields.text("state")
    if state not in STATES:
        damaged(what, "has a version in a state that this version does not know")
    return KeyVersion(fields.integer("version"), fields.match("created", _CREATED), state)
