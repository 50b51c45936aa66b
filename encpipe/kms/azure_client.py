"""Azure's SDK, held to encpipe's rules: TLS, no redirects, no retries of its own, no body in a log.

Imported with the SDK only, on the first wrap or unwrap.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from azure import identity
from azure.core.credentials import AccessToken, TokenCredential
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest, HttpResponse
from azure.keyvault.keys import KeyClient

from encpipe import aead, transport
from encpipe.kms.azure_errors import from_answer, from_credential
from encpipe.kms.azure_wrapping import Answer, Ask

if TYPE_CHECKING:
    from encpipe.config import TlsConfig
    from encpipe.kms.azure import AzureKvTable

PUBLIC_CLOUD: Final = "https://login.microsoftonline.com"
BYTES: Final = ("value", "iv", "tag")
"""What an answer may carry in base64url."""
OK: Final = 200


class Connections:
    """The clients of one process, by service. Safe to use from several threads.

    A client of the SDK keeps its token, and before azure-keyvault-keys 4.11 also the body that it has to send
    again after an authentication challenge: two threads in one client could wrap each other's keys. So each
    client is used by one thread at a time, and thrown away when a call fails.
    """

    def __init__(self, table: AzureKvTable, tls: TlsConfig) -> None:
        self._table = table
        self._tls = tls
        bundle = transport.ca_bundle(tls)
        self._verify: str | bool = True if bundle is None else str(bundle)
        self._credential = _Credential(table, self._verify)
        self._lock = threading.Lock()
        self._idle: dict[str, list[KeyClient]] = {}

    def send(self, ask: Ask) -> Answer:
        """One request and its answer. Raises what the SDK raises, and our errors for an answer but 200."""
        client = self._take(ask.service)
        body = {"alg": ask.algorithm, **{name: aead.to_text(value) for name, value in ask.fields.items()}}
        try:
            answer = _read(client.send_request(HttpRequest("POST", ask.url, json=body)), ask)
        except BaseException:
            client.close()
            raise
        with self._lock:
            self._idle.setdefault(ask.service, []).append(client)
        return answer

    def _take(self, service: str) -> KeyClient:
        with self._lock:
            idle = self._idle.get(service)
            if idle:
                return idle.pop()
        return self._connect(service)

    def _connect(self, service: str) -> KeyClient:
        table, tls = self._table, self._tls
        transport.check_endpoint(service, tls)
        own = (str(tls.client_cert), str(tls.client_key or tls.client_cert)) if tls.client_cert else None
        return KeyClient(
            service,
            self._credential,
            transport=RequestsTransport(
                connection_timeout=table.connect_timeout,
                read_timeout=table.read_timeout,
                connection_verify=self._verify,
                connection_cert=own,
                use_env_settings=False,  # neither REQUESTS_CA_BUNDLE nor .netrc
            ),
            proxies=_proxies(service),
            retry_total=0,  # `call_within` tries again
            permit_redirects=False,
            logging_enable=False,
        )


class _Credential:
    """The tokens of one configuration. Renewed before they expire, which is up to the SDK on both sides."""

    def __init__(self, table: AzureKvTable, verify: str | bool) -> None:
        self._source = table.credential
        self._authority = table.authority or PUBLIC_CLOUD
        self._table = table
        self._verify = verify
        self._lock = threading.Lock()
        self._made: TokenCredential | None = None

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """An access token. Raises errors of our tree only."""
        try:
            return self._inner().get_token(*scopes, **options)
        except Exception as error:  # noqa: BLE001  # mapped whole: no SDK error may leave
            failed = from_credential(error, self._source, self._authority)
        raise failed

    def _inner(self) -> TokenCredential:
        with self._lock:
            if self._made is None:
                self._made = _make_credential(self._table, self._verify)
            return self._made


def _make_credential(table: AzureKvTable, verify: str | bool) -> TokenCredential:
    """What `credential` in the table names. Reads the environment, makes no connection."""
    network: dict[str, Any] = {"connection_verify": verify}
    if table.authority is not None:
        network["authority"] = table.authority
    who = {"client_id": table.client_id} if table.client_id is not None else {}
    if table.credential == "environment":
        return identity.EnvironmentCredential(**network, retry_total=0)
    if table.credential == "workload-identity":
        return identity.WorkloadIdentityCredential(**network, **who, retry_total=0)
    if table.credential == "managed-identity":
        return identity.ManagedIdentityCredential(client_id=table.client_id)
    if table.credential == "cli":
        return identity.AzureCliCredential()
    for_each = {
        f"{kind}_client_id": who["client_id"] for kind in ("managed_identity", "workload_identity") if who
    }
    return identity.DefaultAzureCredential(**network, **for_each)


def _proxies(service: str) -> dict[str, str]:
    """The environment's https proxy, which only sees TLS; none for loopback or where `no_proxy` says so."""
    host = urlsplit(service).hostname or ""
    proxy = getproxies_environment().get("https")
    if proxy is None or transport.is_loopback(host) or proxy_bypass(host):
        return {}
    return {"https": proxy}


def _read(answer: HttpResponse, ask: Ask) -> Answer:
    """Raises our error for a status but 200; `ValueError`, `TypeError`, `LookupError` for no answer."""
    if answer.status_code != OK:
        raise from_answer(answer.status_code, answer.headers, answer.content, ask)
    said = answer.json()
    if not isinstance(said, dict):
        raise TypeError("not an object")
    fields = {name: aead.from_text(said[name].rstrip("=")) for name in BYTES if said.get(name) is not None}
    if not isinstance(said["kid"], str):
        raise TypeError("kid is not a text")
    return Answer(said["kid"], fields)
