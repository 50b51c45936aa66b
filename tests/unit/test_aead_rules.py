"""What the cipher calls promise beyond their vectors: no key, label or field list meets another."""

from __future__ import annotations

from itertools import combinations

import pytest

from encpipe import aead
from encpipe.aead import Label
from encpipe.errors import DecryptionError, EncpipeError, ManifestError
from encpipe.keys import KeyContext, Secret

KEY = Secret(bytes(range(32)))


def test_labels_are_one_table_and_none_begins_another_with_its_zero() -> None:
    assert all(label.startswith("encpipe/1 ") and label.isascii() and "\0" not in label for label in Label)
    for one, other in combinations(Label, 2):
        assert one + "\0" not in other + "\0"


def test_every_label_and_context_gives_its_own_key() -> None:
    keys = [aead.derive(KEY, label, context) for label in Label for context in (b"", b"\0", b"a")]
    assert len({key.reveal() for key in keys}) == len(keys)
    assert KEY.reveal() not in {key.reveal() for key in keys}


FIELDS = [(), (b"",), (b"", b""), (b"a", b"b"), (b"ab",), (b"a\0\0\0\1b",), (b"a", b"", b"b"), (b"\0\0\0\0",)]


def test_no_two_field_lists_encode_alike() -> None:
    encoded = {aead.encode_aad(label, *fields) for label in Label for fields in FIELDS}
    assert len(encoded) == len(Label) * len(FIELDS)


def test_the_encoding_is_the_documented_one() -> None:
    assert aead.encode_aad(Label.FILE_LIST, b"ab", b"") == b"encpipe/1 file-list\0\0\0\0\2ab\0\0\0\0"
    context = aead.context_aad(KeyContext("d1", "pii", "k1"))
    assert context == b"encpipe/1 kek-wrap\0\0\0\0\2d1\0\0\0\3pii\0\0\0\2k1"


def test_nonces_are_fresh() -> None:
    sealed = {aead.seal(KEY, b"same", aad=b"") for _ in range(50)}
    assert len({one[: aead.NONCE_BYTES] for one in sealed}) == 50
    assert all(len(one) == 4 + aead.SEAL_OVERHEAD for one in sealed)


@pytest.mark.parametrize("size", [0, 1, aead.NONCE_BYTES, aead.SEAL_OVERHEAD - 1])
def test_too_few_bytes_are_refused(size: int) -> None:
    with pytest.raises(DecryptionError, match="cannot be"):
        aead.open_sealed(KEY, bytes(size), aad=b"")


def test_more_than_the_cipher_takes_is_an_error_of_our_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert aead.MAX_SEALED_BYTES == 2**31 - 1  # beyond it the library raises OverflowError
    monkeypatch.setattr(aead, "MAX_SEALED_BYTES", 100)
    sealed = aead.seal(KEY, bytes(100 - aead.SEAL_OVERHEAD), aad=b"")
    assert len(aead.open_sealed(KEY, sealed, aad=b"")) == 100 - aead.SEAL_OVERHEAD
    with pytest.raises(EncpipeError, match="too many") as refused:
        aead.seal(KEY, bytes(101 - aead.SEAL_OVERHEAD), aad=b"")
    assert refused.value.code == "unsupported"
    with pytest.raises(DecryptionError, match="cannot be 101"):
        aead.open_sealed(KEY, sealed + b"\0", aad=b"")


def test_an_error_carries_no_cause_that_could_hold_bytes() -> None:
    with pytest.raises(DecryptionError) as refused:
        aead.open_sealed(KEY, bytes(40), aad=b"secret aad")
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("tag", [b"", bytes(32), b"short", bytes(64)])
def test_a_wrong_mac_is_a_manifest_error(tag: bytes) -> None:
    with pytest.raises(ManifestError, match="MAC of the core") as refused:
        aead.check_mac(KEY, b"message", tag, what="the core")
    assert refused.value.code == "manifest-mac"


def test_a_mac_does_not_fit_another_message_or_key() -> None:
    tag = aead.mac(KEY, b"message")
    for key, message in ((KEY, b"messagf"), (Secret(bytes(32)), b"message")):
        with pytest.raises(ManifestError):
            aead.check_mac(key, message, tag, what="the core")


def test_digests_under_two_labels_differ() -> None:
    assert len({aead.digest(label, b"same") for label in Label}) == len(Label)


def test_the_lowest_argon2_parameters_give_a_key() -> None:
    one = aead.argon2id(b"", salt=b"s" * 8, memory_kib=8, passes=1, lanes=1)
    other = aead.argon2id(b"", salt=b"t" * 8, memory_kib=8, passes=1, lanes=1)
    assert len(one) == 32
    assert one != other
