"""OpenBao's transit engine keeps the contract of a key service: in development mode and as deployed."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from servers.openbao import OpenBao

from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, UnwrapError
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.vault import VaultKey, VaultKms
from encpipe.testing.kmscontract import KmsContract

pytestmark = pytest.mark.server


@functools.cache
def a_key(server: OpenBao, which: str, **settings: str) -> str:
    """Its URI. Shared between tests."""
    return server.create_key(**settings)


@functools.cache
def an_identity(server: OpenBao) -> tuple[str, str]:
    """The ids of an AppRole that may wrap, unwrap and destroy, and no more."""
    allowed = {"encrypt": '"update"', "decrypt": '"update"', "keys": '"read", "delete"'}
    rules = 'path "transit/+/*" { capabilities = ["deny"] }\n' + "\n".join(
        f'path "transit/{action}/*" {{ capabilities = [{what}] }}' for action, what in allowed.items()
    )
    return server.role_ids(server.create_role([server.create_policy(rules)]))


class VaultContract(KmsContract):
    malformed_uris = (
        "vault:",
        "vault:/footer",
        "vault:transit/",
        "vault:transit/footer",
        "vault:a//b",
        "vault:a b",
        "vault:../sys/seal",
        "vault:transit/../footer",
        "vault:footer?version=1",
        "vault:footer\n",
        "vault:%66ooter",
        "vault://host/transit/footer",
        "local:footer",
    )
    destroys = True

    @pytest.fixture
    def server(self) -> OpenBao:
        raise NotImplementedError

    @pytest.fixture
    def kms(self) -> VaultKms:
        raise NotImplementedError

    @pytest.fixture
    def master_key(self, kms: VaultKms, server: OpenBao) -> MasterKey:
        return kms.master_key(a_key(server, "one"))

    @pytest.fixture
    def other_master_key(self, kms: VaultKms, server: OpenBao) -> MasterKey:
        return kms.master_key(a_key(server, "other"))

    @pytest.fixture
    def doomed_master_key(self, kms: VaultKms, server: OpenBao) -> MasterKey:
        uri = server.create_key()
        server.ask("post", f"transit/keys/{uri.removeprefix('vault:')}/config", {"deletion_allowed": True})
        return kms.master_key(uri)

    def test_a_key_is_destroyed_only_where_its_settings_allow_that(
        self, kms: VaultKms, server: OpenBao, context: KeyContext, kek: Secret
    ) -> None:
        key = kms.master_key(server.create_key())
        assert isinstance(key, VaultKey)
        wrapped = key.wrap(kek, aad=context)
        for attempt in (key.check_destroyable, key.destroy):
            with pytest.raises(ConfigError, match="deletion_allowed"):
                attempt()
        assert key.unwrap(wrapped, aad=context) == kek

    def test_the_service_binds_the_context_and_no_key_vouches_for_itself(
        self, kms: VaultKms, master_key: MasterKey
    ) -> None:
        assert master_key.binds_context
        assert not kms.trusts(master_key.uri)

    def test_a_wrapping_that_spells_its_key_otherwise_does_not_open(
        self, master_key: MasterKey, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        spelled = master_key.uri.replace("vault:", "vault:transit/")
        with pytest.raises(UnwrapError, match="cannot open"):
            master_key.unwrap(replace(wrapped, master_key=spelled), aad=context)

    def test_a_wrapping_names_its_version_and_opens_after_the_next(
        self, kms: VaultKms, server: OpenBao, context: KeyContext, kek: Secret
    ) -> None:
        key = kms.master_key(server.create_key())
        first = key.wrap(kek, aad=context)
        server.ask("post", f"transit/keys/{key.uri.removeprefix('vault:')}/rotate")
        second = key.wrap(kek, aad=context)
        assert (first.version, second.version) == ("1", "2")
        assert isinstance(key, VaultKey)
        assert key.ask_newest_version() == "2"
        assert key.unwrap(first, aad=context) == key.unwrap(second, aad=context) == kek

    def test_a_wrapping_under_another_version_is_refused(
        self, kms: VaultKms, server: OpenBao, context: KeyContext, kek: Secret
    ) -> None:
        key = kms.master_key(server.create_key())
        first = key.wrap(kek, aad=context)
        server.ask("post", f"transit/keys/{key.uri.removeprefix('vault:')}/rotate")
        for version in (b"v0", b"v2", b"v3", b"v01", b"v9999999999"):
            with pytest.raises(UnwrapError):
                key.unwrap(replace(first, blob=first.blob.replace(b"v1", version)), aad=context)

    def test_every_kind_of_key_with_associated_data_wraps(
        self, kms: VaultKms, server: OpenBao, context: KeyContext, kek: Secret
    ) -> None:
        for kind in ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"):
            key = kms.master_key(server.create_key(type=kind))
            assert key.unwrap(key.wrap(kek, aad=context), aad=context) == kek


class TestDevelopmentMode(VaultContract):
    """As root, over plain http on loopback."""

    @pytest.fixture
    def server(self, openbao: OpenBao) -> OpenBao:
        return openbao

    @pytest.fixture
    def kms(self, server: OpenBao, monkeypatch: pytest.MonkeyPatch) -> VaultKms:
        monkeypatch.setenv("VAULT_TOKEN", server.root_token)
        return VaultKms(KmsSettings({"address": server.address}))


class TestRaftTlsAppRole(VaultContract):
    """As an AppRole that may do only what the documentation asks for."""

    flip_step = 8

    @pytest.fixture
    def server(self, openbao_raft: OpenBao) -> OpenBao:
        return openbao_raft

    @pytest.fixture
    def kms(self, server: OpenBao, monkeypatch: pytest.MonkeyPatch) -> VaultKms:
        role_id, secret_id = an_identity(server)
        for variable in [name for name in os.environ if name.startswith(("VAULT_", "BAO_"))]:
            monkeypatch.delenv(variable)
        monkeypatch.setenv("ENCPIPE_TEST_SECRET_ID", secret_id)
        table = {"address": server.address, "role_id": role_id, "secret_id": "env:ENCPIPE_TEST_SECRET_ID"}
        assert server.ca is not None
        return VaultKms(KmsSettings(table, tls=TlsConfig(ca_file=Path(server.ca))))
