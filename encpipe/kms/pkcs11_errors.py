"""What a PKCS#11 token answers -> the error tree. Imported with python-pkcs11 only.

The SDK's own texts hold names of return codes and what was searched for, and neither PIN nor key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pkcs11.exceptions as sdk

from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)

FAILING: Final = (sdk.GeneralError, sdk.FunctionFailed)
"""What a token says when it fails; SoftHSM also when a tag does not fit, or its token is gone."""

STALE: Final = (
    *FAILING,
    sdk.SessionHandleInvalid,
    sdk.SessionClosed,
    sdk.UserNotLoggedIn,
    sdk.KeyHandleInvalid,
    sdk.ObjectHandleInvalid,
    sdk.WrappingKeyHandleInvalid,
    sdk.UnwrappingKeyHandleInvalid,
    sdk.OperationActive,
    sdk.DeviceRemoved,
    sdk.DeviceError,
    sdk.TokenNotPresent,
    sdk.NoSuchKey,  # a token shows private keys only to a user who is still logged in
)
"""What a session says that is no longer good, because of whatever happened since it was opened."""

WRONG_PIN: Final = (sdk.PinIncorrect, sdk.PinInvalid, sdk.PinLenRange)

_MAY_PASS: Final = (
    *FAILING,
    sdk.DeviceError,
    sdk.DeviceMemory,
    sdk.HostMemory,
    sdk.FunctionCancelled,
    sdk.SessionCount,
    sdk.OperationActive,
)
_ABSENT: Final = (
    sdk.NoSuchToken,
    sdk.TokenNotPresent,
    sdk.TokenNotRecognised,
    sdk.DeviceRemoved,
    sdk.SlotIDInvalid,
    sdk.SessionHandleInvalid,
    sdk.SessionClosed,
    sdk.KeyHandleInvalid,
    sdk.ObjectHandleInvalid,
    sdk.WrappingKeyHandleInvalid,
    sdk.UnwrappingKeyHandleInvalid,
)
_DOES_NOT_OPEN: Final = (
    sdk.EncryptedDataInvalid,
    sdk.EncryptedDataLenRange,
    sdk.WrappedKeyInvalid,
    sdk.WrappedKeyLenRange,
)
_UNUSABLE: Final = (
    sdk.MechanismInvalid,
    sdk.MechanismParamInvalid,
    sdk.FunctionNotSupported,
    sdk.KeySizeRange,
    sdk.KeyTypeInconsistent,
    sdk.WrappingKeySizeRange,
    sdk.WrappingKeyTypeInconsistent,
    sdk.UnwrappingKeySizeRange,
    sdk.UnwrappingKeyTypeInconsistent,
    sdk.AttributeSensitive,
    sdk.KeyUnextractable,
    sdk.KeyNotWrappable,
    sdk.TemplateInconsistent,
)
_NOT_PERMITTED: Final = "0x68"
"""CKR_KEY_FUNCTION_NOT_PERMITTED, which the SDK has no class for."""


EDDSA: Final = "eddsa"
"""What `Request.mechanism` says of signing keys."""


@dataclass(frozen=True)
class Request:
    """What was asked, for messages: `wrap`, `unwrap` or `sign`, key URI, token label, module, mechanism."""

    action: str
    uri: str
    token: str
    module: str
    mechanism: str


def may_pass(error: BaseException) -> bool:
    """Whether it may help to ask again within seconds."""
    return isinstance(error, _MAY_PASS)


def from_sdk(error: BaseException, request: Request) -> EncpipeError:
    """The error of our tree for one that python-pkcs11 raised. The caller raises it."""
    if isinstance(error, EncpipeError):
        return error
    name, uri = type(error).__name__, request.uri
    if isinstance(error, (*WRONG_PIN, sdk.PinLocked, sdk.PinExpired, sdk.UserPinNotInitialized)):
        return _of_pin(error, request.token)
    if isinstance(error, (sdk.AnotherUserAlreadyLoggedIn, sdk.UserTooManyTypes)):
        return KmsError(
            f"the token {request.token!r} has another user logged in in this process",
            hint="the security officer has to log out first",
            code="credentials",
        )
    if isinstance(error, _DOES_NOT_OPEN):
        return does_not_open(uri)
    if isinstance(error, sdk.NoSuchKey):
        kind, what = ("EC_EDWARDS", "pubkey") if request.mechanism == EDDSA else ("AES", "secrkey")
        return KeyNotFoundError(
            f"the token {request.token!r} has no {kind} key {uri}",
            hint=f"its user sees these: pkcs11-tool --module MODULE --login --list-objects --type {what}",
        )
    if isinstance(error, (sdk.MultipleObjectsReturned, sdk.MultipleTokensReturned)):
        what = "tokens" if isinstance(error, sdk.MultipleTokensReturned) else "keys"
        return ConfigError(
            f"several {what} fit {uri}",
            hint="add serial=... (of the token) or id=%... (of the key) to the URI",
        )
    if isinstance(error, _UNUSABLE):
        return _unusable(name, request)
    if isinstance(error, _MAY_PASS):
        return KmsUnavailableError(
            f"the token {request.token!r} failed to {request.action} under {uri}: {name}",
            hint="wrapped keys are safe; look into the token's own log, and try again later",
        )
    if isinstance(error, _ABSENT):
        return KmsUnavailableError(
            f"the token {request.token!r} is not there ({name})",
            hint=f"put it in, or check its label; {request.module} shows these: pkcs11-tool --list-slots",
        )
    return _other(error, request)


def does_not_open(uri: str) -> UnwrapError:
    """For a wrapping that the token refuses as such."""
    return UnwrapError(
        f"{uri} does not open this wrapping",
        hint="it was changed, or belongs to another dataset, key name or master key (one of the same label?)",
    )


def refused_before(token: str) -> KmsError:
    """For a PIN that this process has already tried: another try could lock the token."""
    return KmsError(
        f"the PIN was refused by the token {token!r} before, and is not tried again",
        hint='correct what "pin" in the table "kms.pkcs11" names; if it is right now, restart this program',
        code="credentials",
    )


def locked(token: str) -> KmsError:
    """For a token that takes no PIN any more."""
    return KmsError(
        f"the PIN of the token {token!r} is locked: too many wrong ones were given",
        hint="its security officer can set a new one: pkcs11-tool --login-type so --init-pin",
        code="pin-locked",
    )


def last_try(token: str) -> KmsError:
    """For a token that would be locked by a wrong PIN."""
    return KmsError(
        f"the token {token!r} has one try left before its PIN is locked, and that one is left to you",
        hint="log in with the right PIN once, and the count starts anew: pkcs11-tool --login --list-objects",
        code="pin-locked",
    )


def _of_pin(error: BaseException, token: str) -> KmsError:
    if isinstance(error, sdk.PinLocked):
        return locked(token)
    if isinstance(error, WRONG_PIN):
        return KmsError(
            f"the token {token!r} refuses the PIN",
            hint='correct what "pin" in the table "kms.pkcs11" names; tokens lock after a few wrong PINs',
            code="credentials",
        )
    return KmsError(
        f"the PIN of the token {token!r} has to be set first ({type(error).__name__})",
        hint="set it: pkcs11-tool --login-type so --init-pin, or --change-pin where it has expired",
        code="credentials",
    )


def _unusable(name: str, request: Request) -> ConfigError:
    what = (
        f"the token {request.token!r} cannot {request.action} under {request.uri} with {request.mechanism}: "
        f"{name}"
    )
    if request.mechanism == EDDSA:
        return ConfigError(what, hint="does the token have CKM_EDDSA? pkcs11-tool --list-mechanisms tells")
    other = {"aes-gcm": "aes-key-wrap", "aes-key-wrap": "aes-gcm"}[request.mechanism]
    return ConfigError(what, hint=f'if the token cannot, set mechanism = "{other}" in the table "kms.pkcs11"')


def _other(error: BaseException, request: Request) -> EncpipeError:
    name, text = type(error).__name__, str(error) if type(error) is sdk.PKCS11Error else ""
    if "while loading" in text:
        return ConfigError(
            f"the PKCS#11 module {request.module} cannot be loaded",
            hint="check the path, and that the module is built for this system",
        )
    if "already initialized" in text:
        return ConfigError(
            f"the PKCS#11 module {request.module} is in use by another part of this program",
            hint="only one library per process can use it: let that one use python-pkcs11 as well",
        )
    if text.endswith(_NOT_PERMITTED):
        return KeyAccessDeniedError(
            f"the token {request.token!r} does not let {request.uri} {request.action}",
            hint="set CKA_ENCRYPT and CKA_DECRYPT on the key (aes-key-wrap: CKA_WRAP and CKA_UNWRAP; to "
            "sign: CKA_SIGN)",
        )
    what = f"{name}: {text}" if text else name
    return KmsError(
        f"{request.action} under {request.uri} failed: {what}",
        hint="see the documentation of the token for this return code",
    )
