"""The cipher calls against published vectors. Each names its source."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from encpipe import aead
from encpipe.aead import Label
from encpipe.errors import DecryptionError
from encpipe.keys import Secret

KEY = "feffe9928665731c6d6a8f9467308308" * 2
NONCE = "cafebabefacedbaddecaf888"
PLAINTEXT = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
CIPHERTEXT = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
AAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"

# McGrew and Viega, "The Galois/Counter Mode of Operation" as submitted to NIST (gcm-revised-spec.pdf),
# appendix B, the test cases with 256-bit keys and 96-bit nonces:
# name -> key, nonce, AAD, plaintext, ciphertext, tag
GCM = {
    "test case 13": ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    "test case 14": (
        "00" * 32,
        "00" * 12,
        "",
        "00" * 16,
        "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    "test case 15": (KEY, NONCE, "", PLAINTEXT, CIPHERTEXT, "b094dac5d93471bdec1a502270e3cc6c"),
    "test case 16": (KEY, NONCE, AAD, PLAINTEXT[:120], CIPHERTEXT[:120], "76fc6ece0f4e1768cddf8853bb2d551b"),
}
gcm = pytest.mark.parametrize("vector", GCM.values(), ids=GCM)
Vector = tuple[str, str, str, str, str, str]


def unhex(vector: Vector) -> tuple[Secret, bytes, bytes, bytes, bytes, bytes]:
    key, *rest = (bytes.fromhex(part) for part in vector)
    nonce, aad, plaintext, ciphertext, tag = rest
    return Secret(key), nonce, aad, plaintext, ciphertext, tag


@gcm
def test_aes_256_gcm_opens_the_vector(vector: Vector) -> None:
    key, nonce, aad, plaintext, ciphertext, tag = unhex(vector)
    assert aead.open_sealed(key, nonce + ciphertext + tag, aad=aad) == plaintext


@gcm
def test_aes_256_gcm_seals_to_the_vector(vector: Vector, monkeypatch: pytest.MonkeyPatch) -> None:
    key, nonce, aad, plaintext, ciphertext, tag = unhex(vector)
    monkeypatch.setattr(aead.os, "urandom", lambda size: nonce[:size])
    assert aead.seal(key, plaintext, aad=aad) == nonce + ciphertext + tag


def flipped(tag: bytes, bit: int) -> bytes:
    changed = bytearray(tag)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# The ways in which Wycheproof's aes_gcm_test.json makes invalid tags (comments "Flipped bit N in tag",
# "all bits of tag flipped", "Tag changed to all zero", "tag changed to all 1", "msbs / lsbs changed")
BAD_TAGS = {
    **{
        f"flipped bit {bit}": (lambda tag, bit=bit: flipped(tag, bit))
        for bit in (0, 1, 7, 8, 31, 32, 33, 63, 64, 71, 77, 80, 96, 97, 103, 120, 121, 126, 127)
    },
    "flipped bits 0 and 64": lambda tag: flipped(flipped(tag, 0), 64),
    "flipped bits 31 and 63": lambda tag: flipped(flipped(tag, 31), 63),
    "flipped bits 63 and 127": lambda tag: flipped(flipped(tag, 63), 127),
    "all bits flipped": lambda tag: bytes(b ^ 0xFF for b in tag),
    "all zero": lambda tag: bytes(len(tag)),
    "all one": lambda tag: b"\xff" * len(tag),
    "highest bits flipped": lambda tag: bytes(b ^ 0x80 for b in tag),
    "lowest bits flipped": lambda tag: bytes(b ^ 0x01 for b in tag),
    "truncated by one byte": lambda tag: tag[:-1],
    "truncated to 12 bytes": lambda tag: tag[:12],
    "one byte too long": lambda tag: tag + b"\0",
    "empty": lambda tag: b"",
}


@gcm
@pytest.mark.parametrize("change", BAD_TAGS.values(), ids=BAD_TAGS)
def test_a_changed_tag_is_refused(vector: Vector, change) -> None:  # type: ignore[no-untyped-def]  # lambdas
    key, nonce, aad, _, ciphertext, tag = unhex(vector)
    with pytest.raises(DecryptionError):
        aead.open_sealed(key, nonce + ciphertext + change(tag), aad=aad)


@gcm
def test_every_other_changed_byte_is_refused(vector: Vector) -> None:
    key, nonce, aad, _, ciphertext, tag = unhex(vector)
    sealed = nonce + ciphertext + tag
    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(DecryptionError):
            aead.open_sealed(key, bytes(damaged), aad=aad)
    for other in (aad + b"\0", aad[:-1] + b"?", b"other"):
        with pytest.raises(DecryptionError):
            aead.open_sealed(key, sealed, aad=other)
    with pytest.raises(DecryptionError):
        aead.open_sealed(Secret(bytes.fromhex(KEY[:62] + "09")), sealed, aad=aad)


# RFC 5869, appendix A.1 to A.3: PRK, info, OKM
HKDF = {
    "A.1": (
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "A.2": (
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "".join(f"{byte:02x}" for byte in range(0xB0, 0x100)),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
        "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
        "cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    "A.3": (
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


def first_block(key: bytes, info: bytes) -> bytes:
    """RFC 5869, section 2.3: T(1) = HMAC-Hash(PRK, T(0) | info | 0x01) with an empty T(0)."""
    return hmac.digest(key, info + b"\x01", "sha256")


@pytest.mark.parametrize(("prk", "info", "okm"), HKDF.values(), ids=HKDF)
def test_hkdf_expand_is_that_of_rfc_5869(prk: str, info: str, okm: str) -> None:
    key, context, expected = (bytes.fromhex(part) for part in (prk, info, okm))
    assert HKDFExpand(SHA256(), len(expected), context).derive(key) == expected
    assert first_block(key, context) == expected[:32]


@pytest.mark.parametrize("label", Label)
def test_derive_is_hkdf_expand_of_label_zero_context(label: Label) -> None:
    key = bytes.fromhex(HKDF["A.1"][0])
    derived = aead.derive(Secret(key), label, b"context").reveal()
    assert derived == first_block(key, label.encode() + b"\0context")


# RFC 4231, section 4, test cases 1 to 4, 6 and 7: key, data, HMAC-SHA-256
HMAC = {
    "case 1": ("0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    "case 2": (
        b"Jefe".hex(),
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    "case 3": ("aa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    "case 4": (
        bytes(range(1, 26)).hex(),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    "case 6": (
        "aa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    "case 7": (
        "aa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. "
        b"The key needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
}


@pytest.mark.parametrize(("key", "data", "expected"), HMAC.values(), ids=HMAC)
def test_mac_is_the_hmac_of_rfc_4231(key: str, data: bytes, expected: str) -> None:
    assert aead.mac(Secret(bytes.fromhex(key)), data).hex() == expected
    aead.check_mac(Secret(bytes.fromhex(key)), data, bytes.fromhex(expected), what="the vector")


def test_the_argon2id_primitive_is_that_of_rfc_9106() -> None:
    """Section 5.3; `aead.argon2id` has neither of the vector's secret and associated data."""
    kdf = Argon2id(
        salt=b"\x02" * 16,
        length=32,
        iterations=3,
        lanes=4,
        memory_cost=32,
        ad=b"\x04" * 12,
        secret=b"\x03" * 8,
    )
    tag = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
    assert kdf.derive(b"\x01" * 32).hex() == tag


