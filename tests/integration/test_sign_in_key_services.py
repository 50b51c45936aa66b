"""Datasets signed by a key that never leaves OpenBao or a PKCS#11 token: the real services, and no others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from scene import Scene, ids, people, save
from servers.openbao import OpenBao
from servers.softhsm import MODULE, PIN, SoftHsm
from test_resume import stop

import encpipe
from encpipe import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    SignatureError,
)
from encpipe.config import SigningConfig, TlsConfig, TrustConfig
from encpipe.kms.base import KmsSettings
from encpipe.kms.vault import VaultKms
from encpipe.signing import SigningKey, signing_key
from encpipe.testing.faultproxy import Fault, FaultProxy

pytestmark = [pytest.mark.server, pytest.mark.system]

OLD, NEW = list(range(6)), list(range(10, 16))
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "sign.md"


@dataclass
class Signed:
    """A dataset, and a key in a service that signs it."""

    scene: Scene
    uri: str
    kms: dict[str, dict[str, Any]]
    tls: TlsConfig

    def writer(self, *signers: str) -> Scene:
        trust = TrustConfig(signers=signers)
        signing = SigningConfig(key=self.uri)
        config = replace(self.scene.config, signing=signing, trust=trust, kms=self.kms, tls=self.tls)
        return replace(self.scene, config=config)

    @property
    def signer(self) -> str:
        found = signing_key(self.writer().keys)
        assert found is not None
        return found.signer

    def reader(self, *signers: str) -> Scene:
        """Knows nothing of the service that signs."""
        trust = TrustConfig(signers=signers or (self.signer,))
        return replace(self.scene, config=replace(self.scene.config, trust=trust))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("VAULT_", "BAO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


@pytest.fixture
def in_bao(scene: Scene, openbao_raft: OpenBao, monkeypatch: pytest.MonkeyPatch) -> Signed:
    """As a role that may do what the page says, and no more."""
    uri = openbao_raft.create_key(type="ed25519")
    (rules,) = re.findall(r"^```hcl\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    policy = openbao_raft.create_policy(rules.replace("/signing", f"/{uri.removeprefix('vault:')}"))
    monkeypatch.setenv("SIGNER_TOKEN", openbao_raft.create_token([policy]))
    return of_bao(scene, openbao_raft, uri)


def of_bao(scene: Scene, bao: OpenBao, uri: str, **table: Any) -> Signed:
    kms = {"vault": {"address": bao.address, "token": "env:SIGNER_TOKEN", **table}}
    return Signed(scene, uri, kms, TlsConfig(ca_file=Path(bao.ca) if bao.ca else None))


@pytest.fixture
def on_token(scene: Scene, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> Signed:
    monkeypatch.setenv("TOKEN_PIN", PIN)
    return of_token(scene, "signer")


def of_token(scene: Scene, label: str) -> Signed:
    kms = {"pkcs11": {"module": str(MODULE), "pin": "env:TOKEN_PIN"}}
    return Signed(scene, f"pkcs11:token=main;object={label}", kms, TlsConfig())


@pytest.fixture(params=["in_bao", "on_token"])
def signed(request: pytest.FixtureRequest) -> Signed:
    found: Signed = request.getfixturevalue(request.param)
    return found


def failed(call: Callable[[], object], kind: type[EncpipeError]) -> EncpipeError:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.hint
    assert caught.value.__cause__ is None
    return caught.value


# Both


def test_what_the_service_signs_readers_without_the_service_read(signed: Signed) -> None:
    signed.writer().write(people())
    signed.writer(signed.signer).append(people(10))
    assert ids(signed.reader().table()) == OLD + NEW
    assert ids(signed.reader().table(generation=1)) == OLD
    assert [info.signer for info in signed.reader().inspect().signers] == [signed.signer]
    signed.scene.append(people(20))
    with pytest.raises(SignatureError):
        signed.reader().open()


def test_a_dataset_that_is_there_is_signed(signed: Signed) -> None:
    signed.scene.write(people())
    report = encpipe.sign_dataset(signed.scene.url, **signed.writer().access)
    assert report.signers == (signed.signer,)
    assert ids(signed.reader().table()) == OLD


def test_a_stopped_write_goes_on_in_another_process(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has another delegate, and takes what the first one's delegate signed."""
    source = save(tmp_path / "new", people(), people(10))
    stop(monkeypatch, lambda: signed.writer().write(source, workers=1), "create_file", 2)
    report = signed.writer().write(source, workers=1)
    assert (report.resumed_files, report.rows) == (1, 12)
    assert ids(signed.reader().table()) == OLD + NEW
    signed.scene.check_whole()


