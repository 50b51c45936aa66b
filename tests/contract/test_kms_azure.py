"""Azure Managed HSM keeps the contract of a key service, on a fake of its wire protocol."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator

import pytest
from servers.azurekv import ENTRA, HSM_DOMAIN, TENANT, VAULT_DOMAIN, WRITER, FakeAzure, lookup
from servers.ca import CertificateAuthority

from encpipe.config import TlsConfig
from encpipe.errors import UnwrapError
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.azure import AzureKms
from encpipe.kms.base import KmsSettings
from encpipe.testing.kmscontract import KmsContract

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def azure(ca: CertificateAuthority) -> Iterator[FakeAzure]:
    with FakeAzure(ca) as running:
        running.create_key("one")
        running.create_key("other")
        for name, bits in (("one", 2048), ("other", 3072)):
            running.create_key(name, f"unit.{VAULT_DOMAIN}", "RSA", bits)
        yield running


@pytest.fixture(autouse=True)
def world(azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real names lead to the fake, and the environment holds a writer's credentials."""
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", WRITER[0])
    monkeypatch.setenv("AZURE_CLIENT_SECRET", WRITER[1])
    ports = {ENTRA: azure.port, HSM_DOMAIN: azure.port, VAULT_DOMAIN: azure.port}
    monkeypatch.setattr(socket, "getaddrinfo", lookup(socket.getaddrinfo, ports))


@functools.cache
def service(ca: CertificateAuthority, algorithm: str) -> AzureKms:
    return AzureKms(
        KmsSettings({"credential": "environment", "algorithm": algorithm}, tls=TlsConfig(ca_file=ca.path))
    )


class AzureContract(KmsContract):
    algorithm: str
    bound: bool
    host = f"unit.{HSM_DOMAIN}"
    malformed_uris = (
        "azure-kv:",
        "azure-kv:one",
        "azure-kv:https://unit.managedhsm.azure.net",
        "azure-kv:https://unit.managedhsm.azure.net/keys/",
        "azure-kv:https://unit.managedhsm.azure.net/secrets/one",
        "azure-kv:http://unit.managedhsm.azure.net/keys/one",
        "azure-kv:https://user@unit.managedhsm.azure.net/keys/one",
        f"azure-kv:https://unit.managedhsm.azure.net/keys/one/{'0' * 32}",
        "azure-kv:https://unit.managedhsm.azure.net/keys/one\n",
        "azure-kv:https://unit.managedhsm.azure.net/keys/One",
        "azure-kv:https://unit.managedhsm.azure.net:443/keys/one",
        "local:one",
    )

    @pytest.fixture
    def kms(self, ca: CertificateAuthority) -> AzureKms:
        return service(ca, self.algorithm)

    @pytest.fixture
    def master_key(self, kms: AzureKms) -> MasterKey:
        return kms.master_key(f"azure-kv:https://{self.host}/keys/one")

    @pytest.fixture
    def other_master_key(self, kms: AzureKms) -> MasterKey:
        return kms.master_key(f"azure-kv:https://{self.host}/keys/other")

    def test_who_binds_the_context_is_declared(
        self, azure: FakeAzure, master_key: MasterKey, kek: Secret, context: KeyContext
    ) -> None:
        assert master_key.binds_context is self.bound
        before = len(azure.asked)
        wrapped = master_key.wrap(kek, aad=context)
        assert master_key.unwrap(wrapped, aad=context) == kek
        assert azure.asked[before:] == (["encrypt", "decrypt"] if self.bound else ["wrapkey", "unwrapkey"])

    def test_a_wrapping_names_the_version_and_opens_after_a_rotation(
        self, azure: FakeAzure, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        assert wrapped.master_key == master_key.uri
        assert wrapped.version == list(azure.key(master_key.uri).versions)[-1]
        newest = azure.key(master_key.uri).rotate()
        assert master_key.unwrap(wrapped, aad=context) == kek
        assert master_key.wrap(kek, aad=context).version == newest

    def test_no_azure_key_vouches_for_itself(self, kms: AzureKms, master_key: MasterKey) -> None:
        assert not kms.trusts(master_key.uri)


class TestGcm(AzureContract):
    algorithm = "A256GCM"
    bound = True


class TestKeyWrap(AzureContract):
    algorithm = "A256KW"
    bound = False
    binds_context = False

    @pytest.mark.skip(reason="AES key wrap is the same every time (RFC 3394)")
    def test_wrapping_is_randomised(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None: ...


class TestRsa(AzureContract):
    algorithm = "RSA-OAEP-256"
    bound = False
    binds_context = False
    public_key_wrap = True
    flip_step = 16
    host = f"unit.{VAULT_DOMAIN}"


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_an_rsa_wrapping_is_as_long_as_its_key(azure: FakeAzure, ca: CertificateAuthority, bits: int) -> None:
    kek, context = Secret.random(), KeyContext("d" * 32, "footer", "e" * 32)
    uri = azure.create_key(f"rsa-{bits}", f"unit.{VAULT_DOMAIN}", "RSA", bits)
    key = service(ca, "RSA-OAEP-256").master_key(uri)
    wrapped = key.wrap(kek, aad=context)
    assert (wrapped.blob[0], len(wrapped.blob)) == (3, 1 + bits // 8)
    assert key.unwrap(wrapped, aad=context) == kek


@pytest.mark.parametrize("read_by", ["A256GCM", "A256KW"])
def test_an_rsa_wrapping_opens_only_where_that_is_configured(
    azure: FakeAzure, ca: CertificateAuthority, read_by: str
) -> None:
    """And so where nobody thought of it, no reader depends on a signature that he does not ask for."""
    uri, context = f"azure-kv:https://unit.{VAULT_DOMAIN}/keys/one", KeyContext("d" * 32, "footer", "e" * 32)
    wrapped = service(ca, "RSA-OAEP-256").master_key(uri).wrap(Secret.random(), aad=context)
    before = len(azure.asked)
    key = service(ca, read_by).master_key(uri)
    with pytest.raises(UnwrapError, match="its public half") as caught:
        key.unwrap(wrapped, aad=context)
    assert 'algorithm = "RSA-OAEP-256"' in caught.value.hint
    assert len(azure.asked) == before


@pytest.mark.parametrize(("made_by", "read_by"), [("A256GCM", "A256KW"), ("A256KW", "A256GCM")])
def test_a_wrapping_of_either_algorithm_opens_whichever_is_configured(
    azure: FakeAzure, ca: CertificateAuthority, made_by: str, read_by: str
) -> None:
    uri, kek, context = azure.create_key("both"), Secret.random(), KeyContext("d" * 32, "footer", "e" * 32)
    wrapped = service(ca, made_by).master_key(uri).wrap(kek, aad=context)
    assert service(ca, read_by).master_key(uri).unwrap(wrapped, aad=context) == kek
