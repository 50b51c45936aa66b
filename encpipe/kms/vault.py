"""Master keys in the transit engine of HashiCorp Vault or OpenBao.

    vault:NAME           the key NAME of the engine mounted at transit/
    vault:MOUNT/NAME     of the engine at MOUNT, which may lie below a namespace: vault:team/transit/NAME

A key has one spelling, as trust and revoke compare URIs as text: `vault:transit/NAME` is refused.

Permissions needed, as a policy: `update` on `MOUNT/encrypt/NAME` to wrap (writers, re-wrap, grant), `update`
on `MOUNT/decrypt/NAME` to unwrap (readers and writers). Nothing else of a key is called, unless it is to be
destroyed. Tokens also use `auth/token/lookup-self` and `auth/token/renew-self`, which the policy `default`
allows. The key has an AEAD type (`aes256-gcm96`, `chacha20-poly1305`) without derivation; the context of a
wrapping (docs/format.md) goes into `associated_data`, which the service authenticates. That needs Vault 1.13
or OpenBao 2.

The table `kms.vault` of the configuration (`vault_table.VaultTable`) holds `address`, `namespace`, how to log
in (`token`, or `role_id` with `secret_id` and `auth_mount`), and in seconds `connect_timeout`, `read_timeout`
(of one attempt) and `deadline` (of a call with all its attempts). Of the environment only VAULT_TOKEN and
BAO_TOKEN count.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from encpipe import transport
from encpipe.aead import context_aad
from encpipe.errors import (
    ConfigError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    UnwrapError,
)
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Destroyed, KmsSettings
from encpipe.kms.deadline import call_within
from encpipe.kms.sdk import import_extra
from encpipe.kms.signer import Signer
from encpipe.kms.vault_signing import VaultSigner
from encpipe.kms.vault_table import SEGMENT, VaultTable
from encpipe.perprocess import PerProcess

if TYPE_CHECKING:
    from encpipe.config import TlsConfig
    from encpipe.kms.vault_http import Connection
    from encpipe.kms.vault_token import Credentials, Token

SCHEME: Final = "vault"
DEFAULT_MOUNT: Final = "transit"

_URI: Final = re.compile(rf"{SCHEME}:(?:(?P<mount>{SEGMENT}(?:/{SEGMENT}){{0,7}})/)?(?P<key>{SEGMENT})")
_CIPHERTEXT: Final = re.compile(
    r"vault:v(?P<version>[1-9][0-9]{0,9}):(?:[A-Za-z0-9+/]{80}|[A-Za-z0-9+/]{96})"
)
"""Key version, then nonce (12 or 24 bytes), KEK and tag in base64. An RSA key's is longer, so anything that
only a public key was needed for is refused before it is sent."""

NEVER_CREATE: Final = {"type": "none"}
"""Makes the server refuse where it would create a key that is not there; ignored where it is."""


@dataclass(frozen=True)
class VaultKey:
    """One key of a transit engine. Nothing of it is looked up before the first wrap or unwrap."""

    uri: str
    _service: VaultKms = field(repr=False)

    binds_context: bool = field(default=True, init=False)

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """`encrypt` with `aad` as associated data; `version` is the key version that the server used.

        Raises `KmsError` when the answer is no ciphertext of a KEK, `ConfigError` when the server ignores
        associated data, `KeyNotFoundError` rather than have the server create the key.
        """
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")
        body = {"plaintext": _base64(kek.reveal()), "associated_data": _base64(context_aad(aad))}
        answer = self._service.call("encrypt", self.uri, {**body, **NEVER_CREATE})
        if "associated_data" in str(answer.get("warnings")):
            raise ConfigError(
                f"{self.uri}: this server ignores associated_data, so it cannot bind a wrapping",
                hint="use Vault 1.13 or later, or OpenBao",
            )
        ciphertext = _data(answer).get("ciphertext")
        found = _CIPHERTEXT.fullmatch(ciphertext) if isinstance(ciphertext, str) else None
        if found is None:
            raise KmsError(
                f"asked to wrap under {self.uri}, the service answered with no ciphertext of a KEK",
                hint="is this the mount of a transit engine? check mount and address",
            )
        return WrappedKey(self.uri, found[0].encode(), version=found["version"], created=utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """`decrypt` under this key and no other, with `aad` as associated data.

        Raises `UnwrapError` also when the wrapping names another key, `KeyAccessDeniedError` `key-disabled`
        when its version is older than the key's min_decryption_version.
        """
        ciphertext = wrapped.blob.decode("ascii", "replace")
        if wrapped.master_key != self.uri:
            raise UnwrapError(
                f"a wrapping by {wrapped.master_key[:200]!r} cannot open under {self.uri}",
                hint="it belongs to another master key",
            )
        if not _CIPHERTEXT.fullmatch(ciphertext):
            raise UnwrapError(
                f"a wrapping by {self.uri} is not what a transit engine makes of a KEK",
                hint="it was changed: restore the manifest from a copy you trust",
            )
        body = {"ciphertext": ciphertext, "associated_data": _base64(context_aad(aad))}
        plaintext = _data(self._service.call("decrypt", self.uri, body)).get("plaintext")
        kek = _kek(plaintext)
        if kek is None:
            raise UnwrapError(
                f"{self.uri} opened a wrapping to something else than a KEK",
                hint="check that address and mount lead to the service you mean",
            )
        return kek

    def ask_newest_version(self) -> str:
        """The version that wraps now. Needs `read` on `MOUNT/keys/NAME`."""
        latest = self._service.read(self.uri).get("latest_version")
        if type(latest) is not int or latest < 1:
            raise KmsError(
                f"asked for the newest version of {self.uri}, the service answered with none",
                hint="is this the mount of a transit engine? check mount and address",
            )
        return str(latest)

    def check_destroyable(self) -> None:
        """Raise `ConfigError` where the server does not allow that the key is deleted; `KmsError`.

        Needs `read` on `MOUNT/keys/NAME`.
        """
        self._deletable()

    def destroy(self) -> Destroyed:
        """Delete the key, at once and for good. Raises as `check_destroyable` does.

        Needs `read` and `delete` on `MOUNT/keys/NAME`, and `deletion_allowed` in the key's own settings.
        """
        record = self._deletable()
        with contextlib.suppress(KeyNotFoundError):  # it was there: an answer was lost
            self._service.remove(self.uri)
        copies = "backups of the server's storage"
        if record.get("exportable") or record.get("allow_plaintext_backup"):
            copies += ", and whoever exported the key, which was allowed"
        return Destroyed(self.uri, beyond=copies)

    def _deletable(self) -> Mapping[str, Any]:
        record = self._service.read(self.uri)
        if record.get("deletion_allowed") is not True:
            raise ConfigError(
                f"{self.uri} may not be deleted: its deletion_allowed is false",
                hint=f"vault write {_path(self.uri, 'keys')}/config deletion_allowed=true",
            )
        return record


class _Session:
    """Connection and token of one process."""

    def __init__(self, token: Token | None = None) -> None:
        self.lock = threading.Lock()
        self.inherited = token
        self.connection: Connection | None = None
        self.credentials: Credentials | None = None

    def child(self) -> _Session:
        """For a forked child: sockets are not shared; the token is, as a secret id may work only once."""
        return _Session(self.inherited if self.credentials is None else self.credentials.current)

    def open(self, table: VaultTable, tls: TlsConfig) -> tuple[Connection, Credentials]:
        with self.lock:
            if self.connection is None or self.credentials is None:
                self.connection = _import("encpipe.kms.vault_http").Connection(table, tls)
                made = _import("encpipe.kms.vault_token").Credentials(table, self.connection, self.inherited)
                self.credentials = made
            return self.connection, self.credentials


class VaultKms:
    """The key service of `vault:` URIs. Connects and logs in on first use; safe to use from several threads.

    Each call ends within `deadline` seconds, and is tried again within them where that can help. Raises
    `ConfigError` for a wrong table or an address the transport rules refuse, before any connection.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self.table = VaultTable.parse(settings.table)
        self._tls = settings.tls
        transport.check_endpoint(self.table.address, self._tls)
        self._process = PerProcess(_Session(), _Session.child)

    def master_key(self, uri: str) -> MasterKey:
        """The key of this URI. Raises `ConfigError` for a malformed URI, and for `transit/`, which is the
        default, in one; no network call."""
        _path(uri, "decrypt")
        return VaultKey(uri, self)

    def signing_key(self, uri: str) -> Signer:
        """The key of this URI to sign with. Raises as `master_key` does; no network call."""
        _path(uri, "sign")
        return VaultSigner(uri, self)

    def trusts(self, uri: str) -> bool:  # noqa: ARG002  # the contract's signature
        """False: only the configuration says which keys are trusted."""
        return False

    def call(self, action: str, uri: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to `action` on the key, with login, retries, deadline and the error tree."""
        return self._send(uri, action, body, holds_secret=action == "encrypt")

    def read(self, uri: str) -> Mapping[str, Any]:
        """The record that the server keeps of the key. Raises as `call` does."""
        return _data(self._send(uri, "keys", None, of="record"))

    def remove(self, uri: str) -> None:
        """Delete the key. Raises as `call` does."""
        self._send(uri, "keys", None, of="record", removes=True)

    def _send(self, uri: str, action: str, body: Mapping[str, Any] | None, **kind: Any) -> Mapping[str, Any]:
        table = self.table
        errors = _import("encpipe.kms.vault_errors")
        request = errors.Request(_path(uri, action), uri, table.address, table.namespace, **kind)

        def attempt() -> Mapping[str, Any]:
            connection, credentials = self._process.get().open(table, self._tls)
            token = credentials.token()
            try:
                return connection.send(request, token.secret, body)
            except KeyAccessDeniedError as error:
                if error.code != "key-denied":
                    raise
                rebuild, parts = error.__reduce__()  # not the error: it holds its frames, and so the token
            if (fresh := credentials.after_refusal(token)) is token:
                raise rebuild(*parts)
            return connection.send(request, fresh.secret, body)

        return call_within(table.deadline, request.server, attempt)


def _path(uri: str, action: str) -> str:
    """Where `action` on the key is asked for, below /v1/. Raises `ConfigError` for any other URI."""
    found = _URI.fullmatch(uri)
    if found is None or found["mount"] == DEFAULT_MOUNT:
        form = "vault:NAME or vault:MOUNT/NAME; parts of letters, digits, _, - and ."
        raise ConfigError(
            f"{uri[:300]!r} is not the URI of a transit key",
            hint=form if found is None else f"write {SCHEME}:{found['key']}",
        )
    return f"{found['mount'] or DEFAULT_MOUNT}/{action}/{found['key']}"


def _data(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    data = answer.get("data")
    return data if isinstance(data, dict) else {}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _kek(plaintext: object) -> Secret | None:
    try:
        raw = base64.b64decode(plaintext, validate=True) if isinstance(plaintext, str) else b""
    except (binascii.Error, ValueError):
        return None
    return Secret(raw) if len(raw) == KEY_BYTES else None


_import = functools.partial(import_extra, extra="vault", service="Vault")
