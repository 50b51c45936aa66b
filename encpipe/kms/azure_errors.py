"""What Azure and its SDK call an error -> the error tree. Imported with the SDK only.

The service's own text is shown only where the request held no key: who answers could repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from azure.core import exceptions as sdk
from azure.identity import CredentialUnavailableError

from encpipe import strictjson
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    ManifestError,
    UnwrapError,
)
from encpipe.kms.azure_wrapping import Ask
from encpipe.kms.noanswer import silent, torn, unexpected
from encpipe.kms.said import after_colon, first_word
from encpipe.transport import refused_server

MAX_ERROR_BYTES: Final = 1 << 16
MAX_RETRY_AFTER: Final = 1e6
"""Seconds. More is as good as never."""

OUT_OF_USE: Final = frozenset(
    {"KeyDisabled", "KeyNotYetValid", "KeyExpired", "ObjectIsDeletedButRecoverable"}
)
DISABLED: Final = re.compile(
    r"\bdisabled (key|object)\b|not yet valid|\bexpired key\b|currently deleted", re.IGNORECASE
)
NETWORK_RULES: Final = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})
DENIED: Final = frozenset({"Forbidden", "AccessDenied"})
UNREADABLE: Final = (sdk.DecodeError, ValueError, TypeError, LookupError, RecursionError)
"""What the SDK and the back end raise on an answer that is not what it should be."""
OTHER_RESOURCE: Final = "challenge resource"
"""In the SDK's words when a server asks for a token that is not for itself. It is sent none."""

ROLES: Final = {
    "encrypt": "keys/encrypt/action",
    "decrypt": "keys/decrypt/action",
    "wrapkey": "keys/wrap/action",
    "unwrapkey": "keys/unwrap/action",
}
"""Operation -> data action of a role, after `Microsoft.KeyVault/managedHsm/`, or `.../vaults/`."""
VAULT: Final = ".vault."
"""In the host of a vault, in every cloud (vault.azure.net, vault.azure.cn, ...)."""

UNTIL_LATER: Final = "wrapped keys are safe; try again later"
IS_IT_AZURE: Final = "does a proxy or a firewall between answer? a denied key says Forbidden"
SIGN_IN: Final = "renew the credentials (az login, a new secret) and check this machine's clock"


@dataclass(frozen=True)
class _Said:
    """The service's error, as far as it can be read. Each text could be anything."""

    code: str = ""
    inner: str = ""
    message: str = ""

    @classmethod
    def read(cls, body: bytes) -> _Said:
        try:
            answer = (
                strictjson.loads(body, what="an answer") if len(body) <= MAX_ERROR_BYTES else {"error": {}}
            )
            error = answer["error"]
            inner = error.get("innererror") or {}
            return cls(
                first_word(error.get("code") or ""),
                first_word(inner.get("code") or ""),
                str(error.get("message") or ""),
            )
        except (ManifestError, TypeError, LookupError, AttributeError):
            return cls()


def from_answer(status: int, headers: Mapping[str, str], body: bytes, ask: Ask) -> EncpipeError:
    """The error of our tree for an answer other than 200. The caller raises it."""
    said = _Said.read(body)
    what = f"{ask.operation} on {ask.uri}: {said.inner or said.code or 'no error code'}"
    what += after_colon(said.message, carries_key=ask.carries_key)
    if status in (408, 429) or status >= 500:
        return _unavailable(status, headers, what)
    if status == 401:
        return KmsError(f"Azure does not accept the credentials: {what}", hint=SIGN_IN, code="credentials")
    if status == 404 and said.code == "KeyNotFound":
        return KeyNotFoundError(
            f"{ask.service} has no key {ask.uri}" + (f" in version {ask.version}" if ask.version else ""),
            hint="check the name; a deleted key can be had back for a time: az keyvault key recover",
        )
    if said.inner in OUT_OF_USE or (status in (403, 409) and DISABLED.search(said.message)):
        return KeyAccessDeniedError(
            f"{ask.uri} is disabled, or outside its time of validity ({said.inner or said.code})",
            hint="if that was not on purpose: az keyvault key set-attributes --enabled true",
            code="key-disabled",
        )
    if status == 403 and said.inner in NETWORK_RULES:
        return KmsError(
            f"{what} (HTTP 403)", hint="the service's network rules shut out this machine: allow its address"
        )
    if status == 403 and said.code in DENIED:
        return KeyAccessDeniedError(
            f"Azure refuses {what}",
            hint=f"assign a role with Microsoft.KeyVault/{_kind(ask)}/{ROLES[ask.operation]} on this key",
        )
    if status == 400 and said.code == "BadParameter":
        return _does_not_fit(ask, what)
    if status in (401, 403):
        return KmsError(f"{what} (HTTP {status}, no refusal that Azure is known to give)", hint=IS_IT_AZURE)
    return KmsError(
        f"{what} (HTTP {status})", hint="is this a Managed HSM or a vault? see its documentation for the code"
    )


