"""A dataset under keys of Google Cloud KMS: two identities, configuration files, as few calls as can be."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import google_crc32c
import pyarrow as pa
import pytest
from servers.gcpkms import Gcp

from encpipe import (
    Config,
    KeyAccessDeniedError,
    KmsError,
    MasterKeys,
    Policy,
    UnwrapError,
    open_dataset,
    rewrap,
    write_dataset,
)
from encpipe.config import load_config
from encpipe.testing import Fault, FaultProxy

pytestmark = pytest.mark.server

ROWS = pa.table({"id": [1, 2, 3], "name": ["Ada", "Alan", "Grace"]})


@pytest.fixture
def proxy(gcp_kms: Gcp) -> Iterator[FaultProxy]:
    port = urlsplit(gcp_kms.endpoint).port
    assert port is not None
    with FaultProxy("127.0.0.1", port) as running:
        yield running


@pytest.fixture(scope="module")
def keys(gcp_kms: Gcp) -> dict[str, str]:
    """`writer` may use both; `analyst` may open what is under `footer`."""
    both = "cryptoKeyEncrypterDecrypter"
    return {
        "footer": gcp_kms.create_key(grant={"writer": both, "analyst": "cryptoKeyDecrypter"}),
        "pii": gcp_kms.create_key(grant={"writer": both}),
    }


def configured(folder: Path, gcp: Gcp, endpoint: str, keys: dict[str, str], account: str) -> Config:
    path = folder / f"{account}.toml"
    lines = [f'{name} = ["gcp-kms:{key}"]' for name, key in keys.items()]
    table = f'endpoint_url = "{endpoint}"\nservice_account_file = "{gcp.account(account)}"'
    path.write_text("\n".join(["[keys]", *lines, "[kms.gcp-kms]", table, ""]))
    return load_config(path, env={})


def test_two_identities_and_one_dataset(
    gcp_kms: Gcp, proxy: FaultProxy, keys: dict[str, str], tmp_path: Path
) -> None:
    writer = configured(tmp_path, gcp_kms, proxy.url, keys, "writer")
    write_dataset(ROWS, tmp_path / "d", policy=Policy(columns={"pii": ("name",)}), config=writer)
    proxy.requests.clear()
    with open_dataset(tmp_path / "d", config=writer) as dataset:
        assert dataset.to_table().sort_by("id") == ROWS
        assert dataset.to_table().num_rows == 3
    assert len(proxy.requests) == len(keys)

    analyst = configured(tmp_path, gcp_kms, proxy.url, keys, "analyst")
    with open_dataset(tmp_path / "d", config=analyst, on_missing_key="skip") as dataset:
        assert dataset.to_table().column_names == ["id"]
    with open_dataset(tmp_path / "d", config=analyst) as dataset, pytest.raises(KeyAccessDeniedError):
        dataset.to_table()
    with pytest.raises(KeyAccessDeniedError):
        write_dataset(ROWS, tmp_path / "e", policy=Policy(), config=analyst)
    assert not (tmp_path / "e" / "_encpipe" / "manifest.json").exists()


def test_an_api_that_is_switched_off_makes_no_columns_disappear(
    gcp_kms: Gcp, proxy: FaultProxy, keys: dict[str, str], tmp_path: Path
) -> None:
    writer = configured(tmp_path, gcp_kms, proxy.url, keys, "writer")
    write_dataset(ROWS, tmp_path / "d", policy=Policy(columns={"pii": ("name",)}), config=writer)
    off = b'{"error": {"status": "PERMISSION_DENIED", "details": [{"reason": "SERVICE_DISABLED"}]}}'
    proxy.faults = [Fault("status", code=403, body=off, match=lambda _, path: keys["pii"] in path)]
    with pytest.raises(KmsError, match="SERVICE_DISABLED"):
        open_dataset(tmp_path / "d", config=writer, on_missing_key="skip")


def test_another_key_in_the_answer_is_not_taken(
    gcp_kms: Gcp, proxy: FaultProxy, keys: dict[str, str], tmp_path: Path
) -> None:
    """`Decrypt` does not say under which key it opened: what the manifest commits to tells."""
    writer = configured(tmp_path, gcp_kms, proxy.url, keys, "writer")
    write_dataset(ROWS, tmp_path / "d", policy=Policy(), config=writer)
    other = bytes(32)
    answer = {
        "plaintext": base64.b64encode(other).decode(),
        "plaintextCrc32c": str(google_crc32c.value(other)),
    }
    proxy.faults = [Fault("status", code=200, body=json.dumps(answer).encode())]
    with pytest.raises(UnwrapError) as refused:
        open_dataset(tmp_path / "d", config=writer)
    assert refused.value.code == "kek-commitment"


def test_a_rewrap_to_the_new_primary_version_takes_two_calls_and_frees_the_old_one(
    gcp_kms: Gcp, proxy: FaultProxy, tmp_path: Path
) -> None:
    key = gcp_kms.create_key()
    writer = configured(tmp_path, gcp_kms, proxy.url, {"footer": key}, "writer")
    write_dataset(ROWS, tmp_path / "d", policy=Policy(), config=writer)
    with gcp_kms.client() as client:
        client.create_crypto_key_version(request={"parent": key, "crypto_key_version": {}})
        client.update_crypto_key_primary_version(request={"name": key, "crypto_key_version_id": "2"})
        proxy.requests.clear()
        rewrap(tmp_path / "d", config=writer)
        assert [path.partition("?")[0].rpartition(":")[2] for _, path in proxy.requests] == [
            "decrypt",
            "encrypt",
        ]
        client.destroy_crypto_key_version(request={"name": f"{key}/cryptoKeyVersions/1"})
    with open_dataset(tmp_path / "d", config=writer) as dataset:
        assert dataset.to_table().sort_by("id") == ROWS


def test_a_back_end_is_loaded_for_its_scheme(keys: dict[str, str]) -> None:
    uri = f"gcp-kms:{keys['footer']}"
    assert MasterKeys(Config(keys={"footer": (uri,)})).for_key_name("footer")[0].uri == uri
