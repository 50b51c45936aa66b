"""The configuration: TOML to frozen dataclasses. An unknown key is an error.

Found in this order, the first wins, nothing is merged: the path given, `ENCPIPE_CONFIG`, `./encpipe.toml`,
`$XDG_CONFIG_HOME/encpipe/config.toml`. The environment is read when a configuration is loaded, never at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encpipe.policy import Policy


@dataclass(frozen=True)
class KeyringConfig:
    """Where the local keyring lies and how it is unlocked.

    `unlock` is `prompt`, `env:NAME` (a passphrase), `file:PATH` (a passphrase) or `key-file:PATH` (32 random
    bytes, base64). None for `path` means `$XDG_DATA_HOME/encpipe/keyring.json`.
    """

    path: Path | None = None
    unlock: str = "prompt"


@dataclass(frozen=True)
class TlsConfig:
    """What every outgoing connection obeys. None means the system's CA store."""

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    allow_plain_http_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrustConfig:
    """Which master keys may open a dataset at all, by exact URI, and whose signatures count."""

    master_keys: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """One configuration. `kms` and `storage` hold the tables `kms.*` and `storage.*` by name."""

    keyring: KeyringConfig = field(default_factory=KeyringConfig)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    trust: TrustConfig = field(default_factory=TrustConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    kms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: Path | None = None
