"""What Google Cloud KMS and its SDK call an error -> the error tree. Imported with google-cloud-kms only.

The service's own text is shown only where the request held no key: who answers could repeat it. Only a
refusal that names the permission, and an absence that the service itself states, count as denied or absent:
`on_missing_key` goes on without a column for those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import requests
from google.api_core.exceptions import GoogleAPICallError
from google.auth import exceptions as auth
from google.protobuf.json_format import ParseError

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
from encpipe.kms.said import after_colon, first_word
from encpipe.transport import refused_server

READ_ERRORS: Final = (ParseError, ValueError, TypeError, LookupError, AttributeError)
"""What the SDK raises on an answer that is not what it should be."""

IAM_DENIED: Final = "IAM_PERMISSION_DENIED"
NAMED_PERMISSION: Final = "Permission 'cloudkms."
NARROW_SCOPE: Final = "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
STATE: Final = re.compile(r"\bKEY_([A-Z_]{1,40})|current state is: ([A-Z_]{1,40})")
CHECKSUM: Final = re.compile(r"\bchecksum\b.*\bdid not match\b", re.DOTALL)
PURPOSE: Final = re.compile(r"\bpurpose\b", re.IGNORECASE)
UNAVAILABLE: Final = frozenset(
    {"UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "UNKNOWN"}
)

UNTIL_LATER: Final = "wrapped keys are safe; try again later"
IS_IT_GOOGLE: Final = (
    "does a proxy between answer? check endpoint_url: Google Cloud KMS answers in JSON, with a status"
)
SIGN_IN_AGAIN: Final = (
    "renew the credentials (gcloud auth application-default login, or a new service account key) and check "
    "this machine's clock"
)


@dataclass(frozen=True)
class Request:
    """What was asked, for messages: the permission it needs, master key URI, endpoint."""

    action: str
    uri: str
    endpoint: str
    carries_key: bool


@dataclass(frozen=True)
class _Refusal:
    """An error answer as google.rpc.Status in JSON; an empty `status` when it is none."""

    http: int
    status: str
    said: str
    reasons: frozenset[str]

    @classmethod
    def of(cls, error: GoogleAPICallError) -> _Refusal:
        http = getattr(error.response, "status_code", 0)
        try:
            body = error.response.json()["error"]
            status, said = _word(body["status"]), str(body.get("message", ""))
            return cls(http, status, said, frozenset(_reasons(body.get("details", []))))
        except READ_ERRORS:
            return cls(http, "", "", frozenset())

    @property
    def key_state(self) -> str:
        """The state of the key version that is in the way, such as DISABLED; empty when it is not told."""
        found = STATE.search(" ".join(sorted(self.reasons))) or STATE.search(self.said)
        return (found[1] or found[2]) if found else ""


def _reasons(details: Any) -> Iterator[str]:
    for detail in details:
        if reason := detail.get("reason"):
            yield _word(reason)
        for violation in detail.get("violations", []):
            yield _word(violation.get("type", ""))


def from_sdk(error: BaseException, request: Request) -> EncpipeError:
    """The error of our tree for one that the SDK raised. The caller raises it."""
    if isinstance(error, EncpipeError):
        return error
    if isinstance(error, GoogleAPICallError):
        return _from_answer(_Refusal.of(error), request)
    if isinstance(error, auth.GoogleAuthError):
        return _from_credentials(error, request)
    if (refused := refused_server(request.endpoint, error)) is not None:
        return refused
    return _from_connection(error, request)


def _from_answer(refusal: _Refusal, request: Request) -> EncpipeError:
    status, http = refusal.status, refusal.http
    what = f"{request.action} on {request.uri}: {status or f'HTTP {http}'}"
    what += after_colon(refusal.said, carries_key=request.carries_key)
    if status == "RESOURCE_EXHAUSTED" or http == 429:
        return KmsUnavailableError(f"Google Cloud KMS is throttling: {what}", hint=UNTIL_LATER)
    if status in UNAVAILABLE or http >= 500:
        return KmsUnavailableError(f"Google Cloud KMS failed: {what}", hint=UNTIL_LATER)
    if not status:
        return KmsError(f"{what}, in no way that Google Cloud KMS is known to answer", hint=IS_IT_GOOGLE)
    if status == "PERMISSION_DENIED":
        return _denied(refusal, request, what)
    if status == "NOT_FOUND":
        return KeyNotFoundError(
            f"Google Cloud KMS at {request.endpoint} has no key {request.uri}",
            hint="check project, location, key ring and key: gcloud kms keys list",
        )
    if status == "UNAUTHENTICATED":
        message = f"Google does not accept the credentials: {what}"
        return KmsError(message, hint=SIGN_IN_AGAIN, code="credentials")
    if status == "FAILED_PRECONDITION":
        return _not_usable(refusal, request, what)
    if status == "INVALID_ARGUMENT":
        return _invalid(refusal, request, what)
    return KmsError(what, hint="see the Google Cloud KMS documentation for this status")


def _denied(refusal: _Refusal, request: Request, what: str) -> EncpipeError:
    if NARROW_SCOPE in refusal.reasons:
        return KmsError(
            f"the credentials may not be used for Cloud KMS: {what}",
            hint="the machine or token needs the scope cloud-platform or cloudkms",
            code="credentials",
        )
    if IAM_DENIED in refusal.reasons or refusal.said.startswith(NAMED_PERMISSION):
        return KeyAccessDeniedError(
            f"Google refuses {what}",
            hint=f"grant {request.action} on the key: gcloud kms keys add-iam-policy-binding. Google says "
            "the same of a key that does not exist",
        )
    reasons = ", ".join(sorted(refusal.reasons)) or "no reason given"
    return KmsError(
        f"Google refuses the request, and not for want of a permission on the key ({reasons}): {what}",
        hint="is the Cloud KMS API enabled in the project, is its billing active, does a service perimeter "
        "allow this network? gcloud services list --enabled",
    )


def _not_usable(refusal: _Refusal, request: Request, what: str) -> EncpipeError:
    state, uri = refusal.key_state, request.uri
    if state == "DISABLED":
        return KeyAccessDeniedError(
            f"a version of {uri} is disabled",
            hint="if that was not on purpose: gcloud kms keys versions list, then enable",
            code="key-disabled",
        )
    if state == "DESTROY_SCHEDULED":
        return KeyAccessDeniedError(
            f"a version of {uri} is scheduled for destruction",
            hint="datasets under it are lost when it is gone: gcloud kms keys versions restore, and enable",
            code="key-disabled",
        )
    if state == "DESTROYED":
        return KeyNotFoundError(
            f"the version of {uri} that is needed was destroyed",
            hint="to wrap, make another version primary; what the destroyed one wrapped opens only under "
            "another master key",
        )
    if state.startswith("PENDING"):
        out = KmsUnavailableError(f"a version of {uri} is not ready yet ({state})", hint=UNTIL_LATER)
        out.of_service = False
        return out
    return KmsError(
        f"Google Cloud KMS cannot use the key: {what}",
        hint="has the key an enabled primary version, is the API enabled? gcloud kms keys describe",
    )


def _invalid(refusal: _Refusal, request: Request, what: str) -> EncpipeError:
    if CHECKSUM.search(refusal.said):
        return KmsUnavailableError(
            f"a request for {request.uri} was damaged on the way: the service computes another CRC32C",
            hint=UNTIL_LATER,
        )
    if PURPOSE.search(refusal.said):
        return ConfigError(
            f"{request.uri} cannot wrap keys", hint="use a symmetric key with purpose ENCRYPT_DECRYPT"
        )
    if not request.carries_key:
        return UnwrapError(
            f"{request.uri} does not open this wrapping",
            hint="it was changed, or belongs to another dataset, key name or master key",
        )
    return KmsError(what, hint="use a symmetric key with purpose ENCRYPT_DECRYPT")


def _from_credentials(error: auth.GoogleAuthError, request: Request) -> EncpipeError:
    name = type(error).__name__
    if isinstance(error, auth.DefaultCredentialsError):
        return ConfigError(
            f"no Google credentials for {request.uri}",
            hint='set service_account_file in the table "kms.gcp-kms", GOOGLE_APPLICATION_CREDENTIALS, '
            "or sign in: gcloud auth application-default login",
            code="config-missing",
        )
    if isinstance(error, auth.TransportError) or getattr(error, "retryable", False):
        return KmsUnavailableError(
            f"no token for {request.uri}: the service that gives out credentials does not answer ({name})",
            hint="check the network; wrapped keys are safe",
        )
    return KmsError(f"no token for {request.uri}: {name}", hint=SIGN_IN_AGAIN, code="credentials")


def _from_connection(error: BaseException, request: Request) -> EncpipeError:
    if isinstance(error, requests.TooManyRedirects):
        return KmsError(
            f"{request.endpoint} sends us to another server, and redirects are not followed",
            hint="name the right endpoint_url in the configuration",
        )
    if isinstance(error, READ_ERRORS):
        return torn(request.action, request.endpoint, "Google Cloud KMS", error)
    if isinstance(error, OSError):  # as the other errors of requests are
        return silent(request.action, request.endpoint, error)
    return unexpected(request.action, request.uri, "gcp", error)


def _word(value: object) -> str:
    return first_word(value, of="A-Z0-9_")
