"""Vault as it is deployed: AppRoles, policies, namespaces, tokens that end; its audit log counts calls."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scene import ended, forked, people
from servers.openbao import OpenBao

import encpipe
from encpipe import Config, Policy
from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, KeyAccessDeniedError, KmsError
from encpipe.keys import KeyContext, Secret
from encpipe.kms.base import KmsSettings
from encpipe.kms.vault import VaultKms

pytestmark = pytest.mark.server

CONTEXT = KeyContext("d" * 32, "footer", "e" * 32)
KEK = Secret(bytes(range(100, 132)))
PAGE = Path(__file__).parents[2] / "docs" / "kms" / "vault.md"
READER, WRITER = re.findall(r"^```hcl\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
LOGIN, RENEW, LOOK_UP = "auth/approle/login", "auth/token/renew-self", "auth/token/lookup-self"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("VAULT_", "BAO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def bao(openbao_raft: OpenBao) -> OpenBao:
    return openbao_raft


@pytest.fixture
def uri(bao: OpenBao) -> str:
    return bao.create_key()


def tls(bao: OpenBao) -> TlsConfig:
    return TlsConfig(ca_file=Path(bao.ca) if bao.ca else None)


def service(bao: OpenBao, **table: Any) -> VaultKms:
    return VaultKms(KmsSettings({"address": bao.address, **table}, tls=tls(bao)))


def allowing(rules: str, uri: str) -> str:
    """A policy of the documentation, for this key."""
    return rules.replace("/footer", f"/{uri.removeprefix('vault:')}")


def secret_file(folder: Path, text: str) -> str:
    """A private file in its usual spelling for the configuration."""
    path = folder / f"secret-{os.urandom(4).hex()}"
    path.touch(mode=0o600)
    path.write_text(f"{text}\n")
    return f"file:{path}"


def as_role(bao: OpenBao, folder: Path, *policies: str, **settings: Any) -> dict[str, str]:
    """The configuration of a new AppRole with these policies."""
    names = [bao.create_policy(rules) for rules in policies]
    role_id, secret_id = bao.role_ids(bao.create_role(names, **settings))
    return {"role_id": role_id, "secret_id": secret_file(folder, secret_id)}


def eventually(holds: Callable[[], bool], *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def paths(bao: OpenBao, since: int) -> list[str]:
    return [path for path, error in bao.audited(since=since)]


def test_the_documented_reader_unwraps_and_does_not_wrap(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    writer = service(bao, **as_role(bao, tmp_path, allowing(WRITER, uri))).master_key(uri)
    reader = service(bao, **as_role(bao, tmp_path, allowing(READER, uri))).master_key(uri)
    wrapped = writer.wrap(KEK, aad=CONTEXT)
    assert writer.unwrap(wrapped, aad=CONTEXT) == reader.unwrap(wrapped, aad=CONTEXT) == KEK
    with pytest.raises(KeyAccessDeniedError, match="refuses") as refused:
        reader.wrap(KEK, aad=CONTEXT)
    assert refused.value.code == "key-denied"
    assert refused.value.__context__ is None
    assert f'path "transit/encrypt/{uri.removeprefix("vault:")}"' in refused.value.hint


def test_a_denied_key_costs_no_new_login(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    kms = service(bao, **as_role(bao, tmp_path, allowing(READER, uri)))
    since = bao.audit_end()
    for _ in range(2):
        with pytest.raises(KeyAccessDeniedError):
            kms.master_key(uri).wrap(KEK, aad=CONTEXT)
    assert paths(bao, since).count(LOGIN) == 1


def dataset_config(bao: OpenBao, keys: dict[str, str], **table: str) -> Config:
    uris = {name: (uri,) for name, uri in keys.items()}
    return Config(keys=uris, kms={"vault": {"address": bao.address, **table}}, tls=tls(bao))


def test_two_identities_read_what_their_policies_say(bao: OpenBao, tmp_path: Path) -> None:
    """The analyst reads all but `name`, the auditor that, too; one call per key name, by the server's log."""
    keys = {"footer": bao.create_key(), "pii": bao.create_key()}
    footer, pii = keys["footer"].removeprefix("vault:"), keys["pii"].removeprefix("vault:")
    url = str(tmp_path / "people")
    rules = [allowing(WRITER, uri) for uri in keys.values()]
    writer = dataset_config(bao, keys, **as_role(bao, tmp_path, *rules))
    since = bao.audit_end()
    encpipe.write_dataset(people(), url, policy=Policy(columns={"pii": ("name",)}), config=writer)
    assert sorted(path for path in paths(bao, since) if path.startswith("transit/encrypt/")) == sorted(
        [f"transit/encrypt/{footer}", f"transit/encrypt/{pii}"]
    )

    auditor = dataset_config(
        bao, keys, **as_role(bao, tmp_path, *(allowing(READER, u) for u in keys.values()))
    )
    since = bao.audit_end()
    with encpipe.open_dataset(url, config=auditor) as dataset:
        for _ in range(3):
            assert dataset.to_table().num_columns == 2
    decrypted = [path for path in paths(bao, since) if path.startswith("transit/")]
    assert sorted(decrypted) == sorted([f"transit/decrypt/{footer}", f"transit/decrypt/{pii}"])

    analyst = dataset_config(bao, keys, **as_role(bao, tmp_path, allowing(READER, keys["footer"])))
    with encpipe.open_dataset(url, config=analyst, on_missing_key="skip") as dataset:
        assert dataset.to_table().column_names == ["id"]
    with encpipe.open_dataset(url, config=analyst) as dataset, pytest.raises(KeyAccessDeniedError):
        dataset.to_table()


