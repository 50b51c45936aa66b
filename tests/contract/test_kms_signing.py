"""OpenBao and a PKCS#11 token keep the contract of a key service that signs."""

from __future__ import annotations

import pytest
from servers.openbao import OpenBao
from servers.softhsm import MODULE, PIN, SoftHsm

from encpipe.kms.base import KmsSettings
from encpipe.kms.pkcs11 import Pkcs11Kms
from encpipe.kms.vault import VaultKms
from encpipe.testing import SigningContract


@pytest.mark.server
class TestVault(SigningContract):
    malformed_uris = ("vault:", "vault:transit/signer", "vault:a b", "vault:../sys/seal", "local:signer")

    @pytest.fixture
    def kms(self, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> VaultKms:
        monkeypatch.setenv("SIGNER_TOKEN", openbao.root_token)
        return VaultKms(KmsSettings({"address": openbao.address, "token": "env:SIGNER_TOKEN"}))

    @pytest.fixture
    def uri(self, openbao: OpenBao) -> str:
        """Of two versions."""
        uri = openbao.create_key(type="ed25519")
        openbao.ask("post", f"transit/keys/{uri.removeprefix('vault:')}/rotate", {})
        return uri

    def test_the_newest_version_comes_first(self, kms: VaultKms, uri: str) -> None:
        assert [key.version for key in kms.signing_key(uri).public_keys()] == ["2", "1"]


@pytest.mark.system
class TestPkcs11(SigningContract):
    malformed_uris = ("pkcs11:", "pkcs11:token=main", "pkcs11:object=signer;token=main", "local:signer")

    @pytest.fixture
    def kms(self, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> Pkcs11Kms:
        monkeypatch.setenv("TOKEN_PIN", PIN)
        return Pkcs11Kms(KmsSettings({"module": str(MODULE), "pin": "env:TOKEN_PIN"}))

    @pytest.fixture
    def uri(self) -> str:
        return "pkcs11:token=main;object=signer"
