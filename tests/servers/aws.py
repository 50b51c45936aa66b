"""Two independent emulators of AWS KMS: roto (strict errors) and moto (grants, IAM, TLS). Neither is AWS."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.config
import botocore.exceptions

from servers.ca import CertificateAuthority, IssuedCertificate
from servers.process import HOST, Server, free_ports, program

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient

REGION = "us-east-1"


@dataclass(frozen=True)
class Kms:
    """How to reach a running KMS. Plain values, so that processes can share it as JSON."""

    endpoint: str
    region: str = REGION
    access_key: str = "test"  # any is accepted
    secret_key: str = "test"
    ca: str | None = None  # path of the CA certificate when the endpoint is https

    def client(self, *, endpoint: str | None = None, ca: str | None = None, attempts: int = 1) -> KMSClient:
        """A boto3 client without retries, ignoring the environment's proxies and CA bundles."""
        return boto3.session.Session().client(
            "kms",
            endpoint_url=endpoint or self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=ca or self.ca,
            config=botocore.config.Config(
                retries={"total_max_attempts": attempts}, connect_timeout=5, read_timeout=60, proxies={}
            ),
        )

    def create_key(self, alias: str | None = None) -> str:
        """A new symmetric key, also named `alias/<alias>` if given; its ARN."""
        client = self.client()
        try:
            arn = client.create_key()["KeyMetadata"]["Arn"]
            if alias is not None:
                client.create_alias(AliasName=f"alias/{alias}", TargetKeyId=arn)
        finally:
            client.close()
        return arn


class _KmsServer(Server):
    not_yet = (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
    address: Kms

    def serves(self) -> bool:
        client = self.address.client()
        try:
            client.list_keys(Limit=1)
        finally:
            client.close()
        return True


class RotoServer(_KmsServer):
    """roto: right errors for a wrong context, a tampered blob, a wrong or disabled key. http only."""

    name = "roto"

    def __init__(self, *, owner_pid: int | None = None, parent: Path | None = None) -> None:
        super().__init__(owner_pid=owner_pid, parent=parent)
        (self._port,) = free_ports(1)
        self.address = Kms(f"http://{HOST}:{self._port}")

    def command(self) -> list[str]:
        return [program("roto-server"), "--host", HOST, "--port", str(self._port), "--ephemeral"]


class MotoServer(_KmsServer):
    """moto: https when given a certificate authority; IAM is enforced after `free_requests` if given."""

    name = "moto"

    def __init__(
        self,
        ca: CertificateAuthority | None = None,
        *,
        certificate: IssuedCertificate | None = None,
        free_requests: int | None = None,
        owner_pid: int | None = None,
        parent: Path | None = None,
    ) -> None:
        super().__init__(owner_pid=owner_pid, parent=parent)
        (self._port,) = free_ports(1)
        self._certificate = certificate or (ca.server() if ca else None)
        self._free_requests = free_requests
        scheme = "https" if self._certificate else "http"
        self.address = Kms(f"{scheme}://{HOST}:{self._port}", ca=str(ca.path) if ca else None)

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self._port)]
        if self._certificate:
            command += ["-c", str(self._certificate.cert), "-k", str(self._certificate.key)]
        return command

    def environment(self) -> Mapping[str, str]:
        if self._free_requests is None:
            return {}
        return {"INITIAL_NO_AUTH_ACTION_COUNT": str(self._free_requests + 1)}  # one for our probe
