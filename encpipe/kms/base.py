"""The contract of a key service. `encpipe.testing` has the suite that every back end must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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
