"""The servers behave like the services they stand in for, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from servers.aws import Kms, RotoServer
from servers.ca import CertificateAuthority, IssuedCertificate
from servers.process import Server, ServerStartError
from servers.seaweed import Seaweed

pytestmark = pytest.mark.server


def status(error: pytest.ExceptionInfo[ClientError]) -> int:
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_s3_round_trip_over_http_and_https(seaweed: Seaweed, bucket: str) -> None:
    for endpoint in (seaweed.http, seaweed.https):
        client = seaweed.client(endpoint=endpoint)
        client.put_object(Bucket=bucket, Key="a/b", Body=endpoint.encode())
        assert client.get_object(Bucket=bucket, Key="a/b")["Body"].read() == endpoint.encode()


def test_s3_refuses_a_wrong_secret(seaweed: Seaweed, bucket: str) -> None:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=seaweed.http,
        region_name=seaweed.region,
        aws_access_key_id=seaweed.access_key,
        aws_secret_access_key="wrong",
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.put_object(Bucket=bucket, Key="k", Body=b"x")


def test_s3_read_only_identity_reads_but_does_not_write(seaweed: Seaweed, bucket: str) -> None:
    seaweed.client().put_object(Bucket=bucket, Key="k", Body=b"x")
    reader = seaweed.client("ro")
    assert reader.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket=bucket, Key="k", Body=b"y")


def test_s3_conditional_writes(seaweed: Seaweed, bucket: str) -> None:
    client = seaweed.client()
    first = client.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert status(refused) == 412
    client.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=first)
    with pytest.raises(ClientError) as stale:
        client.put_object(Bucket=bucket, Key="k", Body=b"4", IfMatch=first)
    assert status(stale) == 412
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"3"


@pytest.mark.parametrize("fixture", ["roto_kms", "moto_kms", "moto_kms_tls"])
def test_kms_binds_the_encryption_context(fixture: str, request: pytest.FixtureRequest) -> None:
    kms: Kms = request.getfixturevalue(fixture)
    arn = kms.create_key(alias=f"t-{os.urandom(4).hex()}")
    assert arn.startswith("arn:aws:kms:")
    client = kms.client()
    blob = client.encrypt(KeyId=arn, Plaintext=b"key", EncryptionContext={"a": "1"})["CiphertextBlob"]
    assert client.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "1"})["Plaintext"] == b"key"
    with pytest.raises(ClientError, match="InvalidCiphertext"):
        client.decrypt(CiphertextBlob=blob, EncryptionContext={"a": "2"})


def test_kms_alias_resolves_to_the_key(roto_kms: Kms) -> None:
    arn = roto_kms.create_key(alias="resolves")
    assert roto_kms.client().describe_key(KeyId="alias/resolves")["KeyMetadata"]["Arn"] == arn


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A whole TLS handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: list[Any] = [
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


def test_ca_certificate_is_accepted_and_bad_ones_are_refused_for_their_reason(
    ca: CertificateAuthority,
) -> None:
    trusting = ca.client_context()
    handshake(ca.server().server_context(), trusting)
    refused: dict[str, IssuedCertificate] = {
        "expired": ca.server(expired=True),
        "IP address mismatch": ca.server(wrong_host=True),
        "self-signed certificate": ca.self_signed(),
        "unsuitable certificate purpose": ca.client(),
    }
    for reason, certificate in refused.items():
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            handshake(certificate.server_context(), trusting)


def test_ca_client_certificate_is_demanded(ca: CertificateAuthority) -> None:
    server = ca.server().server_context(client_ca=ca.path)
    handshake(server, ca.client_context(ca.client()))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(server, ca.client_context())


def test_start_error_shows_the_end_of_the_log() -> None:
    class Broken(Server):
        def command(self) -> list[str]:
            return [sys.executable, "-c", "import sys; sys.exit('no such flag')"]

        def serves(self) -> bool:
            return False

    server = Broken()
    with pytest.raises(ServerStartError, match="no such flag"):
        server.start()
    assert not server.folder.exists()


def test_stop_ends_the_server_and_removes_its_folder() -> None:
    with RotoServer() as server:
        port = int(server.address.endpoint.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port)).close()
    assert not server.folder.exists()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        server = RotoServer(owner_pid=owner.pid, parent=tmp_path).start()
        owner.send_signal(signal.SIGKILL)
        server.wait(timeout=10)
    assert not server.folder.exists()
