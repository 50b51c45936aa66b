"""The table `kms.aws-kms` and the URIs of AWS keys: what is accepted, and that nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from encpipe.config import Config, load_config
from encpipe.errors import ConfigError, UntrustedKeyError
from encpipe.keys import KeyContext, Secret
from encpipe.kms import MasterKeys
from encpipe.kms.aws import AwsKms, AwsKmsTable
from encpipe.kms.base import KmsSettings

ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:eu-central-1:123456789012:key/{ID}"


def test_defaults() -> None:
    assert AwsKmsTable.parse({}) == AwsKmsTable(deadline=20.0)


def test_every_key_is_read() -> None:
    table = {
        "region": "eu-central-1",
        "profile": "reader",
        "endpoint_url": "https://kms.example",
        "connect_timeout": 1,
        "read_timeout": 2.5,
        "deadline": 30,
    }
    assert AwsKmsTable.parse(table) == AwsKmsTable(**table)  # type: ignore[arg-type]  # mixed on purpose


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'secret_key'") as refused:
        AwsKms(KmsSettings({"secret_key": "hunter2"}))
    assert refused.value.code == "config-unknown-key"
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("region", 1),
        ("profile", ""),
        ("endpoint_url", ["https://kms.example"]),
        ("deadline", 0),
        ("deadline", -1),
        ("deadline", "20"),
        ("deadline", True),
        ("read_timeout", float("nan")),
        ("connect_timeout", float("inf")),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"kms\.aws-kms\.{key}"):
        AwsKms(KmsSettings({key: value}))


@pytest.mark.parametrize(
    "name",
    [
        ARN,
        f"arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/{ID}",
        f"arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-{'0' * 32}",
        "arn:aws:kms:eu-central-1:123456789012:alias/team/footer_1-a",
        "alias/footer",
        ID,
        f"mrk-{'0' * 32}",
    ],
)
def test_uris_of_every_form_are_keys(name: str) -> None:
    assert AwsKms(KmsSettings()).master_key(f"aws-kms:{name}").uri == f"aws-kms:{name}"


@pytest.mark.parametrize(
    "name",
    ["", "alias/", "footer", ID.upper(), f"{ID}\n", f" {ID}", f"alias:{ID}", f"key/{ID}"]
    + [
        ARN.replace(*change)
        for change in [
            ("arn:", "urn:"),
            (":kms:", ":s3:"),
            ("eu-central-1", ""),
            ("eu-central-1", "evil.example/x"),
            ("eu-central-1", "eu-central-1.evil.example"),
            ("123456789012", "12345"),
            (":key/", ":grant/"),
            (ID, ""),
            (ID, f"{ID}/x"),
        ]
    ],
)
def test_other_uris_are_config_errors(name: str) -> None:
    with pytest.raises(ConfigError, match="not the URI of an AWS KMS key"):
        AwsKms(KmsSettings()).master_key(f"aws-kms:{name}")


def test_a_kek_of_another_length_is_not_sent() -> None:
    key = AwsKms(KmsSettings()).master_key(f"aws-kms:{ARN}")
    with pytest.raises(ValueError, match="32 bytes"):
        key.wrap(Secret(b"short"), aad=KeyContext("d", "footer", "k"))


def test_an_alias_in_the_configuration_does_not_make_its_arn_trusted() -> None:
    keys = MasterKeys(Config(keys={"footer": ("aws-kms:alias/footer",)}))
    assert keys.for_key_name("footer")[0].uri == "aws-kms:alias/footer"
    with pytest.raises(UntrustedKeyError) as refused:
        keys.get(f"aws-kms:{ARN}", key_name="footer")
    assert ARN in refused.value.hint


def test_the_example_configuration_reaches_its_keys() -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "aws.toml", env={})
    keys = MasterKeys(config)
    assert [len(keys.for_key_name(name)) for name in config.policy.key_names] == [1, 2]
    for uri in config.trust.master_keys:
        assert keys.get(uri, key_name="footer").uri == uri
    assert AwsKmsTable.parse(config.kms["aws-kms"]) == AwsKmsTable(region="eu-central-1")


def test_naming_a_key_does_not_import_boto3() -> None:
    code = f"""
import sys
from encpipe.kms.aws import AwsKms
from encpipe.kms.base import KmsSettings
AwsKms(KmsSettings({{"endpoint_url": "https://kms.example"}})).master_key("aws-kms:{ARN}")
sys.exit("boto3" in sys.modules or "botocore" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
