"""The token of one process: obtained on first use, renewed before it ends, replaced where that can be done.

A thread renews it after two thirds of its lease, so that a job may run for weeks: as long as the server lets
it be renewed, and then by a new login (AppRole), or by what is in the token's file by then. The thread ends
with the object.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from encpipe.errors import EncpipeError, KmsError
from encpipe.keys import Secret
from encpipe.kms.vault_errors import NEW_CREDENTIALS, Request
from encpipe.kms.vault_table import VaultTable

RENEW_AFTER: Final = 2 / 3
"""Of the lease."""
SHORTEST_WAIT: Final = 0.5
"""Seconds between two tries to renew a token."""
LONGEST_WAIT: Final = 86_400.0
SHRUNK: Final = 0.5
"""A renewal that gives less than this part of the lease before has come near the token's longest life."""


class Sends(Protocol):
    """What sends a request; `vault_http.Connection` is one."""

    def send(
        self, request: Request, token: Secret | None, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """The JSON object answered; raises errors of our tree only."""
        ...


@dataclass(frozen=True, eq=False)
class Token:
    """A token, when it was got (monotonic clock), and its lease in seconds.

    0 is a lease that does not end, or whose end we may not see. `longest` is the longest lease it ever had.
    """

    secret: Secret
    since: float
    lease: float
    longest: float
    renewable: bool

    @property
    def left(self) -> float:
        """Seconds until it ends."""
        return self.since + self.lease - time.monotonic() if self.lease else float("inf")

    @property
    def due(self) -> float:
        """Seconds until it is to be renewed; not above 0 when that is late."""
        return self.left - self.lease * (1 - RENEW_AFTER)


class Credentials:
    """Gives the token. Safe to use from several threads; they wait for one that gets a new one.

    `inherited` is a token of the parent process, to go on with.
    """

    def __init__(self, table: VaultTable, connection: Sends, inherited: Token | None = None) -> None:
        self.current = inherited
        self._table = table
        self._connection = connection
        self._lock = threading.Lock()
        self._renewing = False

    def token(self) -> Token:
        """The token to use now. Raises `KmsError` `credentials`, or as the table and the connection do."""
        with self._lock:
            if self.current is None or self.current.left <= 0:
                self.current = self._obtain()
            self._see_to_renewal()
            return self.current

    def after_refusal(self, refused: Token) -> Token:
        """After a 403: `refused` itself if the server knows it, so that the refusal was about the key; else a
        new token. Raises `KmsError` `credentials` where there is no other."""
        with self._lock:
            if self.current is not None and self.current is not refused:
                return self.current
            if self._look_up(refused.secret) is not None:
                return refused
            fresh = self._obtain()
            if fresh.secret == refused.secret:
                raise KmsError(
                    f"Vault at {self._table.address} does not know the token any more",
                    hint=f"{NEW_CREDENTIALS}; one that may not read auth/token/lookup-self looks the same",
                    code="credentials",
                )
            self.current = fresh
            self._see_to_renewal()
            return fresh

    def _obtain(self) -> Token:
        if self._table.role_id is not None:
            return self._log_in()
        secret, since = self._table.read_token(), time.monotonic()
        found = self._look_up(secret)
        data = found.get("data") if found is not None else None
        if not isinstance(data, dict) or data.get("expire_time") is None:
            return Token(secret, since, 0.0, 0.0, renewable=False)
        return _token(secret, since, data.get("ttl"), data)

    def _log_in(self) -> Token:
        table = self._table
        path = f"auth/{table.auth_mount.strip('/')}/login"
        request = Request(path, "the AppRole", table.address, table.namespace, "login", holds_secret=True)
        since = time.monotonic()
        auth = _auth(self._connection.send(request, None, table.read_login()))
        secret = auth.get("client_token")
        if not isinstance(secret, str) or not secret.isascii() or not secret.isprintable():
            raise KmsError(f"{request.server} answered a login without a token", hint="is this Vault?")
        return _token(Secret(secret.encode()), since, auth.get("lease_duration"), auth)

    def _look_up(self, secret: Secret) -> Mapping[str, Any] | None:
        """What the server says of the token; None where it does not know it, or does not let it ask."""
        try:
            return self._connection.send(self._request("auth/token/lookup-self"), secret)
        except KmsError as error:
            if error.code == "credentials":
                return None
            raise

    def _request(self, path: str) -> Request:
        return Request(path, "the token", self._table.address, self._table.namespace, "token")

    def _see_to_renewal(self) -> None:
        """Start the thread if there is something to renew. The lock is held."""
        token = self.current
        if self._renewing or token is None or not token.lease:
            return
        self._renewing, over = True, threading.Event()
        weakref.finalize(self, over.set)
        target = (weakref.ref(self), over)
        threading.Thread(target=_keep_renewed, args=target, name="encpipe-vault-token", daemon=True).start()

    def seconds_to_renewal(self) -> float | None:
        """Until the next try; None when there is nothing to renew any more, and the thread has to end."""
        with self._lock:
            token = self.current
            if token is None or not token.lease or token.left <= 0:
                self._renewing = False
                return None
        wait = token.due if token.due > 0 else token.left / 3  # a try has failed: some more before it ends
        return min(max(wait, SHORTEST_WAIT), LONGEST_WAIT)

    def renew(self) -> None:
        """Renew the token or replace it, if it is due. Raises nothing: until its end there are more tries."""
        token = self.current
        if token is None or token.due > 0:
            return
        longer = self._longer(token)
        if longer is None or longer.lease < token.longest * SHRUNK:
            longer = self._other(token) or longer
        with self._lock:
            if longer is not None and self.current is token:
                self.current = longer

    def _longer(self, token: Token) -> Token | None:
        if not token.renewable:
            return None
        since = time.monotonic()
        try:
            auth = _auth(self._connection.send(self._request("auth/token/renew-self"), token.secret, {}))
        except EncpipeError:
            return None
        longer = _token(token.secret, since, auth.get("lease_duration"), auth)
        return replace(longer, longest=max(longer.lease, token.longest)) if longer.lease else None

    def _other(self, token: Token) -> Token | None:
        with contextlib.suppress(EncpipeError):
            if self._table.role_id is not None or self._table.read_token() != token.secret:
                return self._obtain()
        return None


def _auth(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    auth = answer.get("auth")
    return auth if isinstance(auth, dict) else {}


def _token(secret: Secret, since: float, seconds: object, data: Mapping[str, Any]) -> Token:
    lease = float(seconds) if isinstance(seconds, int) and seconds > 0 else 0.0
    return Token(secret, since, lease, lease, renewable=data.get("renewable") is True)


def _keep_renewed(of: weakref.ref[Credentials], over: threading.Event) -> None:
    while True:
        credentials = of()
        wait = credentials.seconds_to_renewal() if credentials is not None else None
        del credentials
        if wait is None or over.wait(wait):
            return
        if (credentials := of()) is not None:
            credentials.renew()
        del credentials
