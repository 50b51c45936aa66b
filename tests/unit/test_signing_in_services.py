"""A signing key that a key service keeps: which version signs, what is checked, who a journal is left to."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from specimen import Specimen

from encpipe import (
    Config,
    ConfigError,
    KeyAccessDeniedError,
    KmsError,
    MasterKeys,
    SignatureError,
    signing,
)
from encpipe.aead import Label
from encpipe.config import AuditConfig, SigningConfig, TrustConfig, parse_config
from encpipe.kms.signer import PublicKey
from encpipe.signing import SigningKey, writer_signing

WRITER, OTHER_WRITER = "a" * 32, "b" * 32
SIM = Specimen()


def private(n: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)


def signer(n: int) -> str:
    return SigningKey(private(n)).signer


@dataclass
class Service:
    """A key service with one signing key; `signs_with` is what it really signs with. Counts its calls."""

    versions: dict[str, int] = field(default_factory=lambda: {"1": 1})
    signs_with: dict[str, int] = field(default_factory=dict)
    uri: str = "fake:one"
    calls: list[str] = field(default_factory=list)

    def public_keys(self) -> tuple[PublicKey, ...]:
        self.calls.append("public_keys")
        newest_first = sorted(self.versions.items(), reverse=True)
        return tuple(PublicKey(v, private(n).public_key().public_bytes_raw()) for v, n in newest_first)

    def sign(self, message: bytes, *, version: str) -> bytes:
        self.calls.append(f"sign {version}")
        assert len(message) <= 4096
        return private(self.signs_with.get(version, self.versions[version])).sign(message)


class Denying(Service):
    def public_keys(self) -> tuple[PublicKey, ...]:
        raise KeyAccessDeniedError("no", hint="ask for it")


class Kms:
    def __init__(self, service: Service) -> None:
        self.service = service

    def signing_key(self, uri: str) -> Service:
        assert uri == self.service.uri
        return self.service


def configured(service: Service, *signers: str) -> MasterKeys:
    config = Config(signing=SigningConfig(key=service.uri), trust=TrustConfig(signers=signers))
    return MasterKeys(config, extra={"fake": Kms(service)})  # type: ignore[dict-item]  # a service that only signs


# Signing


def test_it_signs_as_a_key_in_a_file_does() -> None:
    service = Service()
    view, key = SIM.parse().head, SigningKey.in_service(service)
    assert (key.signer, key.sign(view)) == (signer(1), SigningKey(private(1)).sign(view))
    assert service.calls == ["public_keys", "sign 1"]


def test_a_signature_that_does_not_fit_the_public_key_is_never_used() -> None:
    key = SigningKey.in_service(Service(signs_with={"1": 9}))
    with pytest.raises(KmsError, match="does not fit its own public key") as caught:
        key.sign(SIM.parse().head)
    assert "fake:one" in caught.value.message
    assert caught.value.__cause__ is None


def test_the_newest_version_signs() -> None:
    service = Service({"1": 1, "2": 2})
    found = writer_signing(configured(service))
    assert found.signers == (signer(2),)


@pytest.mark.parametrize(("trusted", "expected"), [((1,), 1), ((2,), 2), ((1, 2), 2), ((7, 1), 1)], ids=str)
def test_a_rotated_key_signs_with_its_newest_version_that_is_trusted(
    trusted: tuple[int, ...], expected: int
) -> None:
    service = Service({"1": 1, "2": 2})
    found = writer_signing(configured(service, *map(signer, trusted)))
    assert found.key is not None
    assert found.key.signer == signer(expected)
    found.key.sign(SIM.parse().head)
    assert service.calls == ["public_keys", f"sign {expected}"]


def test_a_key_whose_signatures_nobody_here_would_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fake:one' is that of .* which trust\.signers") as caught:
        writer_signing(configured(Service(), signer(7)))
    assert signer(1) in caught.value.message


def test_a_key_in_a_service_does_not_leave_by_accident() -> None:
    key = SigningKey.in_service(Service())
    assert repr(key) == f"SigningKey({signer(1)})"
    with pytest.raises(TypeError, match="never pickled or copied"):
        pickle.dumps(key)


def test_a_service_that_does_not_sign_says_so() -> None:
    config = Config(signing=SigningConfig(key="local:default"))
    with pytest.raises(ConfigError, match="signs with no key of this service") as caught:
        writer_signing(config)
    assert "vault:NAME" in caught.value.hint


def test_a_refusal_of_the_service_is_in_the_audit_log(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    denied = MasterKeys(
        replace(configured(Denying()).config, audit=AuditConfig(f"file:{log}")),
        extra={"fake": Kms(Denying())},  # type: ignore[dict-item]  # a service that only signs
    )
    with pytest.raises(KeyAccessDeniedError):
        writer_signing(denied)
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert (line["event"], line["of"], line["how"]) == ("refusal", "sign", "fake:one")
    assert line["code"] == "key-denied"


# Journals


def test_a_journal_costs_one_call_however_many_records_it_has() -> None:
    service = Service()
    key = SigningKey.in_service(service)
    signed = {f"record {n}": key.sign_journal(WRITER, f"record {n}".encode()) for n in range(20)}
    assert service.calls == ["public_keys", "sign 1"]
    again = SigningKey.in_service(Service())  # another process
    for data, signature in signed.items():
        again.check_journal(WRITER, data.encode(), signature)
    key.sign_journal(OTHER_WRITER, b"x")
    assert service.calls.count("sign 1") == 2


def test_the_same_key_in_a_file_takes_what_it_signed_in_a_service() -> None:
    SigningKey(private(1)).check_journal(
        WRITER, b"x", SigningKey.in_service(Service()).sign_journal(WRITER, b"x")
    )
    SigningKey.in_service(Service()).check_journal(
        WRITER, b"x", SigningKey(private(1)).sign_journal(WRITER, b"x")
    )


def test_a_delegate_signs_for_one_journal_only() -> None:
    key = SigningKey.in_service(Service())
    signature = key.sign_journal(WRITER, b"x")
    for writer, data in ((OTHER_WRITER, b"x"), (WRITER, b"y")):
        with pytest.raises(SignatureError):
            key.check_journal(writer, data, signature)


def test_a_delegate_cannot_sign_a_core() -> None:
    view, key = SIM.parse().head, SigningKey.in_service(Service())
    public, delegation, own = key.sign_journal(WRITER, view.line).split(".")
    for name in (key.signer, f"ed25519:{public}"):
        for text in (delegation, own, f"{public}.{delegation}.{own}"):
            with pytest.raises(SignatureError):
                signing.check_bytes_by(name, Label.CORE_SIGNATURE, view.line, text)


def test_a_stranger_cannot_delegate() -> None:
    key = SigningKey.in_service(Service())
    stranger = SigningKey.in_service(Service({"1": 9}))
    theirs = stranger.sign_journal(WRITER, b"x")
    public, delegation, _ = key.sign_journal(WRITER, b"x").split(".")
    mixed = f"{public}.{delegation}.{theirs.rpartition('.')[2]}"
    for signature in (theirs, mixed):
        with pytest.raises(SignatureError):
            key.check_journal(WRITER, b"x", signature)


@given(st.text(alphabet="AQgw-_.=x\n", max_size=300) | st.text())
def test_whatever_stands_there_is_no_signature(text: str) -> None:
    with pytest.raises(SignatureError):
        SigningKey(private(1)).check_journal(WRITER, b"x", text)


# Configuration


def test_a_configuration_names_one_key(tmp_path: Path) -> None:
    source = tmp_path / "encpipe.toml"
    uri = "pkcs11:token=main;object=signer"
    assert parse_config(f'[signing]\nkey = "{uri}"', source).signing == SigningConfig(key=uri)
    with pytest.raises(ConfigError, match="names two keys"):
        parse_config('[signing]\nkey = "vault:one"\nkey_file = "x.pem"', source)


@pytest.mark.parametrize("uri", ["", "one", "vault:", "~/key.pem", "Vault:one", "vault:a b"])
def test_what_is_no_uri_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"signing.*'key'"):
        parse_config(f'[signing]\nkey = "{uri}"', tmp_path / "encpipe.toml")
