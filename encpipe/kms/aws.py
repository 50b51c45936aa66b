"""Master keys in AWS KMS.

    aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID        aws-kms:alias/NAME
    aws-kms:arn:aws:kms:REGION:ACCOUNT:alias/NAME    aws-kms:KEY-ID

Permissions needed on the key: `kms:Encrypt` to wrap (writers, re-wrap, grant), `kms:Decrypt` to unwrap
(readers and writers). Nothing else is called, unless the key is to be destroyed (`aws_destruction`). The key
is symmetric, usage ENCRYPT_DECRYPT. A key policy may demand the encryption context (`encpipe:dataset-id`,
`encpipe:key-name`, `encpipe:kek-id`), which CloudTrail records.

The table `kms.aws-kms` of the configuration holds `region`, `profile`, `endpoint_url`, and in seconds
`connect_timeout`, `read_timeout` (of one attempt) and `deadline` (of a call with all its attempts). The
region of an ARN comes first, then the table's, then the SDK's own; the endpoint comes from the table or is
AWS's for the region, whatever environment and profile say. Credentials come from the SDK's own chain.

A wrapping names the key's ARN, also when an alias wrapped it: readers trust the ARN (`trust.master_keys`).
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from encpipe import transport
from encpipe.errors import ConfigError, KmsError, MissingExtraError, UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Destroyed, KmsSettings
from encpipe.kms.deadline import call_within
from encpipe.kms.sdklogs import without_bodies

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

Answer = TypeVar("Answer")

SCHEME: Final = "aws-kms"
TABLE: Final = f"kms.{SCHEME}"
MAX_SECONDS: Final = 3600.0

ARN: Final = re.compile(
    r"arn:aws[a-z-]{0,20}:kms:(?P<region>[a-z]{2,8}(-[a-z0-9]{1,16}){1,4}):\d{12}:"
    r"(key/[A-Za-z0-9-]{1,128}|alias/[A-Za-z0-9/_-]{1,250})"
)
ALIAS: Final = re.compile(r"alias/[A-Za-z0-9/_-]{1,250}")
KEY_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")


@dataclass(frozen=True)
class AwsKmsTable:
    """The table `kms.aws-kms`. Times are seconds."""

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 10.0
    deadline: float = 20.0

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> AwsKmsTable:
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
        return cls(**table)


@dataclass(frozen=True)
class AwsKmsKey:
    """One key of AWS KMS. Nothing of it is looked up before the first wrap or unwrap."""

    uri: str
    _service: AwsKms = field(repr=False)

    binds_context: bool = field(default=True, init=False)

    @property
    def key_id(self) -> str:
        """What the service knows the key by: ARN, alias or id."""
        return self.uri.partition(":")[2]

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """`kms:Encrypt` with `aad` as the encryption context; `master_key` is the ARN that AWS answers.

        Raises `KmsError` when AWS answers with another key than the one asked for.
        """
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")

        def encrypt(client: KMSClient) -> tuple[str, bytes]:
            answer = client.encrypt(KeyId=self.key_id, Plaintext=kek.reveal(), EncryptionContext=aad.pairs())
            return str(answer["KeyId"]), bytes(answer["CiphertextBlob"])

        arn, blob = self._service.call("kms:Encrypt", self, encrypt)
        if not self._may_be(arn) or not blob:
            raise KmsError(
                f"asked to wrap under {self.uri}, the service answered for another key",
                hint="check the endpoint: this is not how AWS KMS answers",
            )
        created = utc_now()
        return WrappedKey(f"{SCHEME}:{arn}", blob, version="", created=created)

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """`kms:Decrypt` under this key and no other, with `aad` as the encryption context.

        Raises `UnwrapError` also when the wrapping names another key than this URI stands for.
        """
        arn = wrapped.master_key.removeprefix(f"{SCHEME}:")
        if not self._may_be(arn) or not wrapped.blob:
            raise UnwrapError(
                f"a wrapping by {wrapped.master_key[:200]!r} cannot open under {self.uri}",
                hint="it belongs to another master key",
            )

        def decrypt(client: KMSClient) -> tuple[str, Secret]:
            answer = client.decrypt(
                KeyId=self.key_id, CiphertextBlob=wrapped.blob, EncryptionContext=aad.pairs()
            )
            return str(answer["KeyId"]), Secret(answer["Plaintext"])

        answered, kek = self._service.call("kms:Decrypt", self, decrypt)
        if answered != arn or len(kek) != KEY_BYTES:
            raise UnwrapError(
                f"{self.uri} opened a wrapping of {arn} to something else than its KEK",
                hint="the alias may have moved to another key: trust and name the key by its ARN",
            )
        return kek

    def check_destroyable(self) -> None:
        """Raises as `aws_destruction.check` does. Needs `kms:DescribeKey`."""
        _import("encpipe.kms.aws_destruction").check(self)

    def destroy(self) -> Destroyed:
        """Have the key deleted in a week, the shortest time there is; until then that can be called off.

        Needs `kms:DescribeKey` and `kms:ScheduleKeyDeletion`. Raises as `check_destroyable` does.
        """
        done: Destroyed = _import("encpipe.kms.aws_destruction").destroy(self)
        return done

    def ask(self, action: str, what: Callable[[KMSClient], Answer]) -> Answer:
        """What `what` returns, as `AwsKms.call` has it."""
        return self._service.call(action, self, what)

    def may_have_made(self, wrapped: WrappedKey) -> bool:
        """Whether a wrapping names a key that this URI can stand for."""
        return self._may_be(wrapped.master_key.removeprefix(f"{SCHEME}:"))

    def _may_be(self, arn: str) -> bool:
        """Whether the key ARN that AWS answered, or a wrapping names, can be what this URI stands for."""
        if not ARN.fullmatch(arn) or ":key/" not in arn:
            return False
        if ":key/" in self.key_id:
            return arn == self.key_id
        return "alias/" in self.key_id or arn.endswith(f":key/{self.key_id}")


class _Clients:
    """The clients of one process, by region. A forked child gets its own: sockets are not shared."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.by_region: dict[str | None, KMSClient] = {}


