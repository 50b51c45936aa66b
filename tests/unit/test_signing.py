"""Signatures over the core: what is signed, whose signatures count, and how keys are kept."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from specimen import KEK_IDS, Specimen

from encpipe import aead, manifest, signing
from encpipe.config import Config, SigningConfig, TrustConfig
from encpipe.core import TaggedCore
from encpipe.errors import ConfigError, SignatureError
from encpipe.signing import SigningKey, create_key_file, writer_signing

SIM = Specimen()
ANN, BOB = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in (1, 2))


def signed(*keys: SigningKey) -> TaggedCore:
    view = SIM.parse().head
    for key in keys:
        view = replace(view, signatures=signing.add(view, key))
    return view


SIGNED = signed(ANN)

# What is signed


def test_a_signature_is_what_the_format_page_says() -> None:
    view = signed(ANN)
    (entry,) = view.signatures
    public = Ed25519PublicKey.from_public_bytes(aead.from_text(entry["signer"].removeprefix("ed25519:")))
    message = b"encpipe/1 core\0" + hashlib.sha256(SIM.bytes().split(b"\n")[0]).digest()
    public.verify(aead.from_text(entry["signature"]), message)
    assert len(message) == 47


def test_a_known_key_has_a_known_name() -> None:
    """The first test vector of RFC 8032, section 7.1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert SigningKey(Ed25519PrivateKey.from_private_bytes(seed)).signer == "ed25519:" + aead.to_text(public)


def test_a_core_that_is_signed_when_it_is_built_reads_back(tmp_path: Path) -> None:
    found = SIM.parse()
    built = manifest.build(
        replace(found.core, generation=4),
        revision=9,
        wrappings=found.wrappings,
        retained=(*found.retained, signed(BOB)),
        keks=SIM.keks,
        sign=ANN.sign,
    )
    again = manifest.parse(built)
    signing.check(again.head, [ANN.signer])
    signing.check(again.generation(3), [BOB.signer])
    with pytest.raises(SignatureError):
        signing.check(again.generation(2), [ANN.signer, BOB.signer])
    assert (
        manifest.parse(
            manifest.rebuild(
                again,
                revision=10,
                wrappings={},
                retained=again.retained,
                footer_kek=SIM.keks[KEK_IDS["footer"]],
            )
        )
        .generation(3)
        .signatures
        == signed(BOB).signatures
    )


# Whose signatures count


def test_without_signers_nothing_is_asked_for() -> None:
    signing.check(signed(), [])


@pytest.mark.parametrize("keys", [[ANN], [ANN, BOB], [BOB, ANN]])
def test_one_of_the_signers_is_enough(keys: list[SigningKey]) -> None:
    signing.check(signed(*keys), ["ed25519:" + "A" * 43, ANN.signer])


def test_no_signature_at_all() -> None:
    with pytest.raises(SignatureError, match=r"generation 3 .* signed by none") as caught:
        signing.check(signed(), [ANN.signer])
    assert (caught.value.code, caught.value.exit_code) == ("signature", 4)
    assert "encpipe sign" in caught.value.hint


def test_a_strangers_signature_is_named() -> None:
    with pytest.raises(SignatureError, match="signed by none") as caught:
        signing.check(signed(BOB), [ANN.signer])
    assert BOB.signer in caught.value.hint


def test_a_name_that_could_steer_a_terminal_is_not_shown() -> None:
    view = replace(signed(), signatures=({"signer": "ed25519:\x1b[2J", "signature": "x"},))
    with pytest.raises(SignatureError) as caught:
        signing.check(view, [ANN.signer])
    assert (caught.value.message + caught.value.hint).isprintable()


@pytest.mark.parametrize(
    "text", ["", "x", "=" * 86, aead.to_text(bytes(64)), aead.to_text(bytes(65)), "A" * 4096]
)
def test_a_signature_that_does_not_fit_says_whose_it_is(text: str) -> None:
    view = replace(signed(), signatures=({"signer": ANN.signer, "signature": text},))
    with pytest.raises(SignatureError, match="does not fit") as caught:
        signing.check(view, [ANN.signer])
    assert ANN.signer in caught.value.message


@given(st.lists(st.tuples(st.sampled_from([ANN.signer, BOB.signer, ""]) | st.text(), st.text()), max_size=4))
def test_whatever_stands_there_is_no_signature(entries: list[tuple[str, str]]) -> None:
    found = tuple({"signer": signer, "signature": text} for signer, text in entries)
    view = replace(SIGNED, signatures=found)
    with pytest.raises(SignatureError):
        signing.check(view, [ANN.signer, BOB.signer])
    assert signing.valid_signers(view) == ()
    signing.check(replace(view, signatures=(*found, *SIGNED.signatures)), [ANN.signer])


