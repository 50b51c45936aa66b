"""docs/keyring.md is enough to write a keyring: this file is made from the page, with no code of encpipe."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from encpipe.config import KeyringConfig
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms.base import KmsSettings
from encpipe.kms.local import LocalKms

SALT, SEAL_ID, NONCE = b"s" * 16, b"i" * 16, b"n" * 12
MASTER_KEYS = {("alpha", 1): b"1" * 32, ("alpha", 2): b"2" * 32, ("beta", 1): b"3" * 32}
CREATED = "2026-01-02T03:04:05Z"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def hkdf(key: bytes, label: bytes, context: bytes) -> bytes:
    return HKDFExpand(SHA256(), 32, label + b"\0" + context).derive(key)


def aad(label: bytes, *fields: bytes) -> bytes:
    return label + b"\0" + b"".join(len(f).to_bytes(4, "big") + f for f in fields)


def keyring_by_the_page() -> bytes:
    root = Argon2id(salt=SALT, length=32, iterations=1, lanes=1, memory_cost=8192).derive(b"pass phrase")
    protection = {"kind": "passphrase", "kdf": "argon2id", "memory_kib": 8192, "passes": 1, "lanes": 1}
    header = {
        "commitment": b64(hkdf(root, b"encpipe/1 keyring-commitment", SALT)),
        "format": "encpipe-keyring",
        "keys": {
            "beta": [{"created": CREATED, "state": "active", "version": 1}],
            "alpha": [
                {"created": CREATED, "state": "retired", "version": 1},
                {"created": CREATED, "state": "active", "version": 2},
            ],
        },
        "protection": {**protection, "salt": b64(SALT)},
        "seal_id": b64(SEAL_ID),
        "version": 1,
    }
    line = json.dumps(header).encode()
    body = b"".join(MASTER_KEYS[where] for where in sorted(MASTER_KEYS))
    key = hkdf(root, b"encpipe/1 keyring-seal", SEAL_ID)
    sealed = NONCE + AESGCM(key).encrypt(NONCE, body, aad(b"encpipe/1 keyring-seal", line))
    checksum = hashlib.sha256(line + b"\n" + sealed).hexdigest()
    return line + b"\n" + f'{{"checksum":"{checksum}","sealed":"{b64(sealed)}"}}\n'.encode()


def wrapping_by_the_page(name: str, version: int, kek: bytes) -> bytes:
    context = aad(b"encpipe/1 kek-wrap", b"d" * 32, b"footer", b"e" * 32)
    head = b"\x01" + version.to_bytes(4, "big")
    key = hkdf(MASTER_KEYS[name, version], b"encpipe/1 local-wrap", context)
    return (
        head
        + NONCE
        + AESGCM(key).encrypt(NONCE, kek, aad(b"encpipe/1 local-wrap", head, name.encode(), context))
    )


def test_a_keyring_and_wrappings_made_from_the_page_open(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    path.touch(0o600)
    path.write_bytes(keyring_by_the_page())
    kms = LocalKms(KmsSettings(keyring=KeyringConfig(path), ask_passphrase=lambda _: "pass phrase"))
    context = KeyContext("d" * 32, "footer", "e" * 32)
    for name, version in MASTER_KEYS:
        uri = f"local:{name}"
        wrapped = WrappedKey(uri, wrapping_by_the_page(name, version, b"k" * 32), str(version), CREATED)
        assert kms.trusts(uri)
        assert kms.master_key(uri).unwrap(wrapped, aad=context) == Secret(b"k" * 32)