def test_a_stopped_write_of_others_is_refused(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "new", people(), people(10))
    stop(monkeypatch, lambda: signed.scene.write(source, workers=1), "create_file", 2)
    error = failed(lambda: signed.writer().write(source, workers=1), SignatureError)
    assert "--restart" in error.hint


# OpenBao


def test_a_write_takes_three_calls_however_many_files_it_has(
    in_bao: Signed, openbao_raft: OpenBao, tmp_path: Path
) -> None:
    source = save(tmp_path / "new", *(people(n * 10) for n in range(8)))
    since = openbao_raft.audit_end()
    in_bao.writer().write(source)
    name = in_bao.uri.removeprefix("vault:")
    asked = [path for path, _ in openbao_raft.audited(since=since) if path.startswith("transit/")]
    assert asked == [f"transit/keys/{name}", *[f"transit/sign/{name}"] * 2]
    since = openbao_raft.audit_end()
    assert len(ids(in_bao.reader(in_bao_signer(openbao_raft, name)).table())) == 48
    assert openbao_raft.audited(since=since)[1:] == []  # the one is ours, to learn the signer


def in_bao_signer(bao: OpenBao, name: str) -> str:
    """What the service itself says, in encpipe's spelling."""
    text: str = bao.ask("get", f"transit/keys/{name}")["data"]["keys"]["1"]["public_key"]
    return f"ed25519:{text.rstrip('=').translate(str.maketrans('+/', '-_'))}"


def test_a_rotation_takes_effect_when_readers_trust_the_new_version(
    in_bao: Signed, openbao_raft: OpenBao
) -> None:
    first = in_bao.signer
    in_bao.writer(first).write(people())
    openbao_raft.ask("post", f"transit/keys/{in_bao.uri.removeprefix('vault:')}/rotate", {})
    second = in_bao.signer
    assert second != first
    in_bao.writer(first).append(people(10))
    assert ids(in_bao.reader(first).table()) == OLD + NEW
    in_bao.writer(first, second).append(people(20))
    assert len(ids(in_bao.reader(second).table())) == 18
    with pytest.raises(SignatureError):
        in_bao.reader(first).open()


def test_versions_that_may_no_longer_sign_are_left_out(in_bao: Signed, openbao_raft: OpenBao) -> None:
    name, first = in_bao.uri.removeprefix("vault:"), in_bao.signer
    openbao_raft.ask("post", f"transit/keys/{name}/rotate", {})
    openbao_raft.ask("post", f"transit/keys/{name}/config", {"min_encryption_version": 2})
    error = failed(lambda: in_bao.writer(first).write(people()), ConfigError)
    assert "trust.signers does not name" in error.message