def test_every_bit_of_the_core_counts() -> None:
    view = signed(ANN)
    for position in range(0, len(view.line), 7):
        line = bytearray(view.line)
        line[position] ^= 1
        with pytest.raises(SignatureError):
            signing.check(replace(view, line=bytes(line)), [ANN.signer])


@pytest.mark.parametrize("signer", ["ann", "ed25519:abc", "ed25519:" + "A" * 42 + "B", ANN.signer + "A"])
def test_what_is_no_signer_is_an_error_of_the_configuration(signer: str) -> None:
    with pytest.raises(ConfigError, match="not a signer"):
        signing.check(signed(ANN), [ANN.signer, signer])


def test_signing_again_replaces_the_own_signature_only() -> None:
    view = replace(
        signed(BOB), signatures=(*signed(BOB).signatures, {"signer": ANN.signer, "signature": "x"})
    )
    both = signing.add(view, ANN)
    assert [entry["signer"] for entry in both] == [BOB.signer, ANN.signer]
    assert signing.valid_signers(view) == (BOB.signer,)
    assert signing.valid_signers(replace(view, signatures=both)) == (BOB.signer, ANN.signer)


# Keys


def test_a_key_file_is_private_and_opens_to_the_same_signer(tmp_path: Path) -> None:
    path = tmp_path / "new" / "signing.pem"
    signer = create_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).signer == signer
    assert path.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigError) as caught:
        create_key_file(path)
    assert caught.value.code == "exists"


def _pem(key: Any, protection: Any = NoEncryption()) -> bytes:  # noqa: B008 - immutable
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))


NO_KEYS = {
    "nothing": b"",
    "text": b"ed25519:abc",
    "a public key": ANN._key.public_key().public_bytes_raw(),
    "an elliptic curve key": _pem(generate_private_key(SECP256R1())),
    "a key under a passphrase": _pem(ANN._key, BestAvailableEncryption(b"secret")),
    "half a key": _pem(ANN._key)[:60],
}


@pytest.mark.parametrize("data", NO_KEYS.values(), ids=NO_KEYS)
def test_what_is_no_signing_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key.pem"
    path.touch(0o600)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="not an Ed25519 key") as caught:
        SigningKey.load(path)
    assert "create-signer" in caught.value.hint
    assert caught.value.__cause__ is None


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    create_key_file(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError) as caught:
        SigningKey.load(path)
    assert caught.value.code == "keyring-permissions"


def test_a_signing_key_does_not_leave_by_accident() -> None:
    assert repr(ANN) == f"SigningKey({ANN.signer})"
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never pickled or copied"):
            leave(ANN)


# What a configuration means for a writer


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "ann.pem"
    path.touch(0o600)
    path.write_bytes(_pem(ANN._key))
    return path


def test_a_writer_without_either_signs_nothing() -> None:
    found = writer_signing(Config())
    assert (found.key, found.signers, found.sign) == (None, (), None)


def test_a_writer_with_a_key_builds_on_his_own_signature(key_file: Path) -> None:
    found = writer_signing(Config(signing=SigningConfig(key_file)))
    assert found.signers == (ANN.signer,)
    assert found.sign is not None


def test_a_writer_builds_on_the_signatures_he_trusts(key_file: Path) -> None:
    signers = (BOB.signer, ANN.signer)
    found = writer_signing(Config(trust=TrustConfig(signers=signers), signing=SigningConfig(key_file)))
    assert found.signers == signers


def test_who_trusts_signers_only_must_sign() -> None:
    with pytest.raises(ConfigError, match="names no key to sign with") as caught:
        writer_signing(Config(trust=TrustConfig(signers=(ANN.signer,))))
    assert caught.value.code == "config-missing"
    assert "key_file" in caught.value.hint


def test_a_key_whose_signatures_nobody_here_would_take_is_refused(key_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"trust\.signers does not name") as caught:
        writer_signing(Config(trust=TrustConfig(signers=(BOB.signer,)), signing=SigningConfig(key_file)))
    assert ANN.signer in caught.value.message


def test_a_missing_key_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'/nowhere/key\.pem' is not there"):
        writer_signing(Config(signing=SigningConfig(Path("/nowhere/key.pem"))))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_key_of_another_user_is_refused(key_file: Path) -> None:
    os.chown(key_file, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        SigningKey.load(key_file)