def test_a_new_version_takes_over_in_two_calls_and_the_old_one_may_go(bao: OpenBao, tmp_path: Path) -> None:
    keys = {"footer": bao.create_key()}
    name, url = keys["footer"].removeprefix("vault:"), str(tmp_path / "people")
    config = dataset_config(bao, keys, **as_role(bao, tmp_path, allowing(WRITER, keys["footer"])))
    encpipe.write_dataset(people(), url, config=config)
    bao.ask("post", f"transit/keys/{name}/rotate")
    since = bao.audit_end()
    encpipe.rewrap(url, config=config)
    calls = [path for path in paths(bao, since) if path.startswith("transit/")]
    assert calls == [f"transit/decrypt/{name}", f"transit/encrypt/{name}"]
    bao.ask("post", f"transit/keys/{name}/config", {"min_decryption_version": 2})
    with encpipe.open_dataset(url, config=config) as dataset:
        assert dataset.to_table().equals(people())


def test_namespaces(bao: OpenBao, tmp_path: Path) -> None:
    name = f"team-{os.urandom(4).hex()}"
    bao.ask("post", f"sys/namespaces/{name}", {})
    bao.ask("post", "sys/mounts/transit", {"type": "transit"}, namespace=name)
    uri = bao.create_key(namespace=name)
    token = secret_file(tmp_path, bao.root_token)
    inside = service(bao, token=token, namespace=name).master_key(uri)
    wrapped = inside.wrap(KEK, aad=CONTEXT)
    assert inside.unwrap(wrapped, aad=CONTEXT) == KEK
    below = service(bao, token=token).master_key(uri.replace("vault:", f"vault:{name}/transit/"))
    assert below.unwrap(below.wrap(KEK, aad=CONTEXT), aad=CONTEXT) == KEK
    with pytest.raises(KmsError, match="has no key"):
        service(bao, token=token).master_key(uri).unwrap(wrapped, aad=CONTEXT)
    with pytest.raises((ConfigError, KmsError)) as refused:
        service(bao, token=token, namespace="nowhere").master_key(uri).unwrap(wrapped, aad=CONTEXT)
    assert "namespace" in f"{refused.value.message} {refused.value.hint}"


