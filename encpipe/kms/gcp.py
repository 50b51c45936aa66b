"""Master keys in Google Cloud KMS.

    gcp-kms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY

Permissions needed on the key: `cloudkms.cryptoKeyVersions.useToEncrypt` to wrap (writers, re-wrap, grant),
`cloudkms.cryptoKeyVersions.useToDecrypt` to unwrap (readers and writers): the roles
`roles/cloudkms.cryptoKeyEncrypterDecrypter` and, for readers, `roles/cloudkms.cryptoKeyDecrypter`. Nothing
else is called, unless the primary version is asked for. The key's purpose is ENCRYPT_DECRYPT; its protection
level does not matter.

The table `kms.gcp-kms` of the configuration holds `endpoint_url`, `service_account_file`, and in seconds
`connect_timeout`, `read_timeout` (of one attempt) and `deadline` (of a call with all its attempts). The
endpoint comes from the table or is Google's, whatever the environment says. Credentials come from the file,
or from the SDK's own chain (Application Default Credentials), which renews them in time.

The service wraps under the key's primary version, and finds the version that unwraps by itself. Only REST is
spoken: no gRPC channel, so no thread of the SDK's, nothing that a fork breaks, and the usual TLS rules.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from encpipe import aead, transport
from encpipe.errors import ConfigError, KmsError, UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import KmsSettings
from encpipe.kms.sdk import Clients, ask_sdk, import_extra
from encpipe.kms.tables import read_table

if TYPE_CHECKING:
    from encpipe.kms.gcp_client import Client

Answer = TypeVar("Answer")

SCHEME: Final = "gcp-kms"
TABLE: Final = f"kms.{SCHEME}"
DEFAULT_ENDPOINT: Final = "https://cloudkms.googleapis.com"

WRAP: Final = "cloudkms.cryptoKeyVersions.useToEncrypt"
UNWRAP: Final = "cloudkms.cryptoKeyVersions.useToDecrypt"
LOOK_UP: Final = "cloudkms.cryptoKeys.get"
"""The permission that each call needs; they name the calls in messages, too."""

KEY: Final = re.compile(
    r"projects/([a-z0-9.-]{1,100}:)?[a-z0-9-]{1,63}/locations/[a-z0-9-]{1,63}"
    r"/keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/[A-Za-z0-9_-]{1,63}"
)
VERSION: Final = re.compile(r"/cryptoKeyVersions/([1-9][0-9]{0,9})")


@dataclass(frozen=True)
class GcpKmsTable:
    """The table `kms.gcp-kms`. Times are seconds."""

    endpoint_url: str = DEFAULT_ENDPOINT
    service_account_file: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 10.0
    deadline: float = 20.0

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> GcpKmsTable:
        """Raises `ConfigError`, code `config-unknown-key` for a key that is not one of these."""
        made = read_table(cls, TABLE, table, needs={})
        if made.account_path is not None and not made.account_path.is_absolute():
            raise ConfigError(
                f"{TABLE}.service_account_file is not an absolute path", hint="write it from / or ~ on"
            )
        return made

    @property
    def account_path(self) -> Path | None:
        """The service account file, `~` resolved; None for the SDK's own chain."""
        return Path(self.service_account_file).expanduser() if self.service_account_file else None


@dataclass(frozen=True)
class GcpKmsKey:
    """One key of Google Cloud KMS. Nothing of it is looked up before the first wrap or unwrap."""

    uri: str
    _service: GcpKms = field(repr=False)

    binds_context: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """The resource name that the service knows the key by."""
        return self.uri.partition(":")[2]

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """`Encrypt` under the primary version, with the context as additional authenticated data.

        `version` is the number of the key version that the service answers. Raises `KmsError` when it answers
        for another key than the one asked for, `KmsUnavailableError` when a CRC32C shows that request or
        answer was damaged on the way, and stayed so however often it was tried.
        """
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")
        context = aead.context_aad(aad)

        def encrypt(client: Client) -> tuple[str, bytes]:
            return client.encrypt(self.name, kek, context)

        answered, blob = self._service.call(WRAP, self, encrypt)
        version = VERSION.fullmatch(answered.removeprefix(self.name))
        if version is None or not blob:
            raise KmsError(
                f"asked to wrap under {self.uri}, the service answered for another key",
                hint="check the endpoint: this is not how Google Cloud KMS answers",
            )
        return WrappedKey(self.uri, blob, version=version[1], created=utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """`Decrypt` under this key and no other, with the context as additional authenticated data.

        Raises `UnwrapError` also when the wrapping names another key than this one.
        """
        if wrapped.master_key != self.uri or not wrapped.blob:
            raise UnwrapError(
                f"a wrapping by {wrapped.master_key[:200]!r} cannot open under {self.uri}",
                hint="it belongs to another master key",
            )
        context = aead.context_aad(aad)

        def decrypt(client: Client) -> Secret:
            return client.decrypt(self.name, wrapped.blob, context)

        kek = self._service.call(UNWRAP, self, decrypt)
        if len(kek) != KEY_BYTES:
            raise UnwrapError(
                f"{self.uri} opened a wrapping to something else than its KEK",
                hint="someone else used the same master key and context to wrap it: restore the manifest",
            )
        return kek

    def ask_newest_version(self) -> str:
        """The number of the primary version, which wraps. Needs `cloudkms.cryptoKeys.get`.

        Raises `KmsError` where there is none, or the service answers for another key.
        """
        answered = self._service.call(LOOK_UP, self, lambda client: client.primary_version(self.name))
        version = VERSION.fullmatch(answered.removeprefix(self.name))
        if version is None:
            raise KmsError(
                f"asked for the primary version of {self.uri}, the service answered with none",
                hint="make a version primary: gcloud kms keys set-primary-version",
            )
        return version[1]


class GcpKms:
    """The key service of `gcp-kms:` URIs. Makes its client on first use; safe to use from several threads.

    Each call ends within `deadline` seconds, and is tried again within them where that can help. Raises
    `ConfigError` for a wrong table or an endpoint the transport rules refuse, before any connection.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self.table = GcpKmsTable.parse(settings.table)
        self._tls = settings.tls
        transport.check_endpoint(self.table.endpoint_url, self._tls)
        self._clients: Clients[Client] = Clients()

    def master_key(self, uri: str) -> MasterKey:
        """The key of this URI. Raises `ConfigError` for a malformed URI; no network call."""
        scheme, _, name = uri.partition(":")
        if scheme != SCHEME or not KEY.fullmatch(name):
            hint = "gcp-kms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"
            if "/cryptoKeyVersions/" in name:
                hint += ", without a version: the service wraps under the primary one"
            raise ConfigError(f"{uri[:300]!r} is not the URI of a Google Cloud KMS key", hint=hint)
        return GcpKmsKey(uri, self)

    def trusts(self, uri: str) -> bool:  # noqa: ARG002  # the contract's signature
        """False: only the configuration says which keys are trusted."""
        return False

    def call(self, action: str, key: GcpKmsKey, ask: Callable[[Client], Answer]) -> Answer:
        """What `ask` returns, with retries, deadline and the error tree."""
        sdk = _import("encpipe.kms.gcp_client")
        errors = _import("encpipe.kms.gcp_errors")
        endpoint = self.table.endpoint_url
        request = errors.Request(action, key.uri, endpoint, carries_key=action == WRAP)

        return ask_sdk(
            self.table.deadline,
            endpoint,
            lambda: ask(self._clients.get(None, lambda: sdk.Client(self.table, self._tls))),
            lambda error: errors.from_sdk(error, request),
        )


_import = functools.partial(import_extra, extra="gcp", service="Google Cloud KMS")
