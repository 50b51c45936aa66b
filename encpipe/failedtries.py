"""Which failure to report where the wrappings of a KEK were tried and none opened it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from encpipe.errors import (
    ConfigError,
    EncpipeError,
    IntegrityError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    ShreddedError,
    SignatureError,
    UntrustedKeyError,
)

_TELLING: Final = (
    (UntrustedKeyError, 6),
    (ShreddedError, 5),
    (KeyNotFoundError, 5),
    (KeyAccessDeniedError, 4),
    (KmsUnavailableError, 0),
    (IntegrityError, 1),
    (KmsError, 2),
    (ConfigError, 3),
)


def unvouched(key_name: str, uri: str) -> SignatureError:
    """The error for a wrapping that anybody can make (`public_key_wrap`), with no signature and no pin."""
    return SignatureError(
        f"anybody who has the public half of {uri} can make a wrapping of key name {key_name!r}, and nothing "
        "vouches for this one",
        hint="have the dataset signed and name its signer in trust.signers, or pin what you know "
        "(expect_core=); a stopped write that nobody signed is thrown away with --restart",
    )


def most_telling(failures: Iterable[EncpipeError], key_name: str) -> EncpipeError:
    """The one that may pass or be mended first; a denial or an absence with the key name, which key services
    do not know. `on_missing_key` reacts to those only when no wrapping failed otherwise."""
    error = min(failures, key=_weight)
    if not isinstance(error, KeyAccessDeniedError | KeyNotFoundError):
        return error
    return type(error)(f"key name {key_name!r}: {error.message}", hint=error.hint, code=error.code)


def _weight(error: EncpipeError) -> int:
    return next(weight for kind, weight in _TELLING if isinstance(error, kind))
