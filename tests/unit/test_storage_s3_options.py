"""fsspec's options for s3:// are understood, anything else is refused, and no secret shows. No network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers.ca import CertificateAuthority

from encpipe.config import Config, TlsConfig
from encpipe.errors import ConfigError, StorageError
from encpipe.storage import open_storage
from encpipe.storage.s3 import S3Storage
from encpipe.storage.s3_client import S3Options

SECRET = "wJalrXUtnFEMI"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def made(url: str = "s3://bucket/prefix", *, tls: TlsConfig | None = None, **options: Any) -> S3Storage:
    storage = open_storage(url, config=Config(tls=tls or TlsConfig()), options=options)
    assert isinstance(storage, S3Storage)
    return storage


def refused(code: str, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        made(**options)
    assert raised.value.code == code
    assert SECRET not in f"{raised.value} {raised.value.hint}"
    return raised.value


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({"speed": SECRET}, "config-unknown-key", "speed"),
        ({"client_kwargs": {"aws_secret_access_key": SECRET}}, "config-unknown-key", "aws_secret_access_key"),
        ({"client_kwargs": SECRET}, "config", "client_kwargs"),
        ({"key": "a", "secret": SECRET.encode()}, "config", "secret"),
        ({"anon": "yes"}, "config", "anon"),
        ({"secret": SECRET}, "config", "belong together"),
        ({"endpoint_url": "https://a", "client_kwargs": {"endpoint_url": "https://b"}}, "config", "twice"),
        ({"addressing_style": "pth"}, "config", "addressing_style"),
        ({"verify": False}, "insecure-transport", "verify"),
        ({"client_kwargs": {"verify": False}}, "insecure-transport", "verify"),
        ({"endpoint_url": "http://storage.example.com"}, "insecure-transport", "storage.example.com"),
        ({"endpoint_url": f"https://user:{SECRET}@storage.example.com"}, "config", "user info"),
        ({"endpoint_url": "https://a", "verify": "/no/such/ca.pem"}, "config", "ca.pem"),
        ({"profile": "nobody"}, "config", "nobody"),
        ({"region_name": "not a region"}, "config", "region"),
    ],
)
def test_a_wrong_option_is_refused_without_its_value(options: Any, code: str, told: str) -> None:
    assert told in str(refused(code, **options))


@pytest.mark.parametrize("url", ["s3://", "s3:///x", f"s3://key:{SECRET}@bucket/x"])
def test_a_url_that_names_no_bucket_is_refused(url: str) -> None:
    refused("config", url=url)


def test_a_prefix_cannot_leave_its_place() -> None:
    for prefix in ("a/../b", "..", "a//b"):
        with pytest.raises(StorageError):
            made(f"s3://bucket/{prefix}")


def test_options_hide_their_secrets() -> None:
    options = S3Options.parse({"key": "a", "secret": SECRET, "token": SECRET})
    assert SECRET not in repr(options)


def test_options_win_over_the_configuration() -> None:
    config = Config(storage={"s3": {"region_name": "eu-west-1", "single_writer": True}})
    storage = open_storage("s3://b", config=config, options={"region_name": "eu-west-2"})
    assert isinstance(storage, S3Storage)
    assert storage._connection.endpoint == "https://s3.eu-west-2.amazonaws.com"
    assert storage._conditions.single_writer


def test_the_environment_names_neither_endpoint_nor_ca(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "https://elsewhere.example.com")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/ca.pem")
    storage = made(key="a", secret=SECRET, region_name="eu-west-1")
    assert storage._connection.endpoint == "https://s3.eu-west-1.amazonaws.com"
    filesystem, path = storage.arrow_path("data/x")
    assert path == "bucket/prefix/data/x"
    described = filesystem.__reduce__()[1][0]
    assert described["endpoint_override"] == "s3.eu-west-1.amazonaws.com"
    assert described["scheme"] == "https"
    assert described["force_virtual_addressing"]
    assert described["tls_ca_file_path"] != "/no/such/ca.pem"


@pytest.mark.parametrize(
    ("options", "virtual", "path_style"),
    [
        ({"endpoint_url": "https://storage.example.com"}, False, True),
        ({"endpoint_url": "https://storage.example.com", "addressing_style": "virtual"}, True, False),
        ({"region_name": "eu-west-1"}, True, False),
    ],
)
def test_both_clients_address_a_bucket_alike(
    options: dict[str, Any], virtual: bool, path_style: bool
) -> None:
    storage = made(key="a", secret=SECRET, **options)
    url = storage._connection.client.generate_presigned_url("get_object", Params=storage._objects.at("x"))
    assert ("://bucket." not in url) == path_style
    described = storage.arrow_path("x")[0].__reduce__()[1][0]
    assert described["force_virtual_addressing"] == virtual


def test_credentials_of_a_profile_reach_arrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(
        f"[work]\naws_access_key_id=one\naws_secret_access_key={SECRET}\naws_session_token=token\n"
    )
    storage = made(profile="work", region_name="eu-west-1")
    described = storage.arrow_path("x")[0].__reduce__()[1][0]
    assert (described["access_key"], described["session_token"]) == ("one", "token")


def test_renewed_credentials_reach_arrow() -> None:
    storage = made(key="one", secret=SECRET, region_name="eu-west-1")
    first = storage.arrow_path("x")[0]
    assert storage.arrow_path("y")[0] is first
    credentials = storage._connection._session.get_credentials()
    assert credentials is not None
    credentials.access_key = "two"
    assert storage.arrow_path("x")[0].__reduce__()[1][0]["access_key"] == "two"


def test_without_credentials_the_error_says_where_to_put_them() -> None:
    storage = made(region_name="eu-west-1")
    for use in (lambda: storage.arrow_path("x"), lambda: storage.open_input("x")):
        with pytest.raises(StorageError) as raised:
            use()
        assert raised.value.code == "storage-denied"
        assert "profile" in raised.value.hint
    assert made(anon=True, region_name="eu-west-1").arrow_path("x")[0].__reduce__()[1][0]["anonymous"]


def test_a_client_certificate_keeps_arrow_out(ca: CertificateAuthority) -> None:
    issued = ca.client()
    tls = TlsConfig(ca_file=ca.path, client_cert=issued.cert, client_key=issued.key)
    storage = made(key="a", secret=SECRET, endpoint_url="https://storage.example.com", tls=tls)
    with pytest.raises(StorageError, match="client certificate") as raised:
        storage.arrow_path("x")
    assert raised.value.code == "unsupported"


@pytest.mark.parametrize(
    ("options", "region"),
    [
        ({"endpoint_url": "https://storage.example.com"}, "aws-global"),
        ({"endpoint_url": "https://storage.example.com", "region_name": "us-east-1"}, "aws-global"),
        ({"endpoint_url": "https://storage.example.com", "region_name": "eu-west-1"}, None),
        ({"endpoint_url": "https://amazonaws.com.example.com", "region_name": "eu-west-1"}, None),
        ({"endpoint_url": "https://evilamazonaws.com", "region_name": "eu-west-1"}, None),
        ({"region_name": "us-east-1"}, "aws-global"),
        ({"region_name": "eu-west-1"}, "eu-west-1"),
        ({"region_name": "cn-north-1"}, "cn-north-1"),
    ],
)
def test_arrow_reads_where_it_follows_no_redirects_and_from_aws(
    options: dict[str, Any], region: str | None
) -> None:
    """`aws-global` is the region in which it follows none (ADR 12)."""
    storage = made(key="a", secret=SECRET, **options)
    if region is None:
        with pytest.raises(StorageError, match="redirects") as raised:
            storage.arrow_path("x")
        assert raised.value.code == "unsupported"
    else:
        assert storage.arrow_path("x")[0].__reduce__()[1][0]["region"] == region


def test_without_boto3_the_hint_is_the_pip_command() -> None:
    code = """
import sys
sys.modules["boto3"] = None
from encpipe.config import Config
from encpipe.errors import MissingExtraError
from encpipe.storage import open_storage
for _ in range(2):
    try:
        open_storage("s3://bucket", config=Config())
    except MissingExtraError as error:
        print(error.hint)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "pip install 'encpipe[s3]'\n" * 2


def test_local_and_memory_load_no_boto3() -> None:
    code = """
import sys
from encpipe.config import Config
from encpipe.storage import open_storage
open_storage("x", config=Config())
open_storage("memory://x", config=Config())
assert "boto3" not in sys.modules and "s3fs" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