class AwsKms:
    """The key service of `aws-kms:` URIs. Makes its clients on first use; safe to use from several threads.

    Each call ends within `deadline` seconds, and is tried again within them where that can help. Raises
    `ConfigError` for a wrong table or an endpoint the transport rules refuse, before any connection.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self.table = AwsKmsTable.parse(settings.table)
        self._tls = settings.tls
        if self.table.endpoint_url is not None:
            transport.check_endpoint(self.table.endpoint_url, self._tls)
        self._clients = _Clients()

    def master_key(self, uri: str) -> MasterKey:
        """The key of this URI. Raises `ConfigError` for a malformed URI; no network call."""
        scheme, _, key_id = uri.partition(":")
        if scheme != SCHEME or not any(form.fullmatch(key_id) for form in (ARN, ALIAS, KEY_ID)):
            raise ConfigError(
                f"{uri[:300]!r} is not the URI of an AWS KMS key",
                hint="aws-kms: and then a key ARN, an alias ARN, alias/NAME or a key id",
            )
        return AwsKmsKey(uri, self)

    def trusts(self, uri: str) -> bool:  # noqa: ARG002  # the contract's signature
        """False: only the configuration says which AWS keys are trusted."""
        return False

    def call(self, action: str, key: AwsKmsKey, ask: Callable[[KMSClient], Answer]) -> Answer:
        """What `ask` returns, with retries, deadline and the error tree."""
        region = _region(key.key_id) or self.table.region
        _import("boto3")
        errors = _import("encpipe.kms.aws_errors")
        endpoint = self.table.endpoint_url or f"AWS KMS in {region or 'the default region'}"
        request = errors.Request(action, key.uri, endpoint)

        def attempt() -> Answer:
            try:
                with without_bodies():
                    return ask(self._client(region))
            except Exception as error:  # noqa: BLE001  # mapped whole: no SDK error may leave
                failed = errors.from_sdk(error, request)
            raise failed  # outside the handler: the SDK's error may hold a key, so it is not even the context

        return call_within(self.table.deadline, endpoint, attempt)

    def _client(self, region: str | None) -> KMSClient:
        clients = self._clients
        if clients.pid != os.getpid():
            clients = self._clients = _Clients()
        with clients.lock:  # sessions are not safe to share between threads, clients are
            if region not in clients.by_region:
                clients.by_region[region] = self._connect(region)
            return clients.by_region[region]

    def _connect(self, region: str | None) -> KMSClient:
        import boto3
        from botocore.config import Config

        table, tls = self.table, self._tls
        settings = transport.botocore_settings(
            table.endpoint_url,
            tls,
            connect_timeout=table.connect_timeout,
            read_timeout=table.read_timeout,
            max_attempts=1,  # `call_within` tries again
        )
        session = boto3.session.Session(profile_name=table.profile, region_name=region)
        client = session.client(
            "kms",
            endpoint_url=table.endpoint_url,
            verify=transport.botocore_verify(tls),
            config=Config(**settings),
        )
        transport.check_endpoint(client.meta.endpoint_url, tls)
        transport.pin_host(client)
        return client


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"AWS KMS needs the package {error.name}", hint="pip install 'encpipe[aws]'"
        ) from None


def _region(key_id: str) -> str | None:
    found = ARN.fullmatch(key_id)
    return found["region"] if found else None


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
