"""The table `kms.vault`, and where the token or the AppRole's ids are read from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from encpipe.errors import ConfigError
from encpipe.keys import Secret
from encpipe.kms import privatefile
from encpipe.kms.tables import read_table

TABLE: Final = "kms.vault"
MAX_CREDENTIAL_BYTES: Final = 16_384
"""A token, role id or secret id may be this long; a batch token has some hundred bytes."""

SEGMENT: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?"
"""A part of a path, as Vault takes it for a key name. Never `.` or `..`."""
_PATH: Final = re.compile(rf"{SEGMENT}(?:/{SEGMENT}){{0,7}}/?")
_CREDENTIAL: Final = re.compile(rb"[!-~]+")
_REFERENCE: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]{0,127}|file:(?:/|~/).{1,4095}")

TOKEN_VARIABLES: Final = ("VAULT_TOKEN", "BAO_TOKEN")
TOKEN_FILE: Final = "~/.vault-token"  # noqa: S105  # where it lies, not what it is


@dataclass(frozen=True)
class VaultTable:
    """The table `kms.vault`. Times are seconds.

    `token`, `role_id` and `secret_id` say where they are read from: `env:NAME` or `file:PATH`, the path
    absolute or from `~`. A role id is no secret, and may stand there itself.
    """

    address: str
    namespace: str | None = None
    token: str | None = None
    role_id: str | None = None
    secret_id: str | None = None
    auth_mount: str = "approle"
    connect_timeout: float = 5.0
    read_timeout: float = 10.0
    deadline: float = 20.0

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> VaultTable:
        """Raises `ConfigError`: `config-unknown-key`, `config-missing` without an address, else `config`."""
        needs = {"address": 'write address = "https://HOST:8200" (VAULT_ADDR does not count)'}
        parsed = read_table(cls, TABLE, table, needs=needs)
        parsed._check_credentials()
        return parsed

    def _check_credentials(self) -> None:
        for key in ("namespace", "auth_mount"):
            path = getattr(self, key)
            if path is not None and not _PATH.fullmatch(path):
                raise ConfigError(f"{TABLE}.{key} is not a path", hint=f'for example {key} = "team/training"')
        for key in ("token", "secret_id"):
            reference = getattr(self, key)
            if reference is not None and not _REFERENCE.fullmatch(reference):
                raise ConfigError(  # the value is not repeated: it may be the secret itself
                    f"{TABLE}.{key} must be env:NAME or file:PATH, the path absolute or from ~",
                    hint=f'for example {key} = "file:/run/secrets/vault"; never the secret itself',
                )
        if self.token is not None and self.role_id is not None:
            raise ConfigError(f"{TABLE} has both token and role_id", hint="log in one way: leave one out")
        if self.secret_id is not None and self.role_id is None:
            raise ConfigError(f"{TABLE}.secret_id is set without role_id", hint="name both, or neither")

    def read_token(self) -> Secret:
        """The token as `token` says; without it VAULT_TOKEN, BAO_TOKEN, then `~/.vault-token`.

        Raises `ConfigError` `config-missing` where there is none, `keyring-permissions` for a file that
        others may read.
        """
        if self.token is not None:
            return _read(self.token, f"{TABLE}.token")
        for variable in TOKEN_VARIABLES:
            if os.environ.get(variable):
                return _read(f"env:{variable}", "the token")
        if Path(TOKEN_FILE).expanduser().exists():
            return _read(f"file:{TOKEN_FILE}", "the token")
        raise ConfigError(
            f"no token for Vault at {self.address}",
            hint=f"set token or role_id in the table {TABLE!r}, or VAULT_TOKEN, or log in with: vault login",
            code="config-missing",
        )

    def read_login(self) -> dict[str, str]:
        """The body of an AppRole login. Raises as `read_token` does."""
        assert self.role_id is not None, "only an AppRole logs in"
        reference = _REFERENCE.fullmatch(self.role_id)
        role_id = _text(_read(self.role_id, f"{TABLE}.role_id")) if reference else self.role_id
        if self.secret_id is None:
            return {"role_id": role_id}
        return {"role_id": role_id, "secret_id": _text(_read(self.secret_id, f"{TABLE}.secret_id"))}


def _text(secret: Secret) -> str:
    return secret.reveal().decode("ascii")


def _read(reference: str, what: str) -> Secret:
    kind, _, name = reference.partition(":")
    if kind == "file":
        path = Path(name).expanduser()
        raw = privatefile.read(path, what=what, limit=MAX_CREDENTIAL_BYTES)
    else:
        raw = os.environb.get(name.encode(), b"")
    value = raw.strip()
    if not value:
        raise ConfigError(f"{what}: {reference} is empty or not set", code="config-missing")
    if len(value) > MAX_CREDENTIAL_BYTES or not _CREDENTIAL.fullmatch(value):
        raise ConfigError(f"{what}: {reference} holds no token or id", hint="one word of printable ASCII")
    return Secret(value)
