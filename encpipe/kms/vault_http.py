"""One process's connection to Vault or OpenBao, by hvac. Imported on first use only.

The environment has no say: no `VAULT_*` or `*_CA_BUNDLE` variable, no netrc, no cookie. An https proxy of the
environment is used for servers beyond loopback. Redirects are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from hvac.adapters import RawAdapter

from encpipe import transport
from encpipe.config import TlsConfig
from encpipe.errors import KmsUnavailableError
from encpipe.keys import Secret
from encpipe.kms import vault_errors as errors
from encpipe.kms.vault_errors import Request
from encpipe.kms.vault_table import VaultTable

MAX_ERRORS: Final = 8


class Connection:
    """Sends requests; holds no token. Safe to use from several threads."""

    def __init__(self, table: VaultTable, tls: TlsConfig) -> None:
        """Raises `ConfigError` for a CA file or certificate that cannot be used. Connects on first use."""
        transport.announce(table.address, tls)
        session = requests.Session()
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.verify = transport.botocore_verify(tls)  # on the session: hvac prefers what is there
        session.proxies = _proxies(table.address)
        if tls.client_cert is not None:
            session.cert = (str(tls.client_cert), str(tls.client_key or tls.client_cert))
        self._adapter = RawAdapter(
            base_uri=table.address.rstrip("/"),
            session=session,
            verify=session.verify,
            cert=session.cert,
            proxies=session.proxies,
            timeout=(table.connect_timeout, table.read_timeout),
            allow_redirects=False,
            namespace=table.namespace,
        )

    def send(
        self, request: Request, token: Secret | None, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """The JSON object answered; a POST of `body`, else a GET, or a DELETE where `request.removes`. Raises
        as `vault_errors` maps it."""
        try:
            answer = self._ask(request, token, body)
            status, content = answer.status_code, _json(answer)
        except Exception as error:  # noqa: BLE001  # mapped whole: it holds the request, and so the key
            failed = errors.from_client(error, request)
        else:
            if status == 200 and isinstance(content, dict):
                return content
            if status == 204 and request.removes:
                return {}
            if status == 200:
                failed = errors.unreadable(request)
            else:
                failed = errors.from_answer(status, _said(content), request)
                if isinstance(failed, KmsUnavailableError):
                    failed.retry_after = _seconds(answer.headers.get("Retry-After", ""))
        try:
            raise failed  # outside the handler: so the client's error is not even its context
        finally:
            del failed  # it holds this frame, with the key in it, and the frame would hold it

    def _ask(
        self, request: Request, token: Secret | None, body: Mapping[str, Any] | None
    ) -> requests.Response:
        headers = {} if token is None else {"X-Vault-Token": token.reveal().decode("ascii")}
        method = "delete" if request.removes else "get" if body is None else "post"
        more = {} if body is None else {"json": body}
        answer: requests.Response = self._adapter.request(
            method, f"/v1/{request.path}", headers=headers, raise_exception=False, **more
        )
        return answer


def _proxies(address: str) -> dict[str, str]:
    parts = urlsplit(address)
    if parts.scheme != "https" or transport.is_loopback(parts.hostname or ""):
        return {}
    return dict(requests.utils.get_environ_proxies(address, no_proxy=None))


def _seconds(text: str) -> float:
    """The whole seconds of a Retry-After header; 0 for a date or anything else."""
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _said(content: Any) -> Sequence[str] | None:
    """The texts of `{"errors": [...]}`, None for anything else: a proxy answers in its own way."""
    said = content.get("errors") if isinstance(content, dict) else None
    if not isinstance(said, list):
        return None
    return [str(text) for text in said[:MAX_ERRORS]]