# The reference implementation (P-H-C/phc-winner-argon2, src/test.c, Argon2id v1.3): passes, KiB, lanes, tag
ARGON2 = {
    "t=2 m=2^16 p=1": (2, 1 << 16, 1, "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"),
    "t=2 m=2^8 p=1": (2, 1 << 8, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
    "t=2 m=2^8 p=2": (2, 1 << 8, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
}


@pytest.mark.parametrize(("passes", "memory", "lanes", "tag"), ARGON2.values(), ids=ARGON2)
def test_argon2id_is_that_of_the_reference(passes: int, memory: int, lanes: int, tag: str) -> None:
    key = aead.argon2id(b"password", salt=b"somesalt", memory_kib=memory, passes=passes, lanes=lanes)
    assert key.reveal().hex() == tag


# RFC 4648, section 10, without the padding; the last two show the URL-safe letters of section 5
BASE64 = {
    "": "",
    "f": "Zg",
    "fo": "Zm8",
    "foo": "Zm9v",
    "foob": "Zm9vYg",
    "fooba": "Zm9vYmE",
    "foobar": "Zm9vYmFy",
    "\xfb": "-w",
    "\xff": "_w",
}


@pytest.mark.parametrize(("data", "text"), BASE64.items())
def test_text_is_base64url_without_padding(data: str, text: str) -> None:
    assert aead.to_text(data.encode("latin-1")) == text
    assert aead.from_text(text) == data.encode("latin-1")


@pytest.mark.parametrize(
    "text", ["Zg==", "Zh", "Zm9", "Z", "Zm9v\n", "Zm 9v", "+w", "/w", "Zm9v=", "é", "\ud800", "Zm9vZg=="]
)
def test_any_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64url|ASCII"):
        aead.from_text(text)


def test_digest_is_sha_256_of_label_zero_data() -> None:
    expected = hashlib.sha256(b"encpipe/1 dek-vector\0[]").digest()
    assert aead.digest(Label.DEK_VECTOR, b"[]") == expected
