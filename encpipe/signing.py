"""Ed25519 signatures over the core (RFC 8032): who signed a generation, and what writes are signed with.

Signed are 47 bytes, `encpipe/1 core` || 0 || SHA-256(line 1). The core fixes the file list by its SHA-256 and
the KEKs by their commitments, and the list fixes policy, schema and every file's SHA-256: so a signature says
which data this is, also against those who hold every key of the dataset. It says nothing of which state is
the newest; pins do (docs/format.md, "Signatures").
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature

from encpipe import aead
from encpipe.aead import Label
from encpipe.config import Config, SigningConfig
from encpipe.core import TaggedCore
from encpipe.errors import ConfigError, SignatureError
from encpipe.keys import SIGNER
from encpipe.kms.registry import MasterKeys
from encpipe.signingkeys import SigningKey, create_key_file, public_key, signed_message

__all__ = [
    "SigningKey",
    "WriterSigning",
    "add",
    "check",
    "check_bytes_by",
    "create_key_file",
    "is_signed",
    "missing_key",
    "signing_key",
    "valid_signers",
    "writer_signing",
]


def check(view: TaggedCore, signers: Sequence[str]) -> None:
    """Raise `SignatureError` unless one of `signers` signed this core; with no signers nothing is asked for.

    Needs no key of the dataset, so it comes before any call to a key service. Raises `ConfigError` for what
    is no signer.
    """
    if signers and not is_signed(view, signers):
        _raise_unsigned(view, signers)


def is_signed(view: TaggedCore, signers: Sequence[str]) -> bool:
    """Whether one of `signers` signed this core. Raises `ConfigError` for what is no signer."""
    keys = {signer: public_key(signer) for signer in signers}
    message = signed_message(Label.CORE_SIGNATURE, view.line)
    for entry in view.signatures:
        with contextlib.suppress(InvalidSignature, ValueError, KeyError):
            keys[entry["signer"]].verify(aead.from_text(entry["signature"]), message)
            return True
    return False


def check_bytes_by(signer: str, label: Label, data: bytes, signature: str) -> None:
    """Raise `SignatureError` unless this signer signed label || 0 || SHA-256(data).

    Raises `ConfigError` for what is no signer.
    """
    key = public_key(signer)
    try:
        key.verify(aead.from_text(signature), signed_message(label, data))
    except (InvalidSignature, ValueError):
        raise SignatureError(
            f"the signature of {signer} does not fit", hint="it was edited, or belongs to something else"
        ) from None


def _raise_unsigned(view: TaggedCore, signers: Sequence[str]) -> NoReturn:
    what = f"generation {view.core.generation} of dataset {view.core.dataset_id}"
    wrong = [entry["signer"] for entry in view.signatures if entry["signer"] in signers]
    if wrong:
        raise SignatureError(
            f"the signature of {wrong[-1]} does not fit {what}",
            hint="the dataset was changed or replaced after it was signed: restore the manifest from a copy "
            "you trust",
        )
    others = [entry["signer"] for entry in view.signatures if SIGNER.fullmatch(entry["signer"])]
    raise SignatureError(
        f"{what} is signed by none of the signers that this configuration trusts",
        hint=f"it names {others[0]}: if that is one of yours, add it to trust.signers"
        if others
        else "it has no signature: ask its writers to sign it (encpipe sign)",
    )


def valid_signers(view: TaggedCore) -> tuple[str, ...]:
    """Whose signatures fit this core, whether or not anybody trusts them."""
    found = []
    for entry in view.signatures:
        with contextlib.suppress(SignatureError, ConfigError):
            check(view, [entry["signer"]])
            found.append(entry["signer"])
    return tuple(dict.fromkeys(found))


def add(view: TaggedCore, key: SigningKey) -> tuple[Mapping[str, Any], ...]:
    """The signatures of a core with that of `key`, in place of any other under its name."""
    others = (entry for entry in view.signatures if entry["signer"] != key.signer)
    return (*others, key.sign(view))


@dataclass(frozen=True)
class WriterSigning:
    """How a write signs, and what it builds upon: only a state that one of `signers` signed (any where there
    are none), so that nobody has his work signed by leaving it in the way of one who signs."""

    key: SigningKey | None
    signers: tuple[str, ...]

    @property
    def sign(self) -> Callable[[TaggedCore], Mapping[str, Any]] | None:
        """What a commit is signed by; None where it is not."""
        return None if self.key is None else self.key.sign


def signing_key(master_keys: MasterKeys | Config) -> SigningKey | None:
    """The key that the configuration signs with, or None. One call where a key service holds it, which is
    that of `master_keys`, or one made for this call.

    Raises what `SigningKey.load`, `SigningKey.in_service` and `MasterKeys.signing_key` raise.
    """
    if isinstance(master_keys, Config):
        master_keys = MasterKeys(master_keys)
    config = master_keys.config
    if config.signing.key is not None:
        with master_keys.audit.refusals("sign", how=config.signing.key):
            return SigningKey.in_service(master_keys.signing_key(config.signing.key), config.trust.signers)
    return None if config.signing.key_file is None else SigningKey.load(config.signing.key_file)


def writer_signing(master_keys: MasterKeys | Config) -> WriterSigning:
    """What the configuration says of signing. With a key and no `trust.signers` the key's own signer counts.

    Raises `ConfigError` where what is written would not be read under the same configuration: `trust.signers`
    without a key, or without this key's signer; and what `signing_key` raises.
    """
    config = master_keys if isinstance(master_keys, Config) else master_keys.config
    signers, key = config.trust.signers, signing_key(master_keys)
    if key is None:
        if not signers:
            return WriterSigning(None, ())
        raise missing_key("the configuration trusts only signed datasets (trust.signers), and")
    if signers and key.signer not in signers:
        raise ConfigError(
            f"signing key {_named(config.signing)} is that of {key.signer}, which trust.signers "
            "does not name",
            hint="add it to trust.signers, or name the key of one of those",
        )
    return WriterSigning(key, signers or (key.signer,))


def missing_key(who: str = "the configuration") -> ConfigError:
    """The error for a configuration that names no key to sign with."""
    return ConfigError(
        f"{who} names no key to sign with",
        hint='add [signing] key_file = "PATH"; encpipe keys create-signer PATH makes a key. Or key = '
        '"URI", of an Ed25519 key in Vault or on a PKCS#11 token',
        code="config-missing",
    )


def _named(signing: SigningConfig) -> str:
    return repr(signing.key or str(signing.key_file))
