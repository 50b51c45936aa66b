"""Named, versioned master keys in memory. Pure: no I/O; every change gives a new `Keyring`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from encpipe.errors import ConfigError, KeyNotFoundError
from encpipe.keys import KEY_BYTES, KEY_NAME, Secret

MAX_KEYS: Final = 1000
"""Master keys in one keyring."""
MAX_VERSIONS: Final = 1000
"""Versions of one master key."""
MAX_VERSION: Final = 2**32 - 1
"""A wrapping has four bytes for the version."""
STATES: Final = ("active", "retired")
"""An active version wraps and unwraps, a retired one only unwraps. The newest version is the active one."""

ENV_KEY_NAME: Final = "env"
"""The name of the one master key that an environment variable gives; no keyring may hold another."""


@dataclass(frozen=True)
class KeyVersion:
    """One version of a master key, without its bytes. `created` is UTC, RFC 3339."""

    version: int
    created: str
    state: str

    def as_json(self) -> dict[str, Any]:
        return {"version": self.version, "created": self.created, "state": self.state}


@dataclass(frozen=True)
class Keyring:
    """The master keys of an opened keyring: name -> versions, oldest first, and their bytes."""

    versions: Mapping[str, tuple[KeyVersion, ...]] = field(default_factory=dict)
    _secrets: Mapping[tuple[str, int], Secret] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(sorted(self.versions.items()))))

    def active(self, name: str) -> KeyVersion:
        """The version that wraps. Raises `KeyNotFoundError`."""
        self._must_have(name)
        return self.versions[name][-1]

    def secret(self, name: str, version: int) -> Secret:
        """The bytes of one version. Raises `KeyNotFoundError`."""
        self._must_have(name)
        if (name, version) not in self._secrets:
            raise KeyNotFoundError(
                f"the keyring has the master key {name!r}, but not its version {version}",
                hint="the keyring is older than the wrapping: import a newer export of this key",
            )
        return self._secrets[name, version]

    def with_key(self, name: str, *, created: str) -> Keyring:
        """With a fresh master key. Raises `ConfigError` for a bad name or (`exists`) a taken one."""
        if not KEY_NAME.fullmatch(name) or name == ENV_KEY_NAME:
            raise ConfigError(
                f"a master key cannot have the name {name[:40]!r}",
                hint="a name is a lower-case letter, then up to 31 of a-z, 0-9, _ and -; "
                f"{ENV_KEY_NAME!r} is the key of an environment variable",
            )
        if name in self.versions:
            raise ConfigError(
                f"the keyring already has a master key {name!r}",
                hint="take another name, or give the key a new version: encpipe keys rotate",
                code="exists",
            )
        if len(self.versions) >= MAX_KEYS:
            raise ConfigError(f"a keyring holds at most {MAX_KEYS} master keys")
        return self._added(name, (), KeyVersion(1, created, "active"))

    def rotated(self, name: str, *, created: str) -> Keyring:
        """With a fresh version of a master key; the versions before stay and open what they wrapped."""
        number = self.active(name).version + 1
        if len(self.versions[name]) >= MAX_VERSIONS or number > MAX_VERSION:
            raise ConfigError(f"the master key {name!r} has {MAX_VERSIONS} versions, which is the limit")
        before = tuple(replace(v, state="retired") for v in self.versions[name])
        return self._added(name, before, KeyVersion(number, created, "active"))

    def without(self, name: str) -> Keyring:
        """The keyring with one master key less, all its versions. Raises `KeyNotFoundError`."""
        self._must_have(name)
        kept = {where: secret for where, secret in self._secrets.items() if where[0] != name}
        return Keyring({n: versions for n, versions in self.versions.items() if n != name}, kept)

    def only(self, name: str) -> Keyring:
        """The keyring with one master key left, all its versions. Raises `KeyNotFoundError`."""
        self._must_have(name)
        kept = {where: secret for where, secret in self._secrets.items() if where[0] == name}
        return Keyring({name: self.versions[name]}, kept)

    def merged(self, other: Keyring) -> Keyring:
        """With the master keys of `other`: new names, and new versions of known ones.

        Raises `ConfigError` `exists` when the two hold different keys under one name and version.
        """
        for where, secret in other._secrets.items():
            if where in self._secrets and self._secrets[where] != secret:
                raise ConfigError(
                    f"the keyring holds another master key {where[0]!r} of version {where[1]}",
                    hint="keep the two in separate keyring files: wrappings are bound to the key's name",
                    code="exists",
                )
        versions = dict(self.versions)
        for name, theirs in other.versions.items():
            union = {v.version: v for v in (*theirs, *versions.get(name, ()))}
            ordered = [replace(union[number], state="retired") for number in sorted(union)]
            versions[name] = (*ordered[:-1], replace(ordered[-1], state="active"))
        if len(versions) > MAX_KEYS or any(len(v) > MAX_VERSIONS for v in versions.values()):
            raise ConfigError(f"a keyring holds at most {MAX_KEYS} keys of {MAX_VERSIONS} versions")
        return Keyring(versions, {**other._secrets, **self._secrets})

    def pack(self) -> bytes:
        """All key bytes in the order of `versions`: what the file seals."""
        return b"".join(
            self._secrets[name, v.version].reveal()
            for name, versions in self.versions.items()
            for v in versions
        )

    @classmethod
    def unpack(cls, versions: Mapping[str, tuple[KeyVersion, ...]], packed: bytes) -> Keyring:
        """The inverse of `pack`, for authenticated input."""
        order = [(name, v.version) for name in sorted(versions) for v in versions[name]]
        if len(packed) != len(order) * KEY_BYTES:
            raise ValueError("not the keys of these versions")
        keys = (Secret(packed[i * KEY_BYTES : (i + 1) * KEY_BYTES]) for i in range(len(order)))
        return cls(versions, dict(zip(order, keys, strict=True)))

    def _added(self, name: str, before: tuple[KeyVersion, ...], new: KeyVersion) -> Keyring:
        versions = {**self.versions, name: (*before, new)}
        return Keyring(versions, {**self._secrets, (name, new.version): Secret.random(KEY_BYTES)})

    def _must_have(self, name: str) -> None:
        if name not in self.versions:
            known = ", ".join(list(self.versions)[:12]) or "none"
            raise KeyNotFoundError(f"the keyring has no master key {name!r}", hint=f"it has: {known}")
