"""What S3 and its clients say, in our error tree."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.transport import NOT_TLS_1_2, refused_server

_DENIED: Final = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})
_NO_BUCKET: Final = frozenset({"NoSuchBucket"})
_GONE: Final = frozenset({"NoSuchKey", "NotFound", "404"})
_REGION: Final = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307"}
)
_REDIRECT: Final = re.compile(r"HTTP status 30[12378]")
_LATER: Final = frozenset({"SlowDown", "RequestTimeout", "RequestTimeoutException", "Throttling"})
_NO_CREDENTIALS: Final = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
)


def code_of(error: ClientError) -> str:
    """The service's own code, or the HTTP status as text for an answer without a body (HEAD)."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status, 0 when unknown."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_absent(error: ClientError) -> bool:
    """There is no such object (a bucket that is absent is another matter)."""
    return code_of(error) in _GONE


def is_refusal(error: ClientError) -> bool:
    """The condition of a write was not met: 412, or 409 while another conditional write is under way."""
    return status_of(error) == 412 or code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict")


def is_busy(error: ClientError) -> bool:
    """Another conditional write of the same object is under way: ours may be tried again."""
    return code_of(error) == "ConditionalRequestConflict"


@contextlib.contextmanager
def mapped(path: str, url: str, endpoint: str) -> Iterator[None]:
    """Turn what boto3 raises inside the block into an error of our tree about `path` in `url`."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, f"{path!r} in {url}") from None
    except BotoCoreError as error:
        raise _from_client(error, f"{path!r} in {url}", endpoint) from None


def _from_answer(error: ClientError, where: str) -> EncpipeError:
    code, status = code_of(error), status_of(error)
    message = f"{where}: S3 answered {code or status}"
    if code in _NO_BUCKET:
        return StorageError(f"{where}: there is no such bucket", hint="check the URL", code="not-found")
    if code in _GONE:
        return StorageError(f"no object {where}", hint="check the URL", code="not-found")
    if code in _REGION:
        return ConfigError(message, hint="name the bucket's region (region_name) and endpoint_url")
    if code in _FULL or status == 507:
        hint = "raise the quota, then run the same command again: it resumes"
        return StorageError(message, hint=hint, code="storage-full")
    if code in _DENIED or status in (401, 403):
        hint = "check the credentials, their policy and the clock"
        return StorageError(message, hint=hint, code="storage-denied")
    if code in _LATER or status >= 500 or status == 429:
        return StorageError(message, hint="try again later", code="storage-unavailable")
    return StorageError(message, hint="see the server's log")


def _from_client(error: BotoCoreError, where: str, endpoint: str) -> EncpipeError:
    if isinstance(error, _NO_CREDENTIALS):
        hint = "set key and secret, a profile, or AWS_* variables; anon=true for a public bucket"
        return StorageError(f"{where}: there are no S3 credentials", hint=hint, code="storage-denied")
    if isinstance(error, ParamValidationError):
        return ConfigError(f"{where} is not a name S3 takes", hint="check bucket and prefix of the URL")
    refused = refused_server(endpoint, error)
    if refused is not None:
        return refused
    return StorageError(
        f"{where}: no whole answer from {endpoint}: {type(error).__name__}",
        hint="check network and endpoint, then run the same command again",
        code="storage-unavailable",
    )


def from_arrow(error: OSError, path: str, url: str) -> EncpipeError:
    """What Arrow's client says, which is text only."""
    where, text = f"{path!r} in {url}", str(error)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_KEY" in text or "HTTP status 404" in text:
        return StorageError(f"no object {where}", hint="check the URL", code="not-found")
    if "ACCESS_DENIED" in text or "HTTP status 403" in text or "INVALID_ACCESS_KEY_ID" in text:
        hint = "check the credentials, their policy and the clock"
        return StorageError(f"{where}: S3 refuses access", hint=hint, code="storage-denied")
    if "SSL peer certificate" in text or "curlCode: 60" in text:
        return ConfigError(
            f"{where}: the server's certificate is not trusted",
            hint="name the CA that issued it in tls.ca_file; do not ignore this",
            code="untrusted-certificate",
        )
    if NOT_TLS_1_2.search(text):
        return ConfigError(
            f"{where}: the server does not speak TLS 1.2 or later",
            hint="correct the endpoint's port, or have the server's TLS updated: older versions are broken",
            code="insecure-transport",
        )
    if _REDIRECT.search(text):
        return ConfigError(
            f"{where}: S3 sends us to another server, and redirects are not followed",
            hint="name the bucket's region (region_name) and endpoint_url",
        )
    hint = "check network and endpoint, then run the same command again"
    return StorageError(f"{where}: S3 did not answer", hint=hint, code="storage-unavailable")
