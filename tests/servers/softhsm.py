"""SoftHSM 2: a PKCS#11 module whose tokens are folders. No server: the process that uses it loads it.

SoftHSM reads its configuration, and which tokens there are, once per process: so they are made beforehand.
Keys are made in a process of their own, which leaves the login of this one alone.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

PIN: Final = "271828"
SO_PIN: Final = "31415926"
MODULE: Final = Path("/usr/lib/softhsm/libsofthsm2.so")

_TOKEN_FLAGS: Final = 0x8000_534B
"""SoftHSM's own attribute: the flags that C_GetTokenInfo shows."""
FINAL_TRY: Final = 0x0002_0000
LOCKED: Final = 0x0004_0000

TOKENS: Final = (
    "main",
    "shared",
    "removed",
    "absent",
    "hanging",
    "wrong-pin",
    "locked",
    "last-try",
    "twin",
    "twin",
)
KEYS: Final[Mapping[str, Any]] = {
    "one": {},
    "other": {},
    "extractable": {"EXTRACTABLE": True},
    "readable": {"SENSITIVE": False},
    "short": {"BITS": 128},
    "no-encrypt": {"ENCRYPT": False},
    "no-decrypt": {"DECRYPT": False},
    "no-wrap": {"WRAP": False},
    "no-unwrap": {"UNWRAP": False},
    "read-only": {"ENCRYPT": False, "WRAP": False},
    "first twin": {"LABEL": "twin", "ID": "01"},
    "second twin": {"LABEL": "twin", "ID": "02"},
    "known": {"VALUE": bytes(range(32)).hex()},
}
"""The keys of the token `main`: attributes on top of what encpipe asks for. Every other token has `one`."""
SIGNERS: Final[Mapping[str, Any]] = {
    "signer": {},
    "signing twin": {"LABEL": "signer-twin", "ID": "01"},
    "other signing twin": {"LABEL": "signer-twin", "ID": "02"},
    "signer-readable": {"SENSITIVE": False},
    "signer-extractable": {"EXTRACTABLE": True},
    "signer-no-sign": {"SIGN": False},
    "signer-ed448": {"CURVE": "edwards448"},
}
"""Ed25519 keys of the token `main`: attributes of their private halves."""


def need_softhsm() -> None:
    """Skips without SoftHSM, but fails where CI=true."""
    if shutil.which("softhsm2-util") is None or not MODULE.exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("needs softhsm2: make system-deps")


@dataclass(frozen=True)
class SoftHsm:
    """Tokens in a folder; the PIN of each is `PIN`."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> SoftHsm:
        """With `TOKENS` and their keys."""
        made = cls(folder)
        (folder / "tokens").mkdir()
        made.config.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
        for token in TOKENS:
            made._init_token(token)
        made.create_keys({token: {**KEYS, **SIGNERS} if token == "main" else {"one": {}} for token in TOKENS})
        made._set_flags("locked", LOCKED)
        made._set_flags("last-try", FINAL_TRY)
        return made

    @property
    def config(self) -> Path:
        """What SOFTHSM2_CONF has to name."""
        return self.folder / "softhsm2.conf"

    def _init_token(self, label: str) -> None:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label]
        self._run([*command, "--so-pin", SO_PIN, "--pin", PIN])

    def create_keys(self, keys: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """AES keys, token -> label -> attributes. Of tokens of one label, the first gets them."""
        self._run([sys.executable, __file__, json.dumps(keys)])

    def _run(self, command: list[str]) -> None:
        env = {**os.environ, "SOFTHSM2_CONF": str(self.config)}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)

    def path_of(self, token: str) -> Path:
        """The folder of a token: take it away, and the token is out."""
        label = token.encode()
        files = (self.folder / "tokens").glob("*/token.object")
        return next(file.parent for file in files if label in file.read_bytes())

    def _set_flags(self, token: str, flags: int) -> None:
        """Make a token say what SoftHSM itself never says: that its PIN is locked, or nearly so."""
        file = self.path_of(token) / "token.object"
        data = file.read_bytes()
        head = struct.pack(">QQ", _TOKEN_FLAGS, 2)  # attribute, kind: a number
        value = data.index(head) + len(head)
        (before,) = struct.unpack_from(">Q", data, value)
        file.write_bytes(data[:value] + struct.pack(">Q", before | flags) + data[value + 8 :])


def _create_keys(keys: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    import pkcs11

    module = pkcs11.lib(str(MODULE))
    for token, labels in keys.items():
        with next(module.get_tokens(token_label=token)).open(rw=True, user_pin=PIN) as session:
            for label, attributes in labels.items():
                create = _create_signer if label in SIGNERS else _create_key
                create(session, label, dict(attributes))


def _create_key(session: Any, label: str, attributes: dict[str, Any]) -> None:
    import pkcs11

    bits, label = attributes.pop("BITS", 256), attributes.pop("LABEL", label)
    key_id, known = (bytes.fromhex(attributes.pop(name, "")) for name in ("ID", "VALUE"))
    template = {pkcs11.Attribute[name]: value for name, value in {"EXTRACTABLE": False, **attributes}.items()}
    if known:
        brought = {
            pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
            pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
            pkcs11.Attribute.LABEL: label,
            pkcs11.Attribute.TOKEN: True,
            pkcs11.Attribute.SENSITIVE: True,
            pkcs11.Attribute.VALUE: known,
        }
        session.create_object({**brought, **template})
        return
    session.generate_key(pkcs11.KeyType.AES, bits, id=key_id, label=label, store=True, template=template)


def _create_signer(session: Any, label: str, attributes: dict[str, Any]) -> None:
    import pkcs11

    label, key_id = attributes.pop("LABEL", label), bytes.fromhex(attributes.pop("ID", ""))
    curve = attributes.pop("CURVE", "edwards25519")
    parameters = session.create_domain_parameters(
        pkcs11.KeyType.EC_EDWARDS,
        {pkcs11.Attribute.EC_PARAMS: bytes([0x13, len(curve)]) + curve.encode()},  # a PrintableString
        local=True,
    )
    private = {pkcs11.Attribute[name]: value for name, value in {"EXTRACTABLE": False, **attributes}.items()}
    parameters.generate_keypair(
        id=key_id,
        label=label,
        store=True,
        mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        private_template=private,
    )


if __name__ == "__main__":
    _create_keys(json.loads(sys.argv[1]))
