"""A wrapped DEK opens for one file, one key name and one KEK."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from specimen import Specimen

from encpipe.deks import WRAPPED_DEK_CHARACTERS, dek_commitment, unwrap_dek, wrap_dek
from encpipe.errors import UnwrapError
from encpipe.keyring import make_kek
from encpipe.keys import KeyContext, Secret

KEK, DEK = Secret(b"k" * 32), bytes(range(32))
FILE, OTHER_FILE = "1" * 32, "2" * 32
KEY_ID = f"pii.{'b' * 32}"
WRAPPED = wrap_dek(KEK, DEK, file_id=FILE, key_id=KEY_ID)


def test_it_opens_to_the_same_key() -> None:
    assert unwrap_dek(KEK, WRAPPED, file_id=FILE, key_id=KEY_ID) == DEK
    assert len(WRAPPED) == WRAPPED_DEK_CHARACTERS == 103
    assert wrap_dek(KEK, DEK, file_id=FILE, key_id=KEY_ID) != WRAPPED


def test_it_is_what_the_page_says() -> None:
    """docs/format.md, "DEK wrapping", with no code of encpipe."""
    data = base64.urlsafe_b64decode(WRAPPED + "=")
    assert (len(data), data[:17]) == (77, b"\x01" + bytes.fromhex(FILE))
    key = HKDFExpand(SHA256(), 32, b"encpipe/1 dek-wrap\0" + data[1:17]).derive(KEK.reveal())
    assert AESGCM(key).decrypt(data[17:29], data[29:], data[:17] + KEY_ID.encode()) == DEK


def test_it_opens_nowhere_else() -> None:
    with pytest.raises(UnwrapError, match="not of this file"):
        unwrap_dek(KEK, WRAPPED, file_id=OTHER_FILE, key_id=KEY_ID)
    for kek, key_id in ((Secret(b"K" * 32), KEY_ID), (KEK, KEY_ID.replace("pii", "footer")), (KEK, "")):
        with pytest.raises(UnwrapError, match="does not open"):
            unwrap_dek(kek, WRAPPED, file_id=FILE, key_id=key_id)


def test_a_file_id_pasted_over_does_not_help() -> None:
    data = base64.urlsafe_b64decode(WRAPPED + "=")
    pasted = base64.urlsafe_b64encode(data[:1] + bytes.fromhex(OTHER_FILE) + data[17:]).decode().rstrip("=")
    with pytest.raises(UnwrapError, match="does not open"):
        unwrap_dek(KEK, pasted, file_id=OTHER_FILE, key_id=KEY_ID)


@pytest.mark.parametrize(
    "wrapped", ["", "x", WRAPPED[:-1], WRAPPED + "A", WRAPPED + "=", "é" * 103, "+" * 103]
)
def test_other_text_is_refused(wrapped: str) -> None:
    with pytest.raises(UnwrapError):
        unwrap_dek(KEK, wrapped, file_id=FILE, key_id=KEY_ID)


def test_every_changed_letter_is_refused() -> None:
    for position, letter in enumerate(WRAPPED):
        for other in "Ab-":
            if other != letter:
                changed = WRAPPED[:position] + other + WRAPPED[position + 1 :]
                with pytest.raises(UnwrapError):
                    unwrap_dek(KEK, changed, file_id=FILE, key_id=KEY_ID)


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
def test_a_dek_of_another_length_is_not_wrapped(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        wrap_dek(KEK, bytes(size), file_id=FILE, key_id=KEY_ID)


def test_commitments_bind_to_file_and_dek() -> None:
    commitments = {dek_commitment(f, d) for f in (FILE, OTHER_FILE) for d in (DEK, DEK[::-1])}
    assert len(commitments) == 4
    assert all(len(one) == 32 and one != DEK for one in commitments)


def test_a_new_kek_is_wrapped_by_every_master_key() -> None:
    kms = Specimen().kms
    context = KeyContext("d" * 32, "pii", "b" * 32)
    before = kms.wraps
    made = make_kek(context, [kms.master_key("memory:pii"), kms.master_key("memory:footer")])
    assert kms.wraps - before == 2
    assert [w.master_key for w in made.wrappings] == ["memory:pii", "memory:footer"]
    for wrapped in made.wrappings:
        assert kms.master_key(wrapped.master_key).unwrap(wrapped, aad=context) == made.kek
    assert make_kek(context, [kms.master_key("memory:pii")]).kek != made.kek


def test_a_kek_that_nothing_wraps_is_not_made() -> None:
    with pytest.raises(ValueError, match="no master key"):
        make_kek(KeyContext("d" * 32, "pii", "b" * 32), [])
