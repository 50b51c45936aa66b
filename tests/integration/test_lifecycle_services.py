"""From the local keyring to a key service and on to another of its keys, on an emulator of AWS KMS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scene import people
from servers.aws import Kms as Server
from servers.openbao import OpenBao

import encpipe
from encpipe import Config, KeyAccessDeniedError, KmsError, MasterKeys
from encpipe.config import KeyringConfig, TrustConfig
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.unlock import create_key_file

pytestmark = pytest.mark.server


@pytest.fixture(params=["roto_kms", "moto_kms"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    found: Server = request.getfixturevalue(request.param)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", found.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", found.secret_key)
    return found


def access(server: Server, folder: Path, uri: str, *trusted: str) -> dict[str, Any]:
    """The keyword arguments of somebody who wraps the footer KEK with `uri`."""
    keyring = KeyringConfig(folder / "keyring.json", f"key-file:{folder / 'key'}")
    config = Config(
        keyring=keyring,
        keys={"footer": (uri,)},
        trust=TrustConfig(trusted),
        kms={"aws-kms": {"endpoint_url": server.endpoint, "region": server.region}},
    )
    return {"config": config, "master_keys": MasterKeys(config)}


def read(url: str, **more: Any) -> pa.Table:
    with encpipe.open_dataset(url, **more) as dataset:
        return dataset.to_table()


def test_from_the_local_keyring_to_a_key_service_and_on(server: Server, tmp_path: Path) -> None:
    url = str(tmp_path / "dataset")
    create_key_file(tmp_path / "key")
    local = access(server, tmp_path, "local:default")
    KeyringFile.from_config(local["config"].keyring).create("default")
    encpipe.write_dataset(people(), url, policy=encpipe.Policy(), **local)

    first, second = server.create_key(), server.create_key()
    report = encpipe.rewrap(url, to={"footer": [f"aws-kms:{first}"]}, **local)
    assert (report.kms_calls, report.leftovers) == (2, ())
    assert report.changes[0].added == ((f"aws-kms:{first}", ""),)
    with pytest.raises(encpipe.UntrustedKeyError):
        read(url, **local)

    moved = access(server, tmp_path, f"aws-kms:{second}", f"aws-kms:{first}")
    assert encpipe.needs_rewrap(url, **moved)[0].why == "another key"
    encpipe.rewrap(url, **moved)
    assert encpipe.needs_rewrap(url, **moved) == ()
    only_second = access(server, tmp_path, f"aws-kms:{second}")
    assert read(url, **only_second).num_rows == 6


def test_vault_is_asked_for_its_newest_version_only_when_it_is_to_be(
    openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", openbao.root_token)
    url, uri = str(tmp_path / "dataset"), openbao.create_key()
    config = Config(keys={"footer": (uri,)}, kms={"vault": {"address": openbao.address}})
    encpipe.write_dataset(people(), url, policy=encpipe.Policy(), config=config)
    assert encpipe.needs_rewrap(url, ask_services=True, config=config) == ()
    openbao.ask("post", f"transit/keys/{uri.removeprefix('vault:')}/rotate")
    assert encpipe.needs_rewrap(url, config=config) == ()
    (due,) = encpipe.needs_rewrap(url, ask_services=True, config=config)
    assert (due.why, due.master_key, due.version) == ("newer version", uri, "1")
    encpipe.rewrap(url, config=config)
    assert encpipe.needs_rewrap(url, ask_services=True, config=config) == ()


def test_an_alias_is_resolved_and_not_due(server: Server, tmp_path: Path) -> None:
    url, alias = str(tmp_path / "dataset"), f"alias/{tmp_path.name}"
    arn = server.create_key(tmp_path.name)
    by_alias = access(server, tmp_path, f"aws-kms:{alias}", f"aws-kms:{arn}")
    encpipe.write_dataset(people(), url, policy=encpipe.Policy(), **by_alias)
    assert encpipe.needs_rewrap(url, **by_alias) == ()
    encpipe.rewrap(url, **by_alias)
    (kek,) = encpipe.inspect_dataset(url, use_keys=False, **by_alias).keks
    assert [(w.master_key, kek.rewrap) for w in kek.wrappings] == [(f"aws-kms:{arn}", "")]
    assert read(url, **by_alias).num_rows == 6


def test_a_key_the_service_does_not_have_changes_nothing(server: Server, tmp_path: Path) -> None:
    url = str(tmp_path / "dataset")
    arn = server.create_key()
    here = access(server, tmp_path, f"aws-kms:{arn}")
    encpipe.write_dataset(people(), url, policy=encpipe.Policy(), **here)
    before = (tmp_path / "dataset" / "_encpipe" / "manifest.json").read_bytes()
    nobody = f"aws-kms:{arn[:-12]}{'0' * 12}"
    with pytest.raises(KmsError) as refused:
        encpipe.grant(url, "footer", nobody, **here)
    assert not isinstance(refused.value, KeyAccessDeniedError)
    assert (tmp_path / "dataset" / "_encpipe" / "manifest.json").read_bytes() == before
