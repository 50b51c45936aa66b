"""What the fake of Google Cloud KMS knows and does: accounts, policies, key versions, and AES-256-GCM."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ENABLED, DISABLED, DESTROYED, DESTROY_SCHEDULED = 1, 2, 3, 4
STATES = {1: "ENABLED", 2: "DISABLED", 3: "DESTROYED", 4: "DESTROY_SCHEDULED"}
ENCRYPT_DECRYPT = 1
USE_TO = "cloudkms.cryptoKeyVersions.useTo"
ROLES = {
    "roles/cloudkms.cryptoKeyEncrypter": {f"{USE_TO}Encrypt"},
    "roles/cloudkms.cryptoKeyDecrypter": {f"{USE_TO}Decrypt"},
    "roles/cloudkms.cryptoKeyEncrypterDecrypter": {f"{USE_TO}Encrypt", f"{USE_TO}Decrypt"},
}
OWNER = "owner@"
AUDIENCE = "https://cloudkms.googleapis.com/"
MAX_BYTES = 64 * 1024
HEADER = b"\x0a\x24\x00"
HEADER_BYTES = len(HEADER) + 16 + 4
RPC = "type.googleapis.com/google.rpc"
CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
}


class Refused(Exception):
    def __init__(self, status: str, message: str, *details: dict[str, Any]) -> None:
        super().__init__(message)
        self.http = CODES[status]
        self.body = {"code": self.http, "message": message, "status": status, "details": list(details)}


def info(reason: str) -> dict[str, Any]:
    return {"@type": f"{RPC}.ErrorInfo", "reason": reason, "domain": "cloudkms.googleapis.com"}


@dataclass
class Version:
    material: bytes = field(default_factory=lambda: os.urandom(32))
    state: int = ENABLED


@dataclass
class Key:
    name: str
    purpose: int
    destroyed_at_once: bool
    id: bytes = field(default_factory=lambda: os.urandom(16))
    versions: list[Version] = field(default_factory=lambda: [Version()])
    primary: int = 1
    policy: dict[str, Any] = field(default_factory=dict)

    def grants(self, caller: str, permission: str) -> bool:
        return any(
            f"serviceAccount:{caller}" in binding.get("members", ())
            and permission in ROLES.get(binding.get("role"), ())
            for binding in self.policy.get("bindings", ())
        )

    def version(self, number: int) -> Version:
        if not 1 <= number <= len(self.versions):
            raise Refused("NOT_FOUND", f"CryptoKeyVersion {self.name}/cryptoKeyVersions/{number} not found.")
        return self.versions[number - 1]

    def usable(self, number: int) -> Version:
        version, name = self.version(number), f"{self.name}/cryptoKeyVersions/{number}"
        if version.state == ENABLED:
            return version
        state = STATES[version.state]
        violation = {"type": f"KEY_{state}", "subject": name}
        raise Refused(
            "FAILED_PRECONDITION",
            f"{name} is not enabled, current state is: {state}.",
            {"@type": f"{RPC}.PreconditionFailure", "violations": [violation]},
        )

    def shown(self) -> dict[str, Any]:
        return {"name": self.name, "purpose": self.purpose, "primary": self.shown_version(self.primary)}

    def shown_version(self, number: int) -> dict[str, Any]:
        name = f"{self.name}/cryptoKeyVersions/{number}"
        return {"name": name, "state": self.version(number).state, "protectionLevel": 1, "algorithm": 1}


class Service:
    """The keys, and one method for each call. A lock around every call makes the state simple."""

    def __init__(self, folder: Path, clock_offset: int) -> None:
        self.folder = folder
        self.clock_offset = clock_offset
        self.keys: dict[str, Key] = {}
        self.lock = threading.Lock()

    def caller(self, authorization: str) -> str:
        """The service account that signed the token."""
        expired = Refused(
            "UNAUTHENTICATED",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or "
            "other valid authentication credential.",
            info("ACCESS_TOKEN_EXPIRED"),
        )
        try:
            scheme, _, token = authorization.partition(" ")
            signed, _, signature = token.rpartition(".")
            claims = json.loads(unpadded(signed.split(".")[1]))
            account = re.fullmatch(r"[a-z.@-]{1,100}", claims["iss"])
            assert scheme == "Bearer"
            assert account is not None
            public = serialization.load_pem_public_key((self.folder / f"{account[0]}.pub").read_bytes())
            public.verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())  # type: ignore[union-attr,call-arg,arg-type]  # an RSA key
            assert claims["aud"] == AUDIENCE
            assert claims["iat"] - 60 <= time.time() + self.clock_offset < claims["exp"]
        except (AssertionError, LookupError, ValueError, OSError, InvalidSignature):
            raise expired from None
        return account[0]

    def key(self, name: str, caller: str, permission: str) -> Key:
        key = self.keys.get(name)
        if not caller.startswith(OWNER) and not (key and key.grants(caller, permission)):
            raise Refused(
                "PERMISSION_DENIED",
                f"Permission '{permission}' denied on resource '{name}' (or it may not exist).",
                info("IAM_PERMISSION_DENIED"),
            )
        if key is None:
            raise Refused("NOT_FOUND", f"CryptoKey {name} not found.")
        return key

    def create(self, ring: str, caller: str, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        name = f"{ring}/cryptoKeys/{query['cryptoKeyId']}"
        if not caller.startswith(OWNER):
            self.key(name, "", "cloudkms.cryptoKeys.create")
        if name in self.keys:
            raise Refused("ALREADY_EXISTS", f"CryptoKey {name} already exists.")
        at_once = body.get("destroyScheduledDuration") == "0s"
        self.keys[name] = Key(name, body.get("purpose", ENCRYPT_DECRYPT), at_once)
        return self.keys[name].shown()

    def add_version(self, key: Key) -> dict[str, Any]:
        key.versions.append(Version())
        return key.shown_version(len(key.versions))

    def set_primary(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        key.version(int(body["cryptoKeyVersionId"]))
        key.primary = int(body["cryptoKeyVersionId"])
        return key.shown()

    def set_policy(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        key.policy = body["policy"]
        return key.policy

    def set_state(self, key: Key, number: int, state: int) -> dict[str, Any]:
        version = key.version(number)
        if version.state == DESTROYED:
            raise Refused("FAILED_PRECONDITION", "The CryptoKeyVersion is destroyed.")
        version.state = state
        if state == DESTROY_SCHEDULED and key.destroyed_at_once:
            version.state, version.material = DESTROYED, b""
        return key.shown_version(number)

    def encrypt(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        plaintext, aad = taken(body, "plaintext"), taken(body, "additionalAuthenticatedData")
        symmetric(key)
        version = key.usable(key.primary)
        header = HEADER + key.id + key.primary.to_bytes(4, "big")
        nonce = os.urandom(12)
        ciphertext = header + nonce + AESGCM(version.material).encrypt(nonce, plaintext, header + aad)
        return {
            "name": f"{key.name}/cryptoKeyVersions/{key.primary}",
            **given("ciphertext", ciphertext),
            "verifiedPlaintextCrc32c": "plaintextCrc32c" in body,
            "verifiedAdditionalAuthenticatedDataCrc32c": "additionalAuthenticatedDataCrc32c" in body,
            "protectionLevel": 1,
        }

    def decrypt(self, key: Key, body: dict[str, Any]) -> dict[str, Any]:
        ciphertext, aad = taken(body, "ciphertext"), taken(body, "additionalAuthenticatedData")
        symmetric(key)
        header, nonce, sealed = (
            ciphertext[:HEADER_BYTES],
            ciphertext[HEADER_BYTES:][:12],
            ciphertext[HEADER_BYTES + 12 :],
        )
        if not header.startswith(HEADER + key.id):
            raise Refused(
                "INVALID_ARGUMENT", "Decryption failed: verify that 'name' refers to the correct CryptoKey."
            )
        invalid = Refused("INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.")
        number = int.from_bytes(header[-4:], "big")
        if not 1 <= number <= len(key.versions) or len(sealed) < 16:
            raise invalid
        version = key.usable(number)
        try:
            plaintext = AESGCM(version.material).decrypt(nonce, sealed, header + aad)
        except InvalidTag:
            raise invalid from None
        return {**given("plaintext", plaintext), "usedPrimary": number == key.primary, "protectionLevel": 1}


def symmetric(key: Key) -> None:
    if key.purpose != ENCRYPT_DECRYPT:
        raise Refused(
            "INVALID_ARGUMENT", f"The purpose of CryptoKey {key.name} does not allow this operation."
        )


def taken(body: dict[str, Any], name: str) -> bytes:
    """A field of bytes, compared with its checksum where one is sent."""
    data = base64.b64decode(body.get(name, ""), validate=True)
    if len(data) > MAX_BYTES:
        raise Refused("INVALID_ARGUMENT", f"{name} is too long: at most {MAX_BYTES} bytes.")
    checksum = body.get(f"{name}Crc32c")
    if checksum is not None and int(checksum) != google_crc32c.value(data):
        snake = re.sub("([A-Z])", lambda found: f"_{found[0].lower()}", name)
        raise Refused(
            "INVALID_ARGUMENT",
            f"The checksum in field {snake}_crc32c did not match the data in field {snake}.",
        )
    return data


def given(name: str, data: bytes) -> dict[str, str]:
    return {name: base64.b64encode(data).decode(), f"{name}Crc32c": str(google_crc32c.value(data))}


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