def test_a_token_is_renewed_before_it_ends(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    policy = bao.create_policy(allowing(WRITER, uri))
    token = bao.create_token([policy], ttl="3s")
    key = service(bao, token=secret_file(tmp_path, token)).master_key(uri)
    since, start = bao.audit_end(), time.monotonic()
    wrapped = key.wrap(KEK, aad=CONTEXT)
    eventually(lambda: paths(bao, since).count(RENEW) >= 2 and time.monotonic() > start + 3.5)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_a_token_that_ended_is_a_matter_of_credentials(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    """Not of access to the key: `on_missing_key` must not go on without the columns."""
    token = bao.create_token([bao.create_policy(allowing(WRITER, uri))])
    key = service(bao, token=secret_file(tmp_path, token)).master_key(uri)
    wrapped = key.wrap(KEK, aad=CONTEXT)
    bao.ask("post", "auth/token/revoke-self", token=token)
    for known in (key, service(bao, token=secret_file(tmp_path, "nonsense")).master_key(uri)):
        with pytest.raises(KmsError, match="does not know the token") as refused:
            known.unwrap(wrapped, aad=CONTEXT)
        assert type(refused.value) is KmsError
        assert refused.value.code == "credentials"
        assert refused.value.__context__ is None


def test_a_token_file_is_read_again_when_the_token_has_ended(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    policy = bao.create_policy(allowing(WRITER, uri))
    first = bao.create_token([policy])
    reference = secret_file(tmp_path, first)
    key = service(bao, token=reference).master_key(uri)
    wrapped = key.wrap(KEK, aad=CONTEXT)
    bao.ask("post", "auth/token/revoke-self", token=first)
    Path(reference.removeprefix("file:")).write_text(bao.create_token([policy]))
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_an_approle_logs_in_again_when_its_token_has_ended(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    kms = service(bao, **as_role(bao, tmp_path, allowing(WRITER, uri)))
    key = kms.master_key(uri)
    wrapped = key.wrap(KEK, aad=CONTEXT)
    credentials = kms._process.get().credentials
    assert credentials is not None
    for _ in range(2):
        bao.ask("post", "auth/token/revoke-self", token=credentials.token().secret.reveal().decode())
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_an_approle_logs_in_again_when_its_token_is_not_renewed_any_longer(
    bao: OpenBao, uri: str, tmp_path: Path
) -> None:
    table = as_role(bao, tmp_path, allowing(WRITER, uri), token_ttl="2s", token_max_ttl="2s")
    key = service(bao, **table).master_key(uri)
    since = bao.audit_end()
    wrapped = key.wrap(KEK, aad=CONTEXT)
    eventually(lambda: paths(bao, since).count(LOGIN) >= 2)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK


def test_a_secret_id_that_works_once_serves_a_job_and_its_forked_children(
    bao: OpenBao, uri: str, tmp_path: Path
) -> None:
    table = as_role(bao, tmp_path, allowing(WRITER, uri), secret_id_num_uses=1, token_ttl="4s")
    key = service(bao, **table).master_key(uri)
    since, start = bao.audit_end(), time.monotonic()
    wrapped = key.wrap(KEK, aad=CONTEXT)

    def child() -> None:
        assert key.unwrap(wrapped, aad=CONTEXT) == KEK

    assert ended(forked(child)) == 0
    eventually(lambda: time.monotonic() > start + 4.5)
    assert key.unwrap(wrapped, aad=CONTEXT) == KEK
    assert paths(bao, since).count(LOGIN) == 1


def test_many_threads_log_in_once(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    key = service(bao, **as_role(bao, tmp_path, allowing(WRITER, uri))).master_key(uri)
    since = bao.audit_end()
    with ThreadPoolExecutor(8) as threads:
        wrappings = list(threads.map(lambda _: key.wrap(KEK, aad=CONTEXT), range(16)))
    assert len(wrappings) == 16
    assert paths(bao, since).count(LOGIN) == 1


@pytest.mark.parametrize(
    "change", [{"secret_id": "nonsense"}, {"role_id": "nonsense"}, {"auth_mount": "nowhere"}], ids=str
)
def test_a_login_that_is_refused(bao: OpenBao, uri: str, tmp_path: Path, change: dict[str, str]) -> None:
    table = {**as_role(bao, tmp_path, allowing(WRITER, uri)), **change}
    if "secret_id" in change:
        table["secret_id"] = secret_file(tmp_path, change["secret_id"])
    with pytest.raises(KmsError) as refused:
        service(bao, **table).master_key(uri).wrap(KEK, aad=CONTEXT)
    assert type(refused.value) is KmsError
    assert refused.value.code == "credentials"
    assert "auth_mount" in refused.value.hint
    assert "nonsense" not in f"{refused.value.message} {refused.value.hint}"


def test_the_renewing_thread_ends_with_the_service(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    kms = service(bao, **as_role(bao, tmp_path, allowing(WRITER, uri), token_ttl="1h"))
    before = set(threading.enumerate())
    kms.master_key(uri).wrap(KEK, aad=CONTEXT)
    started = [t for t in set(threading.enumerate()) - before if t.name == "encpipe-vault-token"]
    assert len(started) == 1
    del kms
    gc.collect()
    eventually(lambda: not started[0].is_alive())


def test_a_refusal_keeps_no_service_alive(bao: OpenBao, uri: str, tmp_path: Path) -> None:
    """An error that holds its own frame would: until the next collection, with the key that was asked for."""
    gc.collect()
    gc.disable()
    try:
        kms = service(bao, **as_role(bao, tmp_path, allowing(READER, uri)))
        with contextlib.suppress(KeyAccessDeniedError):
            kms.master_key(uri).wrap(KEK, aad=CONTEXT)
        left = weakref.ref(kms)
        del kms
        assert left() is None
    finally:
        gc.enable()
