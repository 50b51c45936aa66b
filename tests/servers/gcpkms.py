"""A local fake of Google Cloud KMS, and how tests reach it. No genuine service is used anywhere.

What it speaks, checks and encrypts: see gcpkms_fake.py, which runs as a process of its own.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from servers.ca import CertificateAuthority
from servers.process import HOST, Server, free_ports

RING = "projects/encpipe-test/locations/europe-west3/keyRings/tests"
ACCOUNTS = ("owner", "writer", "analyst")
"""Service accounts: `owner` may do anything; the others what the policy of a key grants them."""


def email(account: str) -> str:
    return f"{account}@encpipe-test.iam.gserviceaccount.com"


@dataclass(frozen=True)
class Gcp:
    """How to reach a running fake. Plain values, so that processes can share it as JSON."""

    endpoint: str
    folder: str
    ca: str | None = None

    def account(self, name: str) -> str:
        """The service account file of one of `ACCOUNTS`."""
        return str(Path(self.folder) / f"{name}.json")

    def client(self) -> Any:
        """The official client, over REST, as `owner`: the fake is also judged by what the SDK makes of it."""
        from google.cloud.kms_v1 import KeyManagementServiceClient
        from google.cloud.kms_v1.services.key_management_service.transports import (
            KeyManagementServiceRestTransport,
        )
        from google.oauth2 import service_account

        owner = service_account.Credentials.from_service_account_file(self.account("owner"))
        rest = KeyManagementServiceRestTransport(
            host=self.endpoint, credentials=owner, always_use_jwt_access=True
        )
        rest._session.trust_env = False
        rest._session.verify = self.ca or True
        return KeyManagementServiceClient(transport=rest)

    def create_key(self, *, grant: dict[str, str] | None = None, **settings: Any) -> str:
        """A new symmetric key; its resource name. `grant`: account -> role without `roles/cloudkms.`.

        By default `writer` may encrypt and decrypt. `settings` go into the key (`purpose=`).
        """
        grant = {"writer": "cryptoKeyEncrypterDecrypter"} if grant is None else grant
        with self.client() as client:
            key = {"purpose": "ENCRYPT_DECRYPT", **settings}
            request = {"parent": RING, "crypto_key_id": f"key-{uuid.uuid4().hex[:12]}", "crypto_key": key}
            name = str(client.create_crypto_key(request=request).name)
            bindings = [
                {"role": f"roles/cloudkms.{role}", "members": [f"serviceAccount:{email(account)}"]}
                for account, role in grant.items()
            ]
            client.set_iam_policy(request={"resource": name, "policy": {"bindings": bindings}})
        return name


class GcpServer(Server):
    """The fake, in a process of its own. `clock_offset`: seconds by which its clock is ahead of ours."""

    name = "gcpkms"
    not_yet = (OSError, http.client.HTTPException)
    address: Gcp

    def __init__(
        self,
        ca: CertificateAuthority | None = None,
        *,
        clock_offset: int = 0,
        owner_pid: int | None = None,
        parent: Path | None = None,
    ) -> None:
        super().__init__(owner_pid=owner_pid, parent=parent)
        (self._port,) = free_ports(1)
        self._certificate = ca.server() if ca else None
        self._clock_offset = clock_offset
        scheme = "https" if ca else "http"
        self.address = Gcp(f"{scheme}://{HOST}:{self._port}", str(self.folder), str(ca.path) if ca else None)
        for account in ACCOUNTS:
            make_account(self.folder, account)

    def command(self) -> list[str]:
        fake = [sys.executable, "-m", "servers.gcpkms_fake"]
        command = [*fake, str(self._port), str(self.folder), str(self._clock_offset)]
        if self._certificate:
            command += [str(self._certificate.cert), str(self._certificate.key)]
        return command

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[1])}

    def serves(self) -> bool:
        parts = urlsplit(self.address.endpoint)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.address.ca)
            connection = http.client.HTTPSConnection(HOST, self._port, context=context, timeout=5)
        else:
            connection = http.client.HTTPConnection(HOST, self._port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 404
        finally:
            connection.close()


def make_account(folder: Path, account: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    info = {
        "type": "service_account",
        "project_id": "encpipe-test",
        "private_key_id": uuid.uuid4().hex,
        "private_key": pem.decode(),
        "client_email": email(account),
        "client_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
        "universe_domain": "googleapis.com",
    }
    path = folder / f"{account}.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(info))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / f"{email(account)}.pub").write_bytes(public)
