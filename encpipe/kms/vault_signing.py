"""Signing keys in the transit engine of Vault or OpenBao: type `ed25519`, without derivation.

Permissions needed, as a policy: `read` on `MOUNT/keys/NAME` (its public keys), `update` on `MOUNT/sign/NAME`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from encpipe.errors import ConfigError, KmsError
from encpipe.kms.signer import PUBLIC_KEY_BYTES, PublicKey

if TYPE_CHECKING:
    from encpipe.kms.vault import VaultKms

KEY_TYPE: Final = "ed25519"
MAX_VERSIONS: Final = 1024
"""More versions of one key than this are not looked at."""
_VERSION: Final = re.compile(r"[1-9][0-9]{0,9}")
_SIGNATURE: Final = re.compile(r"vault:v(?P<version>[1-9][0-9]{0,9}):(?P<raw>[A-Za-z0-9+/]{86}==)")
_MAKE_ONE: Final = f"make one with: vault write transit/keys/NAME type={KEY_TYPE}"


@dataclass(frozen=True)
class VaultSigner:
    """One signing key of a transit engine. Nothing of it is looked up before the first call."""

    uri: str
    _service: VaultKms = field(repr=False)

    def public_keys(self) -> tuple[PublicKey, ...]:
        """Those of the versions that may sign (`min_encryption_version`), the newest first.

        Raises `ConfigError` for a key of another type, or a derived one.
        """
        data = self._service.read(self.uri)
        if data.get("type") != KEY_TYPE or data.get("derived"):
            raise ConfigError(f"{self.uri} is not an Ed25519 key without derivation", hint=_MAKE_ONE)
        found = _public_keys(data)
        if not found:
            raise KmsError(
                f"asked for the public keys of {self.uri}, the service answered with none",
                hint="is this the mount of a transit engine? check mount and address",
            )
        return found

    def sign(self, message: bytes, *, version: str) -> bytes:
        """`sign` with this version of the key."""
        body = {"input": base64.b64encode(message).decode("ascii"), "key_version": int(version)}
        data = self._service.call("sign", self.uri, body).get("data")
        signature = data.get("signature") if isinstance(data, dict) else None
        found = _SIGNATURE.fullmatch(signature) if isinstance(signature, str) else None
        if found is None or found["version"] != version:
            raise KmsError(
                f"asked to sign with {self.uri}, the service answered with no signature of this version",
                hint="is this the mount of a transit engine? check mount and address",
            )
        return base64.b64decode(found["raw"])


def _public_keys(data: Mapping[str, Any]) -> tuple[PublicKey, ...]:
    least, versions = data.get("min_encryption_version"), data.get("keys")
    found = []
    for version, info in versions.items() if isinstance(versions, dict) else ():
        text = info.get("public_key") if isinstance(info, dict) else None
        old = isinstance(least, int) and _VERSION.fullmatch(version) and int(version) < least
        if not _VERSION.fullmatch(version) or not isinstance(text, str) or old:
            continue
        raw = _decoded(text)
        if len(raw) == PUBLIC_KEY_BYTES:
            found.append(PublicKey(version, raw))
    newest_first = sorted(found, key=lambda key: int(key.version), reverse=True)
    return tuple(newest_first[:MAX_VERSIONS])


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
