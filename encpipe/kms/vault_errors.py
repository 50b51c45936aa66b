"""What Vault or OpenBao answers, or its client raises -> the error tree. Imported with requests only.

The service's own text is shown only where the request held no key and no credential: who answers could
repeat it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import requests

from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.kms.noanswer import silent, torn, unexpected
from encpipe.kms.said import printable
from encpipe.transport import refused_server

DOES_NOT_OPEN: Final = re.compile(
    r"message authentication failed|invalid ciphertext|version is too new", re.I
)
"""Other bytes, another context or another key. A version that the key never had is a forged one."""
TOO_OLD: Final = re.compile(r"disallowed by policy \(too old\)", re.I)
NO_KEY: Final = re.compile(r"encryption key not found|unknown key type", re.I)
"""The second is how a server declines to make a key that is not there (`vault.NEVER_CREATE`)."""
UNUSABLE: Final = re.compile(r"associated_data|missing 'context'|not supported|unsupported", re.I)

PASSING: Final = frozenset({408, 412, 425, 429, 502, 503, 504})
"""Trying again may help. 412: a replica that has not caught up. 500 and the rest from 505 do, too."""
NOT_INITIALISED: Final = 501
OF_A_KEY: Final = ("key", "record")

UNTIL_LATER: Final = "wrapped keys are safe; try again later"
NEW_CREDENTIALS: Final = (
    "the token has expired or was revoked, or an id is wrong: get a new one (vault login, or a new secret id)"
)
AEAD_KEY: Final = "use a key of type aes256-gcm96 without derivation: vault write -f transit/keys/NAME"


@dataclass(frozen=True)
class Request:
    """What was asked: `of` a key, of the record that the server keeps of it, or of the token or login itself.

    `path` lies below /v1/ in `namespace`. A record is read, or with `removes` deleted.
    """

    path: str
    subject: str
    address: str
    namespace: str | None = None
    of: Literal["key", "record", "login", "token"] = "key"
    holds_secret: bool = False
    removes: bool = False

    @property
    def server(self) -> str:
        return f"Vault at {self.address}" + (f", namespace {self.namespace}" if self.namespace else "")

    @property
    def capability(self) -> str:
        """What a policy has to allow on `path`."""
        return "update" if self.of != "record" else "delete" if self.removes else "read"


def from_answer(status: int, said: Sequence[str] | None, request: Request) -> EncpipeError:
    """The error for an answer that is not HTTP 200. `said` are its errors, None if it is not Vault's JSON."""
    what = f"{request.path} for {request.subject}: {_shown(said, request)} (HTTP {status})"
    if status == NOT_INITIALISED:
        return KmsError(f"{request.server} is not initialised", hint="is this the right server?")
    if status == 429:
        return KmsUnavailableError(f"{request.server} limits the rate: {what}", hint=UNTIL_LATER)
    if status in PASSING or status >= 500:
        if said is not None and any("sealed" in text.lower() for text in said):
            return KmsUnavailableError(
                f"{request.server} is sealed", hint="whoever holds the unseal keys: vault operator unseal"
            )
        return KmsUnavailableError(f"{request.server} failed: {what}", hint=UNTIL_LATER)
    if 300 <= status < 400:
        return KmsError(
            f"{request.server} redirects, which is not followed: {what}",
            hint="set address to the active server, or to a load balancer in front",
        )
    if request.of == "record" and status == 404 and said is not None and not any(said):
        return _no_key(request)
    if request.of in OF_A_KEY and (status < 300 or (status == 404 and said is not None)):
        return ConfigError(
            f"{request.server} has no transit engine there: {what}",
            hint="check mount and namespace: vault secrets list",
        )
    if said is None:
        return KmsError(
            f"{what}: not an answer that Vault is known to give",
            hint="does a proxy between block the request? check the address",
        )
    if request.of not in OF_A_KEY:
        return _about_credentials(status, what, request)
    if status == 403:
        return KeyAccessDeniedError(
            f"{request.server} refuses {what}",
            hint=f'allow it in a policy of this identity: path "{request.path}" '
            f'{{ capabilities = ["{request.capability}"] }}; also check that mount, namespace and key exist',
        )
    return _from_transit(" ".join(said), what, request)


def _about_credentials(status: int, what: str, request: Request) -> EncpipeError:
    if status == 404:
        return ConfigError(
            f"{request.server} has no such login: {what}",
            hint="check auth_mount and namespace: vault auth list",
        )
    where = "; also check auth_mount and namespace" if request.of == "login" else ""
    return KmsError(
        f"{request.server} does not accept the credentials: {what}",
        hint=NEW_CREDENTIALS + where,
        code="credentials",
    )


def _from_transit(said: str, what: str, request: Request) -> EncpipeError:
    uri = request.subject
    if TOO_OLD.search(said):
        return KeyAccessDeniedError(
            f"{uri} no longer opens wrappings of this version (min_decryption_version)",
            hint="lower min_decryption_version until every dataset is re-wrapped: vault write "
            "transit/keys/NAME/config min_decryption_version=...",
            code="key-disabled",
        )
    if NO_KEY.search(said):
        return _no_key(request)
    if UNUSABLE.search(said):
        return ConfigError(f"{uri} cannot wrap keys: {what}", hint=AEAD_KEY)
    if DOES_NOT_OPEN.search(said):
        return UnwrapError(
            f"{uri} does not open this wrapping",
            hint="it was changed, or belongs to another dataset, key name or master key",
        )
    return KmsError(f"{request.server}: {what}", hint="see the server's log")


def _no_key(request: Request) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"{request.server} has no key {request.subject}",
        hint="check name, mount and namespace, and that the key was not deleted: vault list transit/keys",
    )


def from_client(error: BaseException, request: Request) -> EncpipeError:
    """The error for what hvac or requests raised. The caller raises it."""
    if isinstance(error, EncpipeError):
        return error
    if (refused := refused_server(request.address, error)) is not None:
        return refused
    if isinstance(error, (requests.RequestException, OSError)):
        return silent(request.path, request.server, error)
    return unexpected(request.path, request.subject, "vault", error)


def unreadable(request: Request) -> KmsUnavailableError:
    """For a success whose body is not what Vault sends."""
    return torn(request.path, request.server, "Vault or OpenBao")


def _shown(said: Sequence[str] | None, request: Request) -> str:
    """The service's own words, printable and cut."""
    if not said or request.holds_secret:
        return "refused"
    return printable("; ".join(said)) or "refused"
