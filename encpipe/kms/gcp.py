"""Master keys in Google Cloud KMS.

    gcp-kms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY

Permissions needed on the key: `cloudkms.cryptoKeyVersions.useToEncrypt` to wrap (writers, re-wrap, grant),
`cloudkms.cryptoKeyVersions.useToDecrypt` to unwrap (readers and writers): the roles
`roles/cloudkms.cryptoKeyEncrypterDecrypter` and, for readers, `roles/cloudkms.cryptoKeyDecrypter`. Nothing
else is called. The key's purpose is ENCRYPT_DECRYPT; its protection level does not matter.

The table `kms.gcp-kms` of the configuration holds `endpoint_url`, `service_account_file`, and in seconds
`connect_timeout`, `read_timeout` (of one attempt) and `deadline` (of a call with all its attempts). The
endpoint comes from the table or is Google's, whatever the environment says. Credentials come from the file,
or from the SDK's own chain (Application Default Credentials), which renews them in time.

The service wraps under the key's primary version, and finds the version that unwraps by itself. Only REST is
spoken: no gRPC channel, so no thread of the SDK's, nothing that a fork breaks, and the usual TLS rules.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from encpipe import aead, transport
from encpipe.errors import ConfigError, KmsError, MissingExtraError, UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import KmsSettings
from encpipe.kms.deadline import call_within
from encpipe.kms.sdklogs import without_bodies
from encpipe.perprocess import PerProcess

if TYPE_CHECKING:
    from encpipe.kms.gcp_client import Client

Answer = TypeVar("Answer")

SCHEME: Final = "gcp-kms"
TABLE: Final = f"kms.{SCHEME}"
DEFAULT_ENDPOINT: Final = "https://cloudkms.googleapis.com"
MAX_SECONDS: Final = 3600.0

WRAP: Final = "cloudkms.cryptoKeyVersions.useToEncrypt"
UNWRAP: Final = "cloudkms.cryptoKeyVersions.useToDecrypt"
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
        known = cls.__dataclass_fields__
        for key, value in table.items():
            if key not in known:
                raise ConfigError(
                    f"the table {TABLE!r} has an unknown key {key!r}",
                    hint=f"known keys: {', '.join(known)}",
                    code="config-unknown-key",
                )
            if "str" in str(known[key].type):
                _check_text(key, value)
            else:
                _check_seconds(key, value)
        made = cls(**table)
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


class _Connection:
    """The client of one process. A forked child gets its own: sockets are not shared."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.client: Client | None = None

    def inherited(self) -> _Connection:
        return _Connection()


class GcpKms:
    """The key service of `gcp-kms:` URIs. Makes its client on first use; safe to use from several threads.

    Each call ends within `deadline` seconds, and is tried again within them where that can help. Raises
    `ConfigError` for a wrong table or an endpoint the transport rules refuse, before any connection.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self.table = GcpKmsTable.parse(settings.table)
        self._tls = settings.tls
        transport.check_endpoint(self.table.endpoint_url, self._tls)
        self._process = PerProcess(_Connection(), _Connection.inherited)

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

        def attempt() -> Answer:
            try:
                with without_bodies():
                    return ask(self._client(sdk))
            except Exception as error:  # noqa: BLE001  # mapped whole: no SDK error may leave
                failed = errors.from_sdk(error, request)
            raise failed  # outside the handler: the SDK's error may hold a key, so it is not even the context

        return call_within(self.table.deadline, endpoint, attempt)

    def _client(self, sdk: ModuleType) -> Client:
        connection = self._process.get()
        with connection.lock:
            if connection.client is None:
                connection.client = sdk.Client(self.table, self._tls)
            return connection.client


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Google Cloud KMS needs the package {error.name}", hint="pip install 'encpipe[gcp]'"
        ) from None


def _check_text(key: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{TABLE}.{key} is not a text", hint=f'write {key} = "..."')


def _check_seconds(key: str, value: object) -> None:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
    if not 0 < number <= MAX_SECONDS:
        raise ConfigError(
            f"{TABLE}.{key} is not a number of seconds",
            hint=f"write a number above 0 and up to {MAX_SECONDS:g}",
        )
