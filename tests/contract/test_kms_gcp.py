"""Google Cloud KMS keeps the contract of a key service, on a fake that speaks its wire protocol."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from servers.gcpkms import RING, Gcp

from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, KeyAccessDeniedError
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.gcp import GcpKms, GcpKmsKey
from encpipe.testing.kmscontract import KmsContract

pytestmark = pytest.mark.server

NAME = f"{RING}/cryptoKeys/k"


@functools.cache
def a_key(server: Gcp, which: str) -> str:
    """The name of a key. Shared between tests."""
    return server.create_key()


@functools.cache
def a_service(server: Gcp) -> GcpKms:
    """Shared between tests, as one process shares it."""
    tls = TlsConfig(ca_file=Path(server.ca) if server.ca else None)
    table = {"endpoint_url": server.endpoint, "service_account_file": server.account("writer")}
    return GcpKms(KmsSettings(table, tls=tls))


class TestGcp(KmsContract):
    malformed_uris = (
        "gcp-kms:",
        "gcp-kms:k",
        f"gcp-kms:{NAME}\n",
        f"gcp-kms:/{NAME}",
        f"gcp-kms:{NAME}/cryptoKeyVersions/1",
        f"gcp-kms:{NAME}:encrypt",
        f"gcp-kms:{NAME}?x=1",
        f"gcp-kms:{RING}/cryptoKeys/..",
        f"gcp-kms:{RING}/cryptoKeys/",
        f"local:{NAME}",
    )

    @pytest.fixture
    def server(self, gcp_kms: Gcp) -> Gcp:
        return gcp_kms

    @pytest.fixture
    def kms(self, server: Gcp) -> GcpKms:
        return a_service(server)

    @pytest.fixture
    def master_key(self, kms: GcpKms, server: Gcp) -> MasterKey:
        return kms.master_key(f"gcp-kms:{a_key(server, 'one')}")

    @pytest.fixture
    def other_master_key(self, kms: GcpKms, server: Gcp) -> MasterKey:
        return kms.master_key(f"gcp-kms:{a_key(server, 'other')}")

    def test_the_service_binds_the_context_and_no_key_vouches_for_itself(
        self, kms: GcpKms, master_key: MasterKey
    ) -> None:
        assert master_key.binds_context
        assert not kms.trusts(master_key.uri)

    def test_a_wrapping_names_key_and_version(self, master_key: MasterKey, wrapped: WrappedKey) -> None:
        assert (wrapped.master_key, wrapped.version) == (master_key.uri, "1")

    def test_a_new_primary_version_wraps_and_older_ones_still_open(
        self, kms: GcpKms, server: Gcp, kek: Secret, context: KeyContext
    ) -> None:
        name = server.create_key()
        key = kms.master_key(f"gcp-kms:{name}")
        old = key.wrap(kek, aad=context)
        with server.client() as client:
            client.create_crypto_key_version(request={"parent": name, "crypto_key_version": {}})
            client.update_crypto_key_primary_version(request={"name": name, "crypto_key_version_id": "2"})
        new = key.wrap(kek, aad=context)
        assert (old.version, new.version) == ("1", "2")
        owner = GcpKms(
            KmsSettings({**vars(kms.table), "service_account_file": server.account("owner")}, tls=kms._tls)
        )
        assert isinstance(key, GcpKmsKey)
        with pytest.raises(KeyAccessDeniedError, match=r"cloudkms\.cryptoKeys\.get"):
            key.ask_newest_version()
        assert GcpKmsKey(key.uri, owner).ask_newest_version() == "2"
        assert key.unwrap(old, aad=context) == key.unwrap(new, aad=context) == kek

    def test_a_wrapping_is_what_the_service_itself_calls_authenticated(
        self, server: Gcp, master_key: MasterKey, kek: Secret, wrapped: WrappedKey, context: KeyContext
    ) -> None:
        """Whoever has the permission opens a wrapping with Google's own tools, under the documented AAD."""
        fields = (context.dataset_id, context.key_name, context.kek_id)
        aad = b"encpipe/1 kek-wrap\0" + b"".join(len(f).to_bytes(4, "big") + f.encode() for f in fields)
        name = master_key.uri.removeprefix("gcp-kms:")
        request = {"name": name, "ciphertext": wrapped.blob, "additional_authenticated_data": aad}
        with server.client() as client:
            assert Secret(client.decrypt(request=request).plaintext) == kek

    def test_a_key_of_another_purpose_cannot_wrap(
        self, kms: GcpKms, server: Gcp, kek: Secret, context: KeyContext
    ) -> None:
        key = kms.master_key(f"gcp-kms:{server.create_key(purpose='ASYMMETRIC_DECRYPT')}")
        with pytest.raises(ConfigError) as refused:
            key.wrap(kek, aad=context)
        assert "ENCRYPT_DECRYPT" in refused.value.hint


class TestGcpOverTls(TestGcp):
    flip_step = 16

    @pytest.fixture
    def server(self, gcp_kms_tls: Gcp) -> Gcp:
        return gcp_kms_tls
