"""The contract of a key service. `encpipe.testing` has the suite that every back end must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from encpipe.config import KeyringConfig, TlsConfig
from encpipe.keys import MasterKey

AskPassphrase = Callable[[str], str]
"""Asks a person for a passphrase; the argument says what for. Only the command line has one."""


@dataclass(frozen=True)
class KmsSettings:
    """What a back end gets from the configuration: its own table and what concerns all.

    Endpoint, region and credentials come from here or the SDK's own chain, never from a dataset.
    """

    table: Mapping[str, Any] = field(default_factory=dict)
    keyring: KeyringConfig = field(default_factory=KeyringConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    ask_passphrase: AskPassphrase | None = None


class Kms(Protocol):
    """A key service, made once for a configuration with `KmsSettings` as its only argument.

    Making one does no I/O; connections are opened on the first wrap or unwrap.
    """

    def master_key(self, uri: str) -> MasterKey:
        """The master key of this URI. Raises `ConfigError` for a malformed URI; no network call."""
        ...

    def trusts(self, uri: str) -> bool:
        """Whether the service vouches for the URI by itself: the local keyring does for its own names.

        No network call. Every service but the local keyring answers False: the configuration decides.
        """
        ...


@dataclass(frozen=True)
class Destroyed:
    """What became of a master key.

    `until` is when its bytes will be gone, UTC, RFC 3339; until then the key is out of use, and whoever may
    do so can take it back. It is empty where they are gone. `beyond` names, for people to read, the copies
    that the service does not reach.
    """

    master_key: str
    until: str = ""
    beyond: str = ""


@runtime_checkable
class Destroyable(Protocol):
    """What a `MasterKey` is, too, where its service lets encpipe destroy it: all versions, for everybody.

    What only this master key opened is lost. Needs permissions that neither readers nor writers need; each
    back end names them. Both methods raise as `MasterKey` does, and `ConfigError` for a key that cannot be
    destroyed in this way.
    """

    def check_destroyable(self) -> None:
        """Raise what `destroy` would raise, as far as the service tells it beforehand. Changes nothing."""
        ...

    def destroy(self) -> Destroyed:
        """Destroy the master key, at the earliest time that the service allows.

        Asked for again where that time is yet to come, it answers the same; for a key that is gone it raises
        `KeyNotFoundError`.
        """
        ...
