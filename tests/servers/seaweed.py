"""SeaweedFS as an S3 server over http and https: it enforces signatures and conditions, and has a reader."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import boto3
import botocore.config
import botocore.exceptions

from servers.ca import CertificateAuthority
from servers.process import HOST, Server, free_ports, program

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
ADMIN = ("test-admin", "test-admin-secret")
READ_ONLY = ("test-ro", "test-ro-secret")


@dataclass(frozen=True)
class Seaweed:
    """How to reach a running server. Plain values, so that processes can share it as JSON."""

    http: str  # endpoint URL
    https: str  # endpoint URL, certificate signed by the CA at `ca`
    ca: str  # path of the CA certificate
    region: str = REGION
    access_key: str = ADMIN[0]
    secret_key: str = ADMIN[1]
    ro_access_key: str = READ_ONLY[0]
    ro_secret_key: str = READ_ONLY[1]

    def client(
        self, identity: Literal["admin", "ro"] = "admin", *, endpoint: str | None = None, attempts: int = 1
    ) -> S3Client:
        """A boto3 client without retries, ignoring the environment's proxies and CA bundles."""
        admin, ro = (self.access_key, self.secret_key), (self.ro_access_key, self.ro_secret_key)
        access_key, secret_key = admin if identity == "admin" else ro
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or self.http,
            region_name=self.region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            verify=self.ca,
            config=botocore.config.Config(
                retries={"total_max_attempts": attempts},
                s3={"addressing_style": "path"},
                connect_timeout=5,
                read_timeout=60,
                proxies={},
            ),
        )

    def create_bucket(self, prefix: str = "t") -> str:
        """A fresh bucket that already takes writes. Buckets are not removed: they go with the server."""
        bucket = f"{prefix}-{uuid.uuid4().hex[:16]}"
        client = self.client()
        client.create_bucket(Bucket=bucket)
        client.close()
        return bucket


class SeaweedServer(Server):
    """`with SeaweedServer(ca) as server: server.address.client().put_object(...)`."""

    name = "seaweed"
    not_yet = (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)

    def __init__(
        self, ca: CertificateAuthority, *, owner_pid: int | None = None, parent: Path | None = None
    ) -> None:
        super().__init__(owner_pid=owner_pid, parent=parent)
        self._cert = ca.server()
        self._ports = free_ports(9)
        http, https = self._ports[:2]
        self.address = Seaweed(f"http://{HOST}:{http}", f"https://{HOST}:{https}", str(ca.path))
        self._probe = self.address.client()

    def command(self) -> list[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        identities = self.folder / "s3.json"
        identities.write_text(json.dumps(_identities()))
        http, https, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._ports
        flags = {
            "ip": HOST,
            "ip.bind": HOST,
            "dir": self.folder / "data",
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.telemetry": "false",  # on by default
            "master.electionTimeout": "1s",
            "master.heartbeatInterval": "100ms",
            "master.volumeSizeLimitMB": 1024,
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": 5000,  # each bucket takes several
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "filer.localSocket": self.folder / "f.sock",
            "s3": "true",
            "s3.port": http,
            "s3.port.https": https,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.localSocket": self.folder / "s.sock",
            "s3.config": identities,
            "s3.cert.file": self._cert.cert,
            "s3.key.file": self._cert.key,
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.iam": "false",
        }
        return [program("weed"), "server", *(f"-{flag}={value}" for flag, value in flags.items())]

    def environment(self) -> Mapping[str, str]:
        return {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "GOMAXPROCS": str(min(2, os.cpu_count() or 1))}

    def serves(self) -> bool:
        """A signed PUT: the server answers 403 for seconds before writes work."""
        errors = self._probe.exceptions
        with contextlib.suppress(errors.BucketAlreadyOwnedByYou, errors.BucketAlreadyExists):
            self._probe.create_bucket(Bucket="probe")
        self._probe.put_object(Bucket="probe", Key="probe", Body=b"probe")
        return True

    def stop(self) -> None:
        self._probe.close()
        super().stop()


def _identities() -> dict[str, object]:
    def identity(name: str, keys: tuple[str, str], actions: list[str]) -> dict[str, object]:
        return {
            "name": name,
            "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}],
            "actions": actions,
        }

    return {
        "identities": [
            identity("admin", ADMIN, ["Admin", "Read", "Write", "List", "Tagging"]),
            identity("ro", READ_ONLY, ["Read", "List"]),
        ]
    }
