"""AWS KMS keeps the contract of a key service, on two independent emulators. Neither is AWS."""

from __future__ import annotations

import functools
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from servers.aws import Kms as Server

from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, KeyAccessDeniedError, UnwrapError
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.aws import AwsKms, AwsKmsKey
from encpipe.kms.base import KmsSettings
from encpipe.testing.kmscontract import KmsContract

pytestmark = pytest.mark.server


@functools.cache
def a_key(server: Server, which: str) -> str:
    """The ARN of a key. Shared between tests: making one takes moto 0.4 s."""
    return server.create_key()


@functools.cache
def a_service(server: Server) -> AwsKms:
    """Shared between tests: making a boto3 client takes 0.15 s. It keeps the credentials it first found."""
    tls = TlsConfig(ca_file=Path(server.ca) if server.ca else None)
    return AwsKms(KmsSettings({"endpoint_url": server.endpoint, "region": server.region}, tls=tls))


def name_key(server: Server, alias: str, arn: str) -> None:
    client = server.client()
    client.create_alias(AliasName=f"alias/{alias}", TargetKeyId=arn)
    client.close()


class AwsContract(KmsContract):
    malformed_uris = (
        "aws-kms:",
        "aws-kms:alias/",
        "aws-kms:no-such-form",
        "aws-kms:alias/a b",
        "aws-kms:arn:aws:s3:us-east-1:123456789012:key/x",
        "aws-kms:arn:aws:kms:us-east-1:123456789012:key/x\n",
        "aws-kms:arn:aws:kms:us-east-1.evil.example/:123456789012:key/x",
        "local:alias/x",
    )
    destroys = True

    @pytest.fixture
    def server(self) -> Server:
        raise NotImplementedError

    @pytest.fixture
    def kms(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> AwsKms:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        return a_service(server)

    @pytest.fixture
    def master_key(self, kms: AwsKms, server: Server) -> MasterKey:
        return kms.master_key(f"aws-kms:{a_key(server, 'one')}")

    @pytest.fixture
    def other_master_key(self, kms: AwsKms, server: Server) -> MasterKey:
        return kms.master_key(f"aws-kms:{a_key(server, 'other')}")

    @pytest.fixture
    def doomed_master_key(self, kms: AwsKms, server: Server) -> MasterKey:
        return kms.master_key(f"aws-kms:{server.create_key()}")

    def test_a_key_is_destroyed_a_week_from_now(self, doomed_master_key: AwsKmsKey) -> None:
        until = datetime.fromisoformat(doomed_master_key.destroy().until)
        assert timedelta(days=6, hours=12) < until - datetime.now(UTC) < timedelta(days=7, hours=12)

    def test_an_alias_is_not_destroyed(self, kms: AwsKms) -> None:
        key = kms.master_key("aws-kms:alias/pii")
        assert isinstance(key, AwsKmsKey)
        for attempt in (key.check_destroyable, key.destroy):
            with pytest.raises(ConfigError, match="alias"):
                attempt()

    @pytest.mark.parametrize("form", ["alias", "alias ARN", "id", "ARN"])
    def test_every_form_of_a_uri_opens_and_stores_the_arn(
        self, kms: AwsKms, server: Server, kek: Secret, context: KeyContext, form: str
    ) -> None:
        arn, name = a_key(server, "one"), f"form-{os.urandom(4).hex()}"
        name_key(server, name, arn)
        account, key_id = arn.split(":key/")
        names = {
            "alias": f"alias/{name}",
            "alias ARN": f"{account}:alias/{name}",
            "id": key_id,
            "ARN": arn,
        }
        key = kms.master_key(f"aws-kms:{names[form]}")
        wrapped = key.wrap(kek, aad=context)
        assert wrapped.master_key == f"aws-kms:{arn}"
        assert key.unwrap(wrapped, aad=context) == kek
        assert kms.master_key(wrapped.master_key).unwrap(wrapped, aad=context) == kek

    def test_a_moved_alias_does_not_open_what_it_wrapped(
        self, kms: AwsKms, server: Server, kek: Secret, context: KeyContext
    ) -> None:
        name = f"moved-{os.urandom(4).hex()}"
        name_key(server, name, a_key(server, "one"))
        key = kms.master_key(f"aws-kms:alias/{name}")
        wrapped = key.wrap(kek, aad=context)
        client = server.client()
        client.update_alias(AliasName=f"alias/{name}", TargetKeyId=a_key(server, "other"))
        client.close()
        with pytest.raises(self.moved_alias_error):
            key.unwrap(wrapped, aad=context)

    moved_alias_error: type[Exception] = UnwrapError

    def test_no_aws_key_vouches_for_itself(self, kms: AwsKms, master_key: MasterKey) -> None:
        assert not kms.trusts(master_key.uri)
        assert master_key.binds_context


class TestRoto(AwsContract):
    """roto's "ciphertext" is JSON that holds the plaintext: three promises of KMS cannot be seen on it."""

    @pytest.fixture
    def server(self, roto_kms: Server) -> Server:
        return roto_kms

    @pytest.mark.skip(reason="roto does not encrypt")
    def test_a_wrapping_does_not_contain_the_key(self, kek: Secret, wrapped: WrappedKey) -> None: ...

    @pytest.mark.skip(reason="roto does not randomise")
    def test_wrapping_is_randomised(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None: ...

    @pytest.mark.skip(reason="roto does not authenticate the key inside its blob")
    def test_every_flipped_byte_is_refused(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None: ...


class TestMoto(AwsContract):
    """moto says AccessDenied where AWS says IncorrectKey."""

    moved_alias_error = KeyAccessDeniedError

    @pytest.fixture
    def server(self, moto_kms: Server) -> Server:
        return moto_kms

    @pytest.mark.skip(reason="moto fails to delete a key by its ARN")
    def test_a_destroyed_key_opens_nothing_any_more(self) -> None: ...  # type: ignore[override]  # skipped

    @pytest.mark.skip(reason="moto fails to delete a key by its ARN")
    def test_a_key_is_destroyed_a_week_from_now(self) -> None: ...  # type: ignore[override]  # skipped


class TestMotoOverTls(TestMoto):
    flip_step = 16

    @pytest.fixture
    def server(self, moto_kms_tls: Server) -> Server:
        return moto_kms_tls
