"""What AWS and its SDK call an error -> the error tree. Imported with boto3 only.

The service's own text is shown only where the request held no key: who answers could repeat it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import botocore.exceptions as sdk
from botocore.parsers import ResponseParserError

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

READ_ERRORS: Final = (ResponseParserError, ValueError, TypeError, LookupError)
"""What the SDK and the back end raise on an answer that is not what it should be."""

DENIED: Final = frozenset(
    {"AccessDeniedException", "AccessDenied", "NotAuthorized", "KMSAccessDeniedException"}
)
BAD_TOKEN: Final = frozenset(
    {"ExpiredTokenException", "ExpiredToken", "RequestExpired", "TokenRefreshRequired"}
)
BAD_CREDENTIALS: Final = frozenset(
    {
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "OptInRequired",
    }
)
INVALID_STATE: Final = "KMSInvalidStateException"
"""Disabled, pending deletion, pending import, or a custom key store that is not connected: the text tells."""
OF_ONE_KEY: Final = (INVALID_STATE, "KeyUnavailableException")
OUT_OF_USE: Final = re.compile(r"pending\s*(replica\s*)?deletion|\bdisabled\b", re.IGNORECASE)
DOES_NOT_OPEN: Final = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
THROTTLED: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "LimitExceededException",
        "SlowDown",
    }
)
UNAVAILABLE: Final = frozenset(
    {
        "DependencyTimeoutException",
        "KMSInternalException",
        "InternalFailure",
        "InternalServiceError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "RequestTimeout",
        "RequestTimeoutException",
    }
)
UNUSABLE: Final = frozenset(
    {"InvalidKeyUsageException", "InvalidArnException", "UnsupportedOperationException"}
)

SIGN_IN_AGAIN: Final = (
    "the session has expired: renew the credentials (aws sso login, or a new token) and retry"
)
UNTIL_LATER: Final = "wrapped keys are safe; try again later"
IS_IT_AWS: Final = "does a proxy between block the request? a denied key says AccessDeniedException"
WHICH_STATE: Final = "a custom key store may be disconnected: aws kms describe-key shows the key's state"


@dataclass(frozen=True)
class Request:
    """What was asked, for messages: action (`kms:Decrypt`), master key URI, endpoint."""

    action: str
    uri: str
    endpoint: str

    @property
    def carries_key(self) -> bool:
        return self.action == "kms:Encrypt"


def from_sdk(error: BaseException, request: Request) -> EncpipeError:
    """The error of our tree for one that boto3 raised. The caller raises it."""
    if isinstance(error, EncpipeError):
        return error
    if isinstance(error, sdk.ClientError):
        return _from_answer(error, request)
    if (refused := refused_server(request.endpoint, error)) is not None:
        return refused
    return _from_client(error, request)


def _from_answer(error: sdk.ClientError, request: Request) -> EncpipeError:
    code = first_word(error.response.get("Error", {}).get("Code", "")) or "no error code"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    uri, text = request.uri, after_colon(_said(error), carries_key=request.carries_key)
    what = f"{request.action} on {uri}: {code}{text}"
    if code in DOES_NOT_OPEN:
        return UnwrapError(
            f"{uri} does not open this wrapping ({code})",
            hint="it was changed, or belongs to another dataset, key name or master key",
        )
    if code == "DisabledException" or (code == INVALID_STATE and OUT_OF_USE.search(_said(error))):
        return _disabled(error, code, uri)
    if code in OF_ONE_KEY:
        out = KmsUnavailableError(f"AWS KMS cannot use the key now: {what}", hint=WHICH_STATE)
        out.of_service = False
        return out
    if code == "NotFoundException":
        return KeyNotFoundError(
            f"AWS KMS at {request.endpoint} has no key {uri}",
            hint="check account and region, and that the key was not deleted: aws kms describe-key",
        )
    if code in BAD_TOKEN:
        return KmsError(f"{request.action} on {uri}: {code}", hint=SIGN_IN_AGAIN, code="credentials")
    if code in BAD_CREDENTIALS:
        return KmsError(
            f"AWS does not accept the credentials: {what}",
            hint="check profile, AWS_* variables and this machine's clock: aws sts get-caller-identity",
            code="credentials",
        )
    if code in THROTTLED or status == 429:
        return KmsUnavailableError(f"AWS KMS is throttling: {what}", hint=UNTIL_LATER)
    if code in UNAVAILABLE or status >= 500:
        return KmsUnavailableError(f"AWS KMS failed: {what} (HTTP {status})", hint=UNTIL_LATER)
    if code in UNUSABLE:
        return ConfigError(
            f"{uri} cannot wrap keys: {what}", hint="use a symmetric key with usage ENCRYPT_DECRYPT"
        )
    if code in DENIED:
        return KeyAccessDeniedError(
            f"AWS refuses {what}", hint=f"allow {request.action} in the key policy, an IAM policy or a grant"
        )
    if status in (401, 403):
        return KmsError(f"{what} (HTTP {status}, no refusal that AWS KMS is known to give)", hint=IS_IT_AWS)
    return KmsError(f"{what} (HTTP {status})", hint="see the AWS KMS documentation for this code")


def _disabled(error: sdk.ClientError, code: str, uri: str) -> KeyAccessDeniedError:
    found = OUT_OF_USE.search(_said(error))
    pending = found is not None and "deletion" in found[0].lower()
    state = "pending deletion" if pending else "disabled"
    return KeyAccessDeniedError(
        f"{uri} is {state} ({code})",
        hint=(
            "datasets under it are lost once it is deleted: aws kms cancel-key-deletion, then enable-key"
            if pending
            else "if that was not on purpose: aws kms enable-key (aws kms describe-key shows its state)"
        ),
        code="key-disabled",
    )


def _from_client(error: BaseException, request: Request) -> EncpipeError:
    name = type(error).__name__
    if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError)):
        return ConfigError(
            f"no AWS credentials for {request.uri}",
            hint='set a profile in the table "kms.aws-kms", AWS_* variables, or an instance role',
            code="config-missing",
        )
    if isinstance(error, sdk.ProfileNotFound):
        return ConfigError(str(error), hint='profile in the table "kms.aws-kms", or AWS_PROFILE')
    if isinstance(error, sdk.NoRegionError):
        return ConfigError(
            f"no AWS region for {request.uri}",
            hint='name the key by its ARN, or set region in the table "kms.aws-kms"',
            code="config-missing",
        )
    if isinstance(error, (sdk.InvalidRegionError, sdk.ConfigParseError, sdk.ConfigNotFound)):
        return ConfigError(f"the AWS configuration cannot be used: {error}")
    if isinstance(error, (sdk.SSOError, sdk.TokenRetrievalError, sdk.NoAuthTokenError)):
        return KmsError(f"AWS credentials for {request.uri}: {name}", hint=SIGN_IN_AGAIN, code="credentials")
    if isinstance(error, sdk.CredentialRetrievalError):
        return ConfigError(
            f"AWS credentials cannot be fetched: {name}", hint="try: aws sts get-caller-identity"
        )
    if isinstance(error, (sdk.HTTPClientError, sdk.ConnectionError, sdk.MetadataRetrievalError, OSError)):
        return silent(request.action, request.endpoint, error)
    if isinstance(error, READ_ERRORS):
        return torn(request.action, request.endpoint, "AWS KMS", error)
    return unexpected(request.action, request.uri, "aws", error)


def _said(error: sdk.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))
