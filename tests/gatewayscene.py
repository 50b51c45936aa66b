"""A gateway in this process on loopback, with a dataset of made-up flights behind it, and clients of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
from cryptography import x509
from scene import KEYS, Scene
from servers.ca import CertificateAuthority, IssuedCertificate

import encpipe
from encpipe.config import Config, TlsConfig
from encpipe.gateway.client import GatewayDataset
from encpipe.gateway.server import Gateway

TRAINER = "spiffe://example.org/trainer"
OTHER = "spiffe://example.org/other"
ROWS = 1000


def flights() -> pa.Table:
    """`row` is the row's number; every fourth row is of JFK, in runs, so that some row groups have none."""
    origin = ["JFK" if (n // 50) % 4 == 0 else "EWR" for n in range(ROWS)]
    return pa.table(
        {
            "row": pa.array(range(ROWS), pa.int64()),
            "origin": pa.array(origin),
            "delay": pa.array([float(n % 7) for n in range(ROWS)]),
            "name": pa.array([f"person {n}" for n in range(ROWS)]),
            "kind": pa.array([f"{origin[n]}-{n % 3}" for n in range(ROWS)]).dictionary_encode(),
        }
    ).replace_schema_metadata({"pandas": "name, row and all others", "note": "secret"})


def uri(value: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(value)


@dataclass
class GatewayScene:
    """`serve` starts a gateway with these rules; `open` is a client with a certificate of `identity`."""

    folder: Path
    ca: CertificateAuthority
    clients: CertificateAuthority
    scene: Scene
    port: int = 0
    issued: dict[str, IssuedCertificate] = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path, ca: CertificateAuthority) -> GatewayScene:
        scene = Scene(str(folder / "flights"))
        (folder / "plain").mkdir()
        table = flights()
        for start in range(0, ROWS, 50):  # a file, and so a row group, for each
            pq.write_table(table.slice(start, 50), folder / "plain" / f"{start:04}.parquet")
        scene.write(folder / "plain")
        return cls(folder, ca, CertificateAuthority.create(folder / "clients"), scene)

    def table(self, *rules: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """The table `gateway` of a configuration."""
        server = self.ca.server()
        return {
            "listen": "127.0.0.1:0",
            "certificate": str(server.cert),
            "key": str(server.key),
            "client_ca": str(self.clients.path),
            "datasets": {"flights": self.scene.url},
            "rules": [dict(rule) for rule in rules],
            **more,
        }

    @contextmanager
    def serve(
        self, *rules: Mapping[str, Any], config: Config | None = None, **more: Any
    ) -> Iterator[Gateway]:
        base = config or Config(keys=KEYS)
        made = dataclasses.replace(
            base, gateway=self.table(*rules, **more), source=base.source or self.folder / "gateway.toml"
        )
        keys = encpipe.MasterKeys(made, extra={"memory": self.scene.kms})
        with Gateway.start(made, master_keys=keys) as gateway:
            self.port = gateway.port
            yield gateway

    def certificate(self, identity: str) -> IssuedCertificate:
        if identity not in self.issued:
            self.issued[identity] = self.clients.client("trainer", names=[uri(identity)])
        return self.issued[identity]

    @property
    def url(self) -> str:
        return f"grpc+tls://127.0.0.1:{self.port}/flights"

    def open(
        self,
        identity: str = TRAINER,
        *,
        certificate: IssuedCertificate | None = None,
        url: str | None = None,
        ca: Path | None = None,
    ) -> GatewayDataset:
        issued = certificate or self.certificate(identity)
        tls = TlsConfig(ca or self.ca.path, issued.cert, issued.key, ())
        return encpipe.open_gateway(url or self.url, config=Config(tls=tls))

    def flight(self, identity: str = TRAINER) -> fl.FlightClient:
        """PyArrow's own client."""
        issued = self.certificate(identity)
        return fl.FlightClient(
            f"grpc+tls://127.0.0.1:{self.port}",
            tls_root_certs=self.ca.path.read_bytes(),
            cert_chain=issued.cert.read_bytes(),
            private_key=issued.key.read_bytes(),
        )


def rule(identity: str = TRAINER, **more: Any) -> dict[str, Any]:
    """All of the dataset, but for `more`."""
    return {"identity": identity, "dataset": "flights", "columns": "*", **more}
