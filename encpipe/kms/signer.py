"""What a key service offers that signs too. Optional: `MasterKeys.signing_key` asks whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


@dataclass(frozen=True)
class PublicKey:
    """The public half of one version of a signing key: 32 bytes (RFC 8032). `version` is empty where the
    service has none."""

    version: str
    raw: bytes


class Signer(Protocol):
    """An Ed25519 key (RFC 8032) that never leaves its service.

    Both calls raise `ConfigError` for a key of another kind, `KeyNotFoundError`, `KeyAccessDeniedError`,
    `KmsUnavailableError` or `KmsError`, never an error of the service's SDK, and may be made by several
    threads.
    """

    @property
    def uri(self) -> str:
        """The URI that the configuration names this key by."""
        ...

    def public_keys(self) -> tuple[PublicKey, ...]:
        """Those of all versions that may sign now, the newest first; at least one. One call."""
        ...

    def sign(self, message: bytes, *, version: str) -> bytes:
        """The 64 bytes of PureEdDSA over the message itself, at most 4,096 bytes. One call.

        Not yet checked: `SigningKey` does that.
        """
        ...


@runtime_checkable
class SigningService(Protocol):
    """A key service that signs."""

    def signing_key(self, uri: str) -> Signer:
        """The signing key of this URI. Raises `ConfigError` for a malformed URI; no network call."""
        ...
