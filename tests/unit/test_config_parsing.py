"""What a configuration file may say, and how a fault in it is told."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from encpipe.config import AuditConfig, Config, load_config, load_policy, parse_config
from encpipe.errors import ConfigError, PolicyError
from encpipe.policy import Policy

SOURCE = Path("/etc/encpipe/site.toml")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))

FULL = """
[keyring]
path = "keys/ring.json"
unlock = "key-file:~/ring.key"
[keys]
footer = ["aws-kms:alias/f", "local:default", "aws-kms:alias/f"]
pii = "local:pii"
[policy]
footer_key = "footer"
columns = { pii = ["name", "address.*"] }
plaintext_partitions = ["year"]
partition_keys = ["year", "month"]
strict = true
[trust]
master_keys = ["local:old"]
signers = ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
[signing]
key_file = "keys/ann.pem"
[tls]
ca_file = "ca.pem"
client_cert = "/c.pem"
client_key = "~/k.pem"
allow_plain_http_to = ["localhost"]
[kms.aws-kms]
region = "eu-central-1"
[storage.s3]
endpoint_url = "https://s3.example.org"
nested = { anything = 1 }
"""


def test_every_table_is_read() -> None:
    config = parse_config(FULL, SOURCE, env={"HOME": "/home/me"})
    assert config.keyring.path == Path("/etc/encpipe/keys/ring.json")
    assert config.keyring.unlock == "key-file:/home/me/ring.key"
    assert config.keys == {"footer": ("aws-kms:alias/f", "local:default"), "pii": ("local:pii",)}
    assert config.policy == Policy(
        "footer", {"pii": ("name", "address.*")}, ("year",), True, ("year", "month")
    )
    assert (config.trust.master_keys, config.trust.signers) == (("local:old",), ("ed25519:" + "A" * 43,))
    assert config.signing.key_file == Path("/etc/encpipe/keys/ann.pem")
    assert config.tls.ca_file == Path("/etc/encpipe/ca.pem")
    assert (config.tls.client_cert, config.tls.client_key) == (Path("/c.pem"), Path("/home/me/k.pem"))
    assert config.tls.allow_plain_http_to == ("localhost",)
    assert config.kms == {"aws-kms": {"region": "eu-central-1"}}
    assert config.storage == {"s3": {"endpoint_url": "https://s3.example.org", "nested": {"anything": 1}}}
    assert config.source == SOURCE
    assert pickle.loads(pickle.dumps(config)) == config


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_config("", SOURCE) == Config(source=SOURCE)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("[keyrings]\n", "site.toml: unknown key 'keyrings'", "'keyring'"),
        ("[keyring]\npaht = 'x'\n", "table [keyring]: unknown key 'paht'", "'path'"),
        ("[policy]\nfooter-key = 'f'\n", "table [policy]: unknown key 'footer-key'", "'footer_key'"),
        ("[trust]\nmaster_key = []\n", "table [trust]: unknown key 'master_key'", "'master_keys'"),
        ("[tls]\nverify = false\n", "table [tls]: unknown key 'verify'", "known keys: allow_plain_http_to"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(text: str, place: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, SOURCE)
    assert caught.value.code == "config-unknown-key"
    assert place in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keyring = 3\n", "key 'keyring' must be a table, and is a number"),
        ("[keyring]\npath = 3\n", "[keyring]: key 'path' must be a string, and is a number"),
        ("[keyring]\npath = ''\n", "[keyring]: key 'path' is an empty string"),
        ("[keyring]\nunlock = true\n", "key 'unlock' must be a string, and is true or false"),
        ("[keyring]\nunlock = 'env:A-B'\n", "key 'unlock' must be one of: prompt, env:NAME"),
        ("[keyring]\nunlock = 'file:'\n", "key 'unlock' must be one of"),
        ("[keys]\nfooter = 3\n", "[keys]: key 'footer' must be a list of strings, and is a number"),
        ("[keys]\nfooter = [3]\n", "[keys]: key 'footer' must be a list of strings, none of them empty"),
        ("[keys]\nfooter = []\n", "[keys]: key 'footer' names no master key"),
        ("[keys]\nfooter = ['default']\n", "holds 'default', which is not a master key URI"),
        ("[keys]\nfooter = ['local:*']\n", "holds the pattern 'local:*'"),
        ("[keys]\nFooter = ['local:a']\n", "key 'Footer' is not a key name"),
        ("[trust]\nsigners = ['ann']\n", "key 'signers' holds 'ann', which is not a signer"),
        ("[signing]\nkey_file = 3\n", "[signing]: key 'key_file' must be a string, and is a number"),
        ("[audit]\nsink = 'syslog'\n", "[audit]: key 'sink' must be one of: file:PATH, stderr, logger:NAME"),
        ("[audit]\nsink = 'file:'\n", "[audit]: key 'sink' must be one of"),
        ("[audit]\nrequired = true\n", "[audit]: key 'sink' must be one of"),
        ("[audit]\nsink = 'stderr'\nrequired = 1\n", "[audit]: key 'required' must be true or false"),
        ("[audit]\nsink = 'stderr'\nrequird = true\n", "[audit]: unknown key 'requird'"),
        ("[trust]\nmaster_keys = ['']\n", "[trust]: key 'master_keys' must be a list of strings"),
        ("[policy]\nstrict = 1\n", "[policy]: key 'strict' must be true or false, and is a number"),
        ("[policy]\ncolumns = ['a']\n", "key 'columns' must be a table, and is a list"),
        ("[policy]\ncolumns = { pii = 3 }\n", "[policy.columns]: key 'pii' must be a list of strings"),
        ("[policy]\ncolumns = { pii = [] }\n", "[policy]: key name 'pii' lists no columns"),
        ("[kms]\nregion = 'x'\n", "[kms]: key 'region' must be a table, and is a string"),
        ("[storage]\ns3 = 2024-01-01\n", "[storage]: key 's3' must be a table, and is date"),
        ("[keys\n", "is not TOML"),
    ],
)
def test_a_value_that_does_not_fit_is_told_with_file_table_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, SOURCE)
    assert str(SOURCE) in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AuditConfig(None, True)),
        ("[audit]\nsink = 'file:log/audit.jsonl'\n", AuditConfig("file:/etc/encpipe/log/audit.jsonl")),
        ("[audit]\nsink = 'file:/var/a'\nrequired = false\n", AuditConfig("file:/var/a", required=False)),
        ("[audit]\nsink = 'stderr'\n", AuditConfig("stderr")),
        ("[audit]\nsink = 'logger:encpipe.audit'\n", AuditConfig("logger:encpipe.audit")),
    ],
)
def test_where_the_audit_log_goes(text: str, expected: AuditConfig) -> None:
    assert parse_config(text, SOURCE).audit == expected


def test_a_passphrase_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("[keyring]\nunlock = 'S3cret-marker'\n", SOURCE)
    assert "S3cret" not in caught.value.message + caught.value.hint


def test_a_malformed_policy_stays_a_policy_error_and_names_the_file() -> None:
    with pytest.raises(PolicyError, match=r"site\.toml: table \[policy\]: 'Foot' is not a key name"):
        parse_config("[policy]\nfooter_key = 'Foot'\n", SOURCE)


@pytest.mark.parametrize(
    ("data", "message"), [(b"\xff", "is not UTF-8"), (b"#" * (1 << 20) + b"#", "longer")]
)
def test_a_file_that_cannot_be_a_configuration(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_config(path, env={})


def test_a_policy_file_has_the_keys_of_the_table_at_its_top(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('columns = { pii = ["name"] }\n')
    assert load_policy(path) == Policy(columns={"pii": ("name",)})
    path.write_text("[policy]\n")
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert caught.value.code == "config-unknown-key"
    with pytest.raises(ConfigError) as absent:
        load_policy(tmp_path / "absent.toml")
    assert absent.value.code == "config-missing"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_shipped_configurations_load(path: Path) -> None:
    config = load_config(path, env={})
    assert config.keys[config.policy.footer_key]
    assert set(config.policy.columns) <= set(config.keys)
