"""The end of a key of AWS KMS: its deletion is scheduled, and can be called off until its date.

Permissions needed on the key: `kms:DescribeKey` and `kms:ScheduleKeyDeletion`.
https://docs.aws.amazon.com/kms/latest/developerguide/deleting-keys.html
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from encpipe.errors import ConfigError, KeyAccessDeniedError
from encpipe.kms.base import Destroyed

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

    from encpipe.kms.aws import AwsKmsKey

WAITING_DAYS: Final = 7
"""The shortest time that AWS lets one choose."""
ORIGIN_OUTSIDE: Final = ("EXTERNAL", "EXTERNAL_KEY_STORE")


@dataclass(frozen=True)
class _Found:
    """What `kms:DescribeKey` says. `until` is the date of a deletion that is scheduled, else empty."""

    until: str
    origin: str
    is_awss: bool
    has_copies: bool


def check(key: AwsKmsKey) -> None:
    """Raise `KmsError`, and `ConfigError` for an alias, a key of AWS's own, or one that has copies."""
    _ours(key)


def destroy(key: AwsKmsKey) -> Destroyed:
    """Schedule the deletion of the key, `WAITING_DAYS` from now. Raises as `check` does."""
    found = _ours(key)
    beyond = "where its bytes were brought from" if found.origin in ORIGIN_OUTSIDE else ""
    return Destroyed(key.uri, found.until or _scheduled(key), beyond)


def _scheduled(key: AwsKmsKey) -> str:
    def schedule(client: KMSClient) -> str:
        answer = client.schedule_key_deletion(KeyId=key.key_id, PendingWindowInDays=WAITING_DAYS)
        return _time(answer["DeletionDate"])

    try:
        return key.ask("kms:ScheduleKeyDeletion", schedule)
    except KeyAccessDeniedError as error:
        until = _ours(key).until if error.code == "key-disabled" else ""
        if not until:  # else it was scheduled, and the answer was lost
            raise
        return until


def _ours(key: AwsKmsKey) -> _Found:
    """The key as it is, if it can be destroyed."""
    if "alias/" in key.key_id:
        raise ConfigError(
            f"{key.uri} is an alias, which may move: a key is destroyed by its ARN",
            hint="`encpipe inspect` shows the ARN that its wrappings are under",
        )
    found = key.ask("kms:DescribeKey", lambda client: _described(client, key.key_id))
    if found.is_awss:
        raise ConfigError(f"{key.uri} belongs to AWS, which alone can delete it", hint="use keys of your own")
    if found.has_copies:
        raise ConfigError(
            f"{key.uri} has copies in other regions",
            hint="delete all replicas first (aws kms describe-key lists them), then the primary key",
        )
    return found


def _described(client: KMSClient, key_id: str) -> _Found:
    found = client.describe_key(KeyId=key_id)["KeyMetadata"]
    regions = found.get("MultiRegionConfiguration", {})
    return _Found(
        until=_time(found["DeletionDate"]) if found["KeyState"] == "PendingDeletion" else "",
        origin=found.get("Origin", ""),
        is_awss=found.get("KeyManager") == "AWS",
        has_copies=bool(regions.get("ReplicaKeys")) or regions.get("MultiRegionKeyType") == "REPLICA",
    )


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
