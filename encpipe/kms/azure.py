"""Master keys in Azure Managed HSM and Key Vault, by the REST interface that they share.

    azure-kv:https://NAME.managedhsm.azure.net/keys/KEY
    azure-kv:https://NAME.vault.azure.net/keys/KEY          RSA only

Azure's names have no case, but a URI has one spelling here, as trust and revoke compare URIs as text: all in
lower case, without the port 443.

The key is a symmetric one of 256 bits (`oct-HSM`). Permissions needed on it, for the algorithm A256GCM:
`encrypt` to wrap (writers, re-wrap, grant), `decrypt` to unwrap (readers and writers); for A256KW: `wrap` and
`unwrap`. Nothing else is called, and each wrap and unwrap is one call.

A vault has RSA keys only (algorithm RSA-OAEP-256: `wrap` and `unwrap`). Whoever has the public half of one
can make a wrapping, so what such a key opens counts only where a trusted signature or `expect_core` vouches
for it (`public_key_wrap`), and where the configuration names the algorithm.

The table `kms.azure-kv` of the configuration holds `algorithm` (`A256GCM`; `A256KW` where a role allows no
more than wrap and unwrap; `RSA-OAEP-256`), `credential` (one of `CREDENTIALS`), `client_id` (of a managed or
workload identity), `authority` (Entra ID of another cloud), and in seconds `connect_timeout`, `read_timeout`
(of one attempt) and `deadline` (of a call with all its attempts). azure-identity finds and renews
credentials.

A wrapping names the key's URI without a version, as it is trusted, and beside it the version that wrapped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from encpipe import transport
from encpipe.errors import ConfigError, KmsError, UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.azure_wrapping import ALGORITHMS, Algorithm, Answer, Ask, algorithm_of
from encpipe.kms.base import KmsSettings
from encpipe.kms.sdk import Clients, ask_sdk, import_extra
from encpipe.kms.tables import read_table

if TYPE_CHECKING:
    from encpipe.kms.azure_client import Connections

SCHEME: Final = "azure-kv"
TABLE: Final = f"kms.{SCHEME}"

CREDENTIALS: Final = ("default", "environment", "workload-identity", "managed-identity", "cli")
"""What azure-identity may use: its whole chain, or one credential and no other."""
WITH_CLIENT_ID: Final = ("default", "workload-identity", "managed-identity")

HTTPS_PORT: Final = 443
KEY: Final = re.compile(
    r"(?P<host>https://[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/keys/[a-z0-9-]{1,127})"
)
"""The id of a key, in lower case."""
VERSION: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class AzureKvTable:
    """The table `kms.azure-kv`. Times are seconds."""

    algorithm: str = "A256GCM"
    credential: str = "default"
    client_id: str | None = None
    authority: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 10.0
    deadline: float = 20.0

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> AzureKvTable:
        """Raises `ConfigError`, code `config-unknown-key` for a key that is not one of these."""
        made = read_table(cls, TABLE, table, needs={})
        _check_one_of("algorithm", made.algorithm, tuple(ALGORITHMS))
        _check_one_of("credential", made.credential, CREDENTIALS)
        if made.client_id is not None and made.credential not in WITH_CLIENT_ID:
            raise ConfigError(
                f"{TABLE}.client_id means nothing to the credential {made.credential!r}",
                hint=f"leave it away, or choose credential from {', '.join(WITH_CLIENT_ID)}",
            )
        if made.authority is not None and not made.authority.startswith("https://"):
            raise ConfigError(f"{TABLE}.authority is not an https URL", hint='write "https://HOST"')
        return made


@dataclass(frozen=True)
class AzureKey:
    """One key of a Managed HSM or vault. Nothing of it is looked up before the first wrap or unwrap."""

    uri: str
    _service: AzureKms = field(repr=False)

    @property
    def binds_context(self) -> bool:
        """True with A256GCM. With the others the KEK is wrapped together with a hash of the context."""
        return self._service.algorithm.binds_context

    @property
    def public_key_wrap(self) -> bool:
        """True with RSA-OAEP-256, also of the symmetric keys that this configuration still opens."""
        return self._service.algorithm.public_key_wrap

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """One call of `encrypt` or `wrapkey` on the newest version of the key.

        Raises `KmsError` when the service answers for another key than the one asked for.
        """
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")
        algorithm = self._service.algorithm
        ask = Ask(self.uri, algorithm.wrap_with, "", algorithm.name, algorithm.to_wrap(kek, aad))
        answer = self._service.call(ask)
        try:
            blob = algorithm.blob(answer.fields)
        except ValueError:
            blob = b""
        version = self._version(answer.kid)
        if not version or not blob:
            raise KmsError(
                f"asked to wrap under {self.uri}, the service answered for another key, or with no wrapping",
                hint="check the URI: this is not how Azure answers",
            )
        return WrappedKey(self.uri, blob, version=version, created=utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """One call of `decrypt` or `unwrapkey`, whichever fits the wrapping, on the version that made it.

        Raises `UnwrapError` also, and before any call, when the wrapping names another key or cannot be one
        of this service's.
        """
        algorithm = algorithm_of(wrapped.blob)
        if wrapped.master_key != self.uri or algorithm is None or not VERSION.fullmatch(wrapped.version):
            raise UnwrapError(
                f"a wrapping by {wrapped.master_key[:200]!r} cannot open under {self.uri}",
                hint="it was changed, or belongs to another master key",
            )
        if algorithm.public_key_wrap and not self.public_key_wrap:
            raise UnwrapError(
                f"a wrapping by {self.uri} was made with its public half, which this configuration does not "
                "take",
                hint=f'if it is to: algorithm = "{algorithm.name}" in the table {TABLE!r}, and trust.signers',
            )
        fields = algorithm.to_unwrap(wrapped.blob, aad)
        ask = Ask(self.uri, algorithm.unwrap_with, wrapped.version, algorithm.name, fields)
        answer = self._service.call(ask)
        if self._version(answer.kid) != wrapped.version:
            raise UnwrapError(
                f"asked to unwrap under {self.uri}, the service answered for another key or version",
                hint="check the URI: this is not how Azure answers",
            )
        return algorithm.kek(answer.fields, aad, uri=self.uri)

    def _version(self, kid: str) -> str:
        """The version that a key id names; empty when it is not of this key."""
        key, _, version = kid.rpartition("/")
        same = f"{SCHEME}:{key}".lower() == self.uri  # Azure answers with its own spelling
        return version if same and VERSION.fullmatch(version) else ""


class AzureKms:
    """The key service of `azure-kv:` URIs. Makes its clients on first use; safe to use from several threads.

    Each call ends within `deadline` seconds, and is tried again within them where that can help, not before
    the service's Retry-After has passed. Raises `ConfigError` for a wrong table. A forked child opens
    connections of its own.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self.table = AzureKvTable.parse(settings.table)
        self.algorithm: Algorithm = ALGORITHMS[self.table.algorithm]
        self._tls = settings.tls
        self._clients: Clients[Connections] = Clients()
        if self.table.authority is not None:
            transport.check_endpoint(self.table.authority, self._tls)

    def master_key(self, uri: str) -> MasterKey:
        """The key of this URI. Raises `ConfigError` for any but its one spelling; no network call."""
        canonical = _canonical(uri)
        if uri != canonical:
            form = "azure-kv:https://NAME.managedhsm.azure.net/keys/KEY, without a version"
            raise ConfigError(
                f"{uri[:300]!r} is not the URI of an Azure key",
                hint=form if canonical is None else f"write {canonical}",
            )
        return AzureKey(uri, self)

    def trusts(self, uri: str) -> bool:  # noqa: ARG002  # the contract's signature
        """False: only the configuration says which Azure keys are trusted."""
        return False

    def call(self, ask: Ask) -> Answer:
        """What the service answers, with retries, deadline and the error tree."""
        _import("azure.identity")
        _import("azure.keyvault.keys")
        errors = _import("encpipe.kms.azure_errors")
        client = _import("encpipe.kms.azure_client")
        connections = self._clients.get(None, lambda: client.Connections(self.table, self._tls))

        return ask_sdk(
            self.table.deadline,
            ask.service,
            lambda: connections.send(ask),
            lambda error: errors.from_sdk(error, ask),
        )


def _canonical(uri: str) -> str | None:
    """The one spelling of this URI; None for what is no URI of a key."""
    scheme, _, key = uri.partition(":")
    found = KEY.fullmatch(key.lower()) if key.isascii() else None
    if scheme != SCHEME or found is None:
        return None
    port = int(found["port"] or HTTPS_PORT)
    return f"{SCHEME}:{found['host']}{'' if port == HTTPS_PORT else f':{port}'}{found['path']}"


_import = functools.partial(import_extra, extra="azure", service="Azure Managed HSM")


def _check_one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{TABLE}.{key} is unknown: {value[:60]!r}", hint=f"known: {', '.join(known)}")
