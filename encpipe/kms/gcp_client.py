"""The calls that Google Cloud KMS gets from us, over REST. Imported with google-cloud-kms only.

The SDK's session is given the TLS rules of `encpipe.transport`, its retries are off, and every byte string is
sent and taken with its CRC32C, as Google's data integrity guidelines ask:
https://cloud.google.com/kms/docs/data-integrity-guidelines
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import google.auth
import google_crc32c
import requests
from google.cloud.kms_v1 import KeyManagementServiceClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceRestTransport
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from encpipe import strictjson, transport
from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, KmsUnavailableError, ManifestError
from encpipe.keys import Secret
from encpipe.kms import privatefile

if TYPE_CHECKING:
    from encpipe.kms.gcp import GcpKmsTable

SCOPES: Final = ("https://www.googleapis.com/auth/cloudkms",)
MAX_ACCOUNT_BYTES: Final = 64 * 1024
"""A service account file is 2.4 KB."""


class Client:
    """Encrypts and decrypts under keys of one endpoint, as one identity. Safe to use from several threads.

    Raises what the SDK raises, `ConfigError` for a service account file that cannot be used, and
    `KmsUnavailableError` for bytes that were damaged on the way, which another try may mend.
    """

    def __init__(self, table: GcpKmsTable, tls: TlsConfig) -> None:
        transport.announce(table.endpoint_url, tls)
        rest = KeyManagementServiceRestTransport(
            host=table.endpoint_url.rstrip("/"),
            credentials=_credentials(table.account_path),
            always_use_jwt_access=True,  # a service account signs its tokens itself: no token endpoint
        )
        _obey(rest._session, table, tls)  # the SDK has no public way to its session
        self._service = KeyManagementServiceClient(transport=rest)
        self._options: dict[str, Any] = {"retry": None, "timeout": table.read_timeout}

    def encrypt(self, name: str, kek: Secret, aad: bytes) -> tuple[str, bytes]:
        """The name of the key version that was used, and the ciphertext."""
        plaintext = kek.reveal()
        request = {
            "name": name,
            "plaintext": plaintext,
            "plaintext_crc32c": google_crc32c.value(plaintext),
            "additional_authenticated_data": aad,
            "additional_authenticated_data_crc32c": google_crc32c.value(aad),
        }
        answer = self._service.encrypt(request=request, **self._options)
        whole = answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c
        if not whole:
            raise _damaged(f"the request to wrap under {name}")
        ciphertext = bytes(answer.ciphertext)
        if answer.ciphertext_crc32c != google_crc32c.value(ciphertext):
            raise _damaged(f"what {name} wrapped")
        return str(answer.name), ciphertext

    def decrypt(self, name: str, ciphertext: bytes, aad: bytes) -> Secret:
        """The plaintext. The service compares the checksums of the request, and refuses it if one is off."""
        request = {
            "name": name,
            "ciphertext": ciphertext,
            "ciphertext_crc32c": google_crc32c.value(ciphertext),
            "additional_authenticated_data": aad,
            "additional_authenticated_data_crc32c": google_crc32c.value(aad),
        }
        answer = self._service.decrypt(request=request, **self._options)
        if answer.plaintext_crc32c != google_crc32c.value(answer.plaintext):
            raise _damaged(f"what {name} unwrapped")
        return Secret(answer.plaintext)

    def primary_version(self, name: str) -> str:
        """The name of the key version that wraps; empty where the key has none."""
        return str(self._service.get_crypto_key(request={"name": name}, **self._options).primary.name)


def _damaged(what: str) -> KmsUnavailableError:
    return KmsUnavailableError(
        f"{what} was damaged on the way: its CRC32C does not fit",
        hint="wrapped keys are safe; try again, and look for a faulty proxy or memory if it stays",
    )


def _credentials(path: Path | None) -> Any:
    if path is None:
        return google.auth.default(default_scopes=SCOPES)[0]
    what = "the service account file"
    data = privatefile.read(path, what=what, limit=MAX_ACCOUNT_BYTES)
    # they may quote the file
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, ManifestError):
        info = strictjson.loads(data, what=what)
        return service_account.Credentials.from_service_account_info(info, default_scopes=SCOPES)
    raise ConfigError(
        f"{what} {str(path)!r} holds no key of a service account",
        hint="gcloud iam service-accounts keys create makes one; other kinds of credentials are named by "
        "GOOGLE_APPLICATION_CREDENTIALS, with service_account_file left out",
    )


def _obey(session: requests.Session, table: GcpKmsTable, tls: TlsConfig) -> None:
    """The rules of `encpipe.transport`, for a session of `requests`."""
    endpoint = urlsplit(table.endpoint_url)
    adapter = _Adapter(transport.ssl_context(tls), (table.connect_timeout, table.read_timeout))
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    session.verify = transport.botocore_verify(tls)
    session.max_redirects = 0  # the first one raises
    session.trust_env = False  # no CA bundle, proxy or .netrc of the environment
    if endpoint.scheme == "https" and not transport.is_loopback(endpoint.hostname or ""):
        session.proxies = requests.utils.get_environ_proxies(table.endpoint_url)  # one that only sees TLS


class _Adapter(HTTPAdapter):
    """Connections with our TLS context, and timeouts (connect, read) of our own."""

    def __init__(self, context: ssl.SSLContext, timeouts: tuple[float, float]) -> None:
        self._context = context
        self._timeouts = timeouts
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **options)

    def send(self, request: Any, **options: Any) -> requests.Response:  # type: ignore[override]  # by keyword
        return super().send(request, **{**options, "timeout": self._timeouts})