@pytest.mark.parametrize(
    "settings",
    [{"type": "aes256-gcm96"}, {"type": "ecdsa-p256"}, {"type": "ed25519", "derived": True}],
    ids=str,
)
def test_a_key_of_another_type_is_refused(
    scene: Scene, openbao_raft: OpenBao, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("SIGNER_TOKEN", openbao_raft.root_token)
    found = of_bao(scene, openbao_raft, openbao_raft.create_key(**settings))
    error = failed(lambda: found.writer().write(people()), ConfigError)
    assert "not an Ed25519 key" in error.message
    assert "type=ed25519" in error.hint
    assert scene.objects() == []


def test_a_key_that_is_not_there(
    scene: Scene, openbao_raft: OpenBao, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNER_TOKEN", openbao_raft.root_token)
    failed(lambda: of_bao(scene, openbao_raft, "vault:nowhere").writer().write(people()), KeyNotFoundError)
    error = failed(
        lambda: of_bao(scene, openbao_raft, "vault:transit/x").writer().write(people()), ConfigError
    )
    assert "write vault:x" in error.hint


@pytest.mark.parametrize(("allowed", "missing"), [("keys", "update"), ("sign", "read")])
def test_who_may_not_sign_writes_nothing(
    scene: Scene, openbao_raft: OpenBao, monkeypatch: pytest.MonkeyPatch, allowed: str, missing: str
) -> None:
    uri = openbao_raft.create_key(type="ed25519")
    rules = f'path "transit/{allowed}/*" {{ capabilities = ["read", "update"] }}'
    token = openbao_raft.create_token([openbao_raft.create_policy(rules)])
    monkeypatch.setenv("SIGNER_TOKEN", token)
    found = of_bao(scene, openbao_raft, uri)
    error = failed(lambda: found.writer().write(people()), KeyAccessDeniedError)
    assert f'capabilities = ["{missing}"]' in error.hint
    assert token not in f"{error.message} {error.hint}"
    assert scene.objects() == []


def test_an_outage_is_told_as_one(scene: Scene, openbao: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNER_TOKEN", openbao.root_token)
    host, _, port = openbao.address.rpartition("/")[2].partition(":")
    with FaultProxy(host, int(port)) as proxy:
        found = of_bao(scene, openbao, openbao.create_key(type="ed25519"), address=proxy.url, deadline=1)
        signer = found.writer()
        proxy.faults = [Fault("status", code=503, body=b'{"errors":["x"]}')]
        failed(lambda: signer.write(people()), KmsUnavailableError)
        assert scene.objects() == []
        proxy.faults = [Fault("reset", times=1)]
        signer.write(people())
    assert ids(scene.table()) == OLD


@pytest.mark.parametrize(
    "signature",
    ["", "vault:v1:AAAA", "vault:v2:" + "A" * 86 + "==", "vault:v1:" + "A" * 86 + "==", None, 7],
    ids=str,
)
def test_an_answer_that_is_no_signature_is_never_stored(
    openbao: OpenBao, monkeypatch: pytest.MonkeyPatch, signature: object
) -> None:
    monkeypatch.setenv("SIGNER_TOKEN", openbao.root_token)
    settings = KmsSettings({"address": openbao.address, "token": "env:SIGNER_TOKEN"})
    service = VaultKms(settings)
    key = SigningKey.in_service(service.signing_key(openbao.create_key(type="ed25519")))
    monkeypatch.setattr(service, "call", lambda *_: {"data": {"signature": signature}})
    failed(lambda: key.sign_journal("a" * 32, b"x"), KmsError)


# A token


@pytest.mark.parametrize(
    ("label", "kind", "text"),
    [
        ("nothing", KeyNotFoundError, "no EC_EDWARDS key"),
        ("one", KeyNotFoundError, "no EC_EDWARDS key"),
        ("signer-twin", ConfigError, "several keys fit"),
        ("signer-readable", ConfigError, "can be read out of its token"),
        ("signer-extractable", ConfigError, "can be read out of its token"),
        ("signer-ed448", ConfigError, "not an Ed25519 key"),
        ("signer-no-sign", KeyAccessDeniedError, "CKA_SIGN is false"),
    ],
)
def test_a_key_that_will_not_do(
    scene: Scene, on_token: Signed, label: str, kind: type[EncpipeError], text: str
) -> None:
    error = failed(lambda: of_token(scene, label).writer().write(people()), kind)
    assert text in error.message
    assert PIN not in f"{error.message} {error.hint}"
    assert scene.objects() == []


def test_namesakes_are_told_apart_by_their_id(scene: Scene, on_token: Signed) -> None:
    one, other = (of_token(scene, f"signer-twin;id=%{n:02d}") for n in (1, 2))
    assert one.signer != other.signer
    one.writer().write(people())
    assert ids(one.reader().table()) == OLD
    with pytest.raises(SignatureError):
        other.reader().open()
