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

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from encpipe import transport
from encpipe.errors import ConfigError, KmsError, UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Destroyed, KmsSettings
from encpipe.kms.sdk import Clients, ask_sdk, import_extra
from encpipe.kms.tables import read_table

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

Answer = TypeVar("Answer")

SCHEME: Final = "aws-kms"
TABLE: Final = f"kms.{SCHEME}"

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
        return read_table(cls, TABLE, table, needs={})


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
        self._clients: Clients[KMSClient] = Clients()

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

        return ask_sdk(
            self.table.deadline,
            endpoint,
            lambda: ask(self._clients.get(region, lambda: self._connect(region))),
            lambda error: errors.from_sdk(error, request),
        )

    def _connect(self, region: str | None) -> KMSClient:
        import boto3
        from botocore.config import Config

        table, tls = self.table, self._tls
        settings = transport.botocore_settings(
            table.endpoint_url,
            tls,
            connect_timeout=table.connect_timeout,
            read_timeout=table.read_timeout,
            max_attempts=1,  # `ask_sdk` tries again
        )
        session = boto3.session.Session(profile_name=table.profile, region_name=region)
        client = session.client(
            "kms",
            endpoint_url=table.endpoint_url,
            verify=transport.botocore_verify(tls),
            config=Config(**settings),
        )
        transport.check_endpoint(client.meta.endpoint_url, tls)
        transport.pin_host(client, tls)
        return client


_import = functools.partial(import_extra, extra="aws", service="AWS KMS")


def _region(key_id: str) -> str | None:
    found = ARN.fullmatch(key_id)
    return found["region"] if found else None
