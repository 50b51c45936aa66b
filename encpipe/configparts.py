"""What a configuration is made of: one frozen dataclass for each table whose keys are fixed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from encpipe.errors import ConfigError


@dataclass(frozen=True)
class KeyringConfig:
    """Where the local keyring lies and how it is unlocked.

    `unlock` is `prompt`, `env:NAME` or `file:PATH` (a passphrase), `key-file:PATH` (32 random bytes, base64),
    or `key-env:NAME` (the same, and itself the one master key: there is no file). None for `path` means
    `$XDG_DATA_HOME/encpipe/keyring.json`.
    """

    path: Path | None = None
    unlock: str = "prompt"


@dataclass(frozen=True)
class AuditConfig:
    """Where the audit log goes: `file:PATH`, `stderr`, `logger:NAME`, or None for none.

    With `required` an operation whose line the log does not take is refused.
    """

    sink: str | None = None
    required: bool = True


@dataclass(frozen=True)
class TlsConfig:
    """What every outgoing connection obeys. None means the system's CA store.

    `audit` is told when `allow_plain_http_to` is made use of; a `Config` sets it to its own table `audit`.
    """

    ca_file: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    allow_plain_http_to: tuple[str, ...] = ()
    audit: AuditConfig = field(default_factory=AuditConfig, compare=False, repr=False)


@dataclass(frozen=True)
class TrustConfig:
    """Which master keys may open a dataset at all, by exact URI, and whose signatures count.

    With `signers` a dataset is read, and written to, only if one of them signed it.
    """

    master_keys: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SigningConfig:
    """What writes are signed with: a private key in a file, or one that a key service keeps, by its
    URI. With neither they are not signed.

    Raises `ConfigError` for both.
    """

    key_file: Path | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.key_file is not None and self.key is not None:
            raise ConfigError(
                "the table signing names two keys, key_file and key",
                hint="leave one of them out; a second signature is added with: encpipe sign",
            )
