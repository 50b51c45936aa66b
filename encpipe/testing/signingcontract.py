"""The contract of a key service that signs, as tests. A back end subclasses it and gives two fixtures.

class TestMySigning(SigningContract):
    malformed_uris = ("my-kms:",)

    @pytest.fixture
    def kms(self): return MyKms(KmsSettings(table={"endpoint": ...}))

    @pytest.fixture
    def uri(self): return "my-kms:signer"
"""

from __future__ import annotations

import builtins
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from encpipe.aead import Label
from encpipe.errors import ConfigError
from encpipe.kms.signer import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer, SigningService
from encpipe.signingkeys import SigningKey

MAX_MESSAGE_BYTES = 4096


class SigningContract:
    """What every key service that signs must do, with an Ed25519 key that exists and may sign."""

    malformed_uris: ClassVar[tuple[str, ...]]

    @pytest.fixture
    def kms(self) -> SigningService:
        """The service, configured."""
        raise NotImplementedError

    @pytest.fixture
    def uri(self) -> str:
        """The URI of the key."""
        raise NotImplementedError

    @pytest.fixture
    def signer(self, kms: SigningService, uri: str) -> Signer:
        return kms.signing_key(uri)

    def test_it_is_a_service_that_signs(self, kms: SigningService, signer: Signer, uri: str) -> None:
        assert isinstance(kms, SigningService)
        assert signer.uri == uri

    def test_public_keys_are_told(self, signer: Signer) -> None:
        keys = signer.public_keys()
        assert keys
        assert all(len(key.raw) == PUBLIC_KEY_BYTES for key in keys)
        assert len({key.version for key in keys}) == len(keys)
        assert signer.public_keys() == keys

    @pytest.mark.parametrize("size", [1, 50, MAX_MESSAGE_BYTES])
    def test_every_version_signs_the_message_itself(self, signer: Signer, size: int) -> None:
        message = os.urandom(size)
        for key in signer.public_keys():
            signature = signer.sign(message, version=key.version)
            assert len(signature) == SIGNATURE_BYTES
            Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)

    def test_a_signing_key_can_be_made_of_it(self, signer: Signer) -> None:
        key = SigningKey.in_service(signer)
        key.check_bytes(Label.CORE_SIGNATURE, b"core", key.sign_bytes(Label.CORE_SIGNATURE, b"core"))

    def test_several_threads_may_use_one_key(self, signer: Signer) -> None:
        key = SigningKey.in_service(signer)  # checks each of its signatures
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda n: key.sign_bytes(Label.CORE_SIGNATURE, bytes([n])), range(16)))
        assert len(set(made)) == 16

    def test_naming_a_key_does_no_io(
        self, kms: SigningService, uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", _no_io)
            patch.setattr(os, "open", _no_io)
            patch.setattr(builtins, "open", _no_io)
            assert kms.signing_key(uri).uri == uri

    def test_a_malformed_uri_is_a_config_error(self, kms: SigningService) -> None:
        for uri in self.malformed_uris:
            with pytest.raises(ConfigError):
                kms.signing_key(uri)


def _no_io(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this must not open a file or a connection")
