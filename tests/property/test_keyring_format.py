"""The keyring file: what is written reads back; any other bytes are refused, also by a skilled editor."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encpipe import aead, strictjson
from encpipe.errors import ConfigError, FormatError, IntegrityError, KmsError
from encpipe.keys import Secret
from encpipe.kms import keyringformat
from encpipe.kms.keyringformat import KdfParams, Protection, SealedKeyring, parse, seal
from encpipe.kms.keyringkeys import Keyring

CREATED = "2026-01-02T03:04:05Z"
ROOT = Secret(b"r" * 32)
BY_KEY_FILE = Protection("key-file", b"s" * 16)
BY_PASSPHRASE = Protection("passphrase", b"s" * 16, KdfParams())
REFUSED = (IntegrityError, KmsError)

names = st.builds(str.__add__, st.sampled_from("akz"), st.text("az09_-", max_size=31))
protections = st.builds(
    lambda salt, kdf: Protection("passphrase" if kdf else "key-file", salt, kdf),
    st.binary(min_size=16, max_size=16),
    st.none() | st.builds(KdfParams, st.integers(8 << 10, 1 << 20), st.integers(1, 16), st.integers(1, 16)),
)


@st.composite
def keyrings(draw: st.DrawFn) -> Keyring:
    keyring = Keyring()
    for name in draw(st.lists(names, unique=True, max_size=5)):
        keyring = keyring.with_key(name, created=CREATED)
        for _ in range(draw(st.integers(0, 3))):
            keyring = keyring.rotated(name, created=CREATED)
    return keyring


def two_keys() -> Keyring:
    keyring = Keyring().with_key("one", created=CREATED).with_key("two", created=CREATED)
    return keyring.rotated("two", created=CREATED)


FILE = seal(two_keys(), ROOT, BY_PASSPHRASE)


def read(data: bytes) -> Keyring:
    return parse(data, what="the keyring").open(ROOT)


@settings(max_examples=60, deadline=None)
@given(keyrings(), protections)
def test_what_is_sealed_opens_to_the_same(keyring: Keyring, protection: Protection) -> None:
    sealed = parse(seal(keyring, ROOT, protection), what="the keyring")
    assert sealed.protection == protection
    assert sealed.keys == keyring.versions
    assert sealed.open(ROOT) == keyring


@pytest.mark.parametrize("protection", [BY_KEY_FILE, BY_PASSPHRASE])
def test_every_flipped_byte_is_refused_before_a_key_is_asked_for(protection: Protection) -> None:
    data = seal(two_keys(), ROOT, protection)
    for position in range(len(data)):
        for mask in (0x01, 0x20, 0x80):
            damaged = bytearray(data)
            damaged[position] ^= mask
            with pytest.raises(IntegrityError):
                parse(bytes(damaged), what="the keyring")


@settings(deadline=None)
@given(st.data())
def test_every_cut_insertion_and_replacement_is_refused(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(FILE)))
    end = data.draw(st.integers(start, len(FILE)))
    edited = FILE[:start] + data.draw(st.binary(max_size=40)) + FILE[end:]
    if edited != FILE:
        with pytest.raises(IntegrityError):
            parse(edited, what="the keyring")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse(data, what="the keyring")


def edit(change: Any, *, data: bytes = FILE) -> bytes:
    """The file as someone without the passphrase can change it: the checksum fits again."""
    first, second, _ = data.split(b"\n")
    header, sealed = json.loads(first), aead.from_text(json.loads(second)["sealed"])
    changed = change(header, bytearray(sealed))
    first, sealed = strictjson.dumps(header), bytes(changed if changed is not None else sealed)
    checksum = hashlib.sha256(first + b"\n" + sealed).hexdigest()
    second = strictjson.dumps({"checksum": checksum, "sealed": aead.to_text(sealed)})
    return first + b"\n" + second + b"\n"


def test_the_editor_of_these_tests_changes_nothing_by_itself() -> None:
    assert edit(lambda header, sealed: None) == FILE


def rename(header: dict[str, Any], _: bytearray) -> None:
    header["keys"]["three"] = header["keys"].pop("two")


def swap(header: dict[str, Any], _: bytearray) -> None:
    header["keys"] = {"one": header["keys"]["two"], "two": header["keys"]["one"]}


def add_name(header: dict[str, Any], _: bytearray) -> None:
    header["keys"]["three"] = header["keys"]["one"]


def put(*where: Any, value: Any) -> Any:
    def change(header: dict[str, Any], _: bytearray) -> None:
        target: Any = header
        for step in where[:-1]:
            target = target[step]
        target[where[-1]] = value

    return change


def drop(*where: Any) -> Any:
    def change(header: dict[str, Any], _: bytearray) -> None:
        target: Any = header
        for step in where[:-1]:
            target = target[step]
        del target[where[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(rename, id="renamed key"),
        pytest.param(swap, id="swapped keys"),
        pytest.param(add_name, id="added name"),
        pytest.param(drop("keys", "one"), id="removed key"),
        pytest.param(drop("keys", "two", 0), id="removed version"),
        pytest.param(put("keys", "one", 0, "version", value=2), id="other version number"),
        pytest.param(put("keys", "one", 0, "version", value=0), id="version 0"),
        pytest.param(put("keys", "one", 0, "version", value=2**32), id="version beyond u32"),
        pytest.param(put("keys", "one", 0, "version", value=True), id="version is a flag"),
        pytest.param(put("keys", "one", 0, "created", value="2026-01-02T03:04:06Z"), id="other time"),
        pytest.param(put("keys", "one", 0, "created", value="yesterday"), id="malformed time"),
        pytest.param(put("keys", "one", 0, "state", value="retired"), id="none active"),
        pytest.param(put("keys", "two", 0, "state", value="active"), id="two active"),
        pytest.param(put("keys", "one", 0, "state", value="gone"), id="unknown state"),
        pytest.param(put("keys", "one", value=[]), id="no versions"),
        pytest.param(put("keys", "One", value=[]), id="malformed name"),
        pytest.param(put("seal_id", value=aead.to_text(b"i" * 16)), id="other seal id"),
        pytest.param(put("commitment", value=aead.to_text(b"c" * 32)), id="other commitment"),
        pytest.param(put("commitment", value=""), id="no commitment"),
        pytest.param(put("protection", "salt", value=aead.to_text(b"t" * 16)), id="other salt"),
        pytest.param(put("protection", "salt", value=aead.to_text(b"t" * 8)), id="short salt"),
        pytest.param(put("protection", "kind", value="key-file"), id="other protection"),
        pytest.param(put("protection", "kind", value="none"), id="no protection"),
        pytest.param(put("protection", "kdf", value="scrypt"), id="other derivation"),
        pytest.param(put("protection", "passes", value=2), id="fewer passes"),
        pytest.param(put("protection", "note", value="x"), id="added protection field"),
        pytest.param(put("note", value="x"), id="added field"),
        pytest.param(drop("seal_id"), id="lacking field"),
        pytest.param(lambda header, sealed: sealed[:-1], id="cut seal"),
        pytest.param(lambda header, sealed: b"", id="empty seal"),
        pytest.param(lambda header, sealed: bytes([sealed[0] ^ 1]) + sealed[1:], id="flipped seal"),
    ],
)
def test_an_edit_with_a_fitting_checksum_is_refused(change: Any) -> None:
    with pytest.raises(REFUSED):
        read(edit(change))


def test_a_seal_of_the_right_key_over_the_wrong_number_of_keys_is_refused() -> None:
    def reseal(header: dict[str, Any], _: bytearray) -> bytes:
        key = aead.derive(ROOT, aead.Label.KEYRING_SEAL, aead.from_text(header["seal_id"]))
        aad = aead.encode_aad(aead.Label.KEYRING_SEAL, strictjson.dumps(header))
        return aead.seal(key, b"k" * 64, aad=aad)

    with pytest.raises(IntegrityError):
        read(edit(reseal))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_kib", (8 << 10) - 1),
        ("memory_kib", (1 << 20) + 1),
        ("passes", 0),
        ("passes", 17),
        ("lanes", 0),
        ("lanes", 17),
    ],
)
def test_costs_out_of_bounds_are_refused_before_they_are_paid(name: str, value: int) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse(edit(put("protection", name, value=value)), what="the keyring")
    assert caught.value.code == "keyring-damaged"
    with pytest.raises(ValueError, match="bounds"):
        KdfParams(**{name: value})


def test_bodies_do_not_move_between_files_of_one_passphrase() -> None:
    other = seal(two_keys(), ROOT, BY_PASSPHRASE)
    body = aead.from_text(json.loads(other.split(b"\n")[1])["sealed"])
    with pytest.raises(IntegrityError):
        read(edit(lambda header, sealed: body))


def test_another_passphrase_is_told_from_damage() -> None:
    with pytest.raises(KmsError) as caught:
        parse(FILE, what="the keyring").open(Secret(b"x" * 32))
    assert caught.value.code == "passphrase-wrong"


def test_a_newer_version_and_another_format_say_so() -> None:
    for change, code in (
        (put("version", value=2), "format-newer"),
        (put("format", value="other"), "format"),
    ):
        with pytest.raises(FormatError) as caught:
            parse(edit(change), what="the keyring")
        assert caught.value.code == code


def test_too_long_a_file_is_neither_read_nor_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyringformat, "MAX_FILE_BYTES", 100)
    with pytest.raises(IntegrityError, match="longer"):
        parse(FILE, what="the keyring")
    with pytest.raises(ConfigError, match="long"):
        seal(two_keys(), ROOT, BY_KEY_FILE)


def test_the_file_and_the_reprs_show_no_key() -> None:
    keyring = two_keys()
    sealed: SealedKeyring = parse(seal(keyring, ROOT, BY_PASSPHRASE), what="the keyring")
    raw = keyring.secret("one", 1).reveal()
    assert raw not in FILE
    shown = f"{keyring!r} {sealed!r}"
    assert repr(raw)[2:-1] not in shown
    assert not re.search(r"Secret\(", shown)
