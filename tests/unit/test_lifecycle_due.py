"""When a wrapping should be made anew: another key, a newer version, or age."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from specimen import CREATED

from encpipe.cli.options import parse_duration
from encpipe.config import KeyringConfig
from encpipe.errors import ConfigError
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms.aws import AwsKms
from encpipe.kms.base import KmsSettings
from encpipe.kms.local import LocalKms
from encpipe.lifecycle.due import age_of, why_due
from encpipe.testing import FaultyKms, InMemoryKms

NOW = datetime(2026, 1, 12, 3, 4, 5, tzinfo=UTC)  # ten days after CREATED
ARN = "aws-kms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def wrapping(uri: str = "memory:a", version: str = "1", created: str = CREATED) -> WrappedKey:
    return WrappedKey(uri, b"x", version, created)


@pytest.fixture
def kms() -> InMemoryKms:
    return InMemoryKms(["a", "b"])


def test_what_is_as_it_should_be_is_not_due(kms: InMemoryKms) -> None:
    older = timedelta(days=11)
    assert why_due([wrapping()], kms.master_key("memory:a"), older_than=older, now=NOW) == ""
    assert why_due([wrapping()], kms.master_key("memory:a"), older_than=None, now=NOW) == ""


def test_why_it_is_due(kms: InMemoryKms) -> None:
    master = kms.master_key("memory:a")
    assert why_due([wrapping("memory:b")], master, older_than=None, now=NOW) == "another key"
    assert why_due([wrapping()], master, older_than=timedelta(days=9), now=NOW) == "age"
    assert why_due([wrapping(created="long ago")], master, older_than=timedelta(days=9), now=NOW) == "age"
    kms.rotate("a")
    assert why_due([wrapping()], master, older_than=None, now=NOW) == "newer version"
    assert why_due([wrapping(), wrapping(version="2")], master, older_than=None, now=NOW) == ""


def test_a_service_that_does_not_tell_its_version_is_not_asked(kms: InMemoryKms) -> None:
    kms.rotate("a")
    silent = FaultyKms(kms).master_key("memory:a")
    assert why_due([wrapping()], silent, older_than=None, now=NOW) == ""


class Asked:
    """A key of a service that tells its newest version when it is asked."""

    uri = "memory:a"
    binds_context = True

    def __init__(self, newest: str) -> None:
        self.newest, self.calls = newest, 0

    def ask_newest_version(self) -> str:
        self.calls += 1
        return self.newest

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        raise NotImplementedError

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        raise NotImplementedError


def test_a_service_is_asked_for_its_version_only_when_it_is_to_be() -> None:
    key = Asked("2")
    assert why_due([wrapping()], key, older_than=None, now=NOW) == ""
    assert key.calls == 0
    assert why_due([wrapping()], key, older_than=None, now=NOW, ask_services=True) == "newer version"
    assert why_due([wrapping(version="2")], key, older_than=None, now=NOW, ask_services=True) == ""
    assert key.calls == 2
    other = [wrapping("memory:b")]
    assert why_due(other, key, older_than=None, now=NOW, ask_services=True) == "another key"
    assert key.calls == 2


def test_an_alias_may_stand_for_the_key_that_wrapped() -> None:
    service = AwsKms(KmsSettings())
    for uri, why in (("aws-kms:alias/pii", ""), (ARN, ""), (f"{ARN[:-1]}c", "another key")):
        assert why_due([wrapping(ARN, "")], service.master_key(uri), older_than=None, now=NOW) == why


def test_an_environment_key_has_one_version() -> None:
    service = LocalKms(KmsSettings(keyring=KeyringConfig(unlock="key-env:KEY")))
    master = service.master_key("local:env")
    assert why_due([wrapping("local:env")], master, older_than=None, now=NOW) == ""


def test_ages() -> None:
    assert age_of(CREATED, NOW) == timedelta(days=10)
    assert age_of("", NOW) == timedelta.max


@pytest.mark.parametrize(
    ("text", "minutes"), [("90d", 129600), ("12h", 720), ("30m", 30), ("2w", 20160), ("0d", 0)]
)
def test_times_of_the_command_line(text: str, minutes: int) -> None:
    assert parse_duration(text, "--older-than") == timedelta(minutes=minutes)


@pytest.mark.parametrize("text", ["", "d", "90", "-1d", "1.5d", "1y", "²d", "9" * 6 + "d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a time"):
        parse_duration(text, "--older-than")
