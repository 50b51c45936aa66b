"""A throwaway certificate authority for loopback servers, with the certificates a client must refuse.

Everything is P-256. Certificates carry the key identifiers and key usages that OpenSSL's strict checks (the
default from Python 3.13) ask for, so a refusal in a test has the reason the test names, not another one.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import ssl
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)
LOOPBACK = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost"))
WRONG_HOST = (x509.DNSName("elsewhere.invalid"),)


@dataclass(frozen=True)
class IssuedCertificate:
    """PEM files of a certificate and its private key."""

    cert: Path
    key: Path

    def server_context(self, client_ca: Path | None = None) -> ssl.SSLContext:
        """For a server; with `client_ca` it demands a client certificate (mutual TLS)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class CertificateAuthority:
    """`path` is the CA certificate clients trust; issued files land in the same folder."""

    def __init__(self, folder: Path, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self.path = folder / "ca.pem"
        self._cert = cert
        self._key = key

    @classmethod
    def create(cls, folder: Path) -> Self:
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("encpipe test CA")
        builder = _builder(name, name, key, key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
        authority = cls(folder, builder.sign(key, hashes.SHA256()), key)
        _write(folder / "ca.key", _key_pem(key))
        _write(authority.path, authority._cert.public_bytes(serialization.Encoding.PEM))
        return authority

    @classmethod
    def load(cls, folder: Path) -> Self:
        cert = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(folder, cert, key)

    def server(
        self, *, expired: bool = False, wrong_host: bool = False, names: Sequence[str] = ()
    ) -> IssuedCertificate:
        """A server certificate for 127.0.0.1, localhost and these names, or one that a client must refuse."""
        hosts = WRONG_HOST if wrong_host else (*LOOPBACK, *map(x509.DNSName, names))
        return self._issue("server", ExtendedKeyUsageOID.SERVER_AUTH, hosts, expired=expired)

    def client(
        self,
        name: str = "test client",
        *,
        expired: bool = False,
        names: Sequence[x509.GeneralName] = (),
    ) -> IssuedCertificate:
        """A client certificate with this common name and these alternative names."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, tuple(names), expired=expired)

    def self_signed(self) -> IssuedCertificate:
        """A server certificate with the right host that this CA has not signed."""
        return self._issue("self-signed", ExtendedKeyUsageOID.SERVER_AUTH, LOOPBACK, self_signed=True)

    def client_context(self, client: IssuedCertificate | None = None) -> ssl.SSLContext:
        """For a client that trusts this CA only."""
        context = ssl.create_default_context(cafile=self.path)
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        return context

    def _issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        hosts: tuple[x509.GeneralName, ...],
        *,
        expired: bool = False,
        self_signed: bool = False,
    ) -> IssuedCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer, issuer_key = (_name(name), key) if self_signed else (self._cert.subject, self._key)
        builder = _builder(_name(name), issuer, key, issuer_key, expired=expired)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        cert = builder.sign(issuer_key, hashes.SHA256())
        stem = f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{uuid.uuid4().hex[:8]}"
        issued = IssuedCertificate(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        _write(issued.cert, cert.public_bytes(serialization.Encoding.PEM))
        _write(issued.key, _key_pem(key))
        return issued


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    expired: bool = False,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    first, last = (now - 10 * DAY, now - DAY) if expired else (now - DAY, now + 10 * DAY)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