def _unavailable(status: int, headers: Mapping[str, str], what: str) -> KmsUnavailableError:
    failed = "is throttling" if status == 429 else "failed"
    error = KmsUnavailableError(f"Azure {failed}: {what} (HTTP {status})", hint=UNTIL_LATER)
    if re.fullmatch(r"\d{1,9}", after := headers.get("Retry-After", "").strip()):
        error.retry_after = min(float(after), MAX_RETRY_AFTER)
    return error


def _does_not_fit(ask: Ask, what: str) -> EncpipeError:
    """To a key of another type the service says the same as to a tag that does not fit."""
    if ask.carries_key:
        return ConfigError(
            f"{ask.uri} cannot wrap keys with {ask.algorithm}: {what}",
            hint="it must be a symmetric key of 256 bits in a Managed HSM (az keyvault key create --kty "
            "oct-HSM --size 256); an RSA key needs algorithm RSA-OAEP-256, and signed datasets",
        )
    return UnwrapError(
        f"{ask.uri} does not open this wrapping ({what})",
        hint="it was changed, or belongs to another dataset, key name or master key",
    )


def from_sdk(error: BaseException, ask: Ask) -> EncpipeError:
    """The error of our tree for one that the SDK raised. The caller raises it."""
    if isinstance(error, EncpipeError):
        return error
    if (refused := refused_server(ask.service, error)) is not None:
        return refused
    if isinstance(error, ValueError) and OTHER_RESOURCE in str(error):
        return KmsError(
            f"{ask.service} asks for a token that is for another service; it was sent none",
            hint="check the URI: is this host a Managed HSM?",
        )
    if isinstance(error, sdk.HttpResponseError) and error.status_code not in (None, 200):
        return from_answer(error.status_code, {}, b"", ask)  # the SDK reads every body as JSON
    if isinstance(error, UNREADABLE):
        return torn(ask.operation, ask.service, "an Azure vault or Managed HSM", error)
    if isinstance(error, (sdk.ServiceRequestError, sdk.ServiceResponseError, OSError)):
        return silent(ask.operation, ask.service, error)
    return unexpected(ask.operation, ask.uri, "azure", error)


def from_credential(error: BaseException, source: str, authority: str) -> EncpipeError:
    """The error for one that `azure.identity` raised. `source` is what the configuration calls it."""
    if (refused := refused_server(authority, error)) is not None:
        return refused
    name, reason = type(error).__name__, re.search(r"AADSTS\d{1,10}", str(error))
    status = getattr(getattr(error, "response", None), "status_code", None) or 0
    outage = _caused_by(error, (sdk.ServiceRequestError, sdk.ServiceResponseError, sdk.DecodeError))
    if outage or (reason is None and (status == 429 or status >= 500)):
        return KmsUnavailableError(
            f"no token for Azure from {authority}: {name}", hint="check the network; wrapped keys are safe"
        )
    if reason is not None:
        return KmsError(f"Azure refuses a token: {reason[0]}", hint=SIGN_IN, code="credentials")
    if isinstance(error, (CredentialUnavailableError, ValueError, OSError)) or status == 0:
        return ConfigError(
            f"the credential {source!r} finds no identity for Azure: {name}",
            hint="set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, use a machine with a managed "
            'identity, or az login; credential in the table "kms.azure-kv" chooses',
            code="config-missing",
        )
    return KmsError(f"Azure refuses a token: {name} (HTTP {status})", hint=SIGN_IN, code="credentials")


def _caused_by(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether it is one of these errors, or was raised from one."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error is not None


def _kind(ask: Ask) -> str:
    return "vaults" if VAULT in ask.service else "managedHsm"
