"""Datasets under RSA keys (a fake of Azure Key Vault): anybody can wrap, so a signature or a pin must vouch.

The attacker has the public half of the keys and may write the storage. He calls no service.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scene import PII, Scene, ids, people, save
from servers.azurekv import ENTRA, OAEP, TENANT, VAULT_DOMAIN, WRITER, FakeAzure, lookup
from servers.ca import CertificateAuthority
from test_resume import stop

import encpipe
from encpipe import Config, MasterKeys, SignatureError, StaleDatasetError
from encpipe.config import SigningConfig, TlsConfig, TrustConfig
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.binding import bind
from encpipe.signing import create_key_file

pytestmark = pytest.mark.server

OLD, NEW = list(range(6)), list(range(10, 16))
VAULT = f"unit.{VAULT_DOMAIN}"


@pytest.fixture(scope="module")
def azure(ca: CertificateAuthority) -> Iterator[FakeAzure]:
    with FakeAzure(ca) as running:
        for name in ("footer", "pii"):
            running.create_key(name, VAULT, "RSA")
        yield running


@pytest.fixture(autouse=True)
def world(azure: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    settings = {"AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": WRITER[0], "AZURE_CLIENT_SECRET": WRITER[1]}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ports = {ENTRA: azure.port, VAULT_DOMAIN: azure.port}
    monkeypatch.setattr(socket, "getaddrinfo", lookup(socket.getaddrinfo, ports))
    azure.asked.clear()


class Team:
    """A dataset under RSA keys: who writes it, who reads it, and an attacker."""

    def __init__(self, azure: FakeAzure, ca: CertificateAuthority, folder: Path) -> None:
        self.azure, self.keys = azure, {n: (f"azure-kv:https://{VAULT}/keys/{n}",) for n in ("footer", "pii")}
        self.config = Config(
            keys=self.keys,
            policy=PII,
            tls=TlsConfig(ca_file=ca.path),
            kms={"azure-kv": {"credential": "environment", "algorithm": "RSA-OAEP-256"}},
        )
        self.url = str(folder / "dataset")
        self.plain = Scene(self.url, config=self.config)
        self.file = folder / "keys" / "ann.pem"
        self.ann = create_key_file(self.file)

    def having(self, **settings: Any) -> Scene:
        return replace(self.plain, config=replace(self.config, **settings))

    @property
    def signer(self) -> Scene:
        return self.having(signing=SigningConfig(self.file))

    @property
    def reader(self) -> Scene:
        return self.having(trust=TrustConfig(signers=(self.ann,)))

    @property
    def attacker(self) -> Attacker:
        return Attacker(self.url, config=self.config, azure=self.azure)


class Attacker(Scene):
    def __init__(self, url: str, *, config: Config, azure: FakeAzure) -> None:
        super().__init__(url, config=config)
        self.azure = azure

    @property
    def keys(self) -> MasterKeys:
        return MasterKeys(self.config, extra={"azure-kv": Forging(self.azure)})


class Forging:
    """What he wraps with: public halves only."""

    def __init__(self, azure: FakeAzure) -> None:
        self.azure = azure

    def master_key(self, uri: str) -> MasterKey:
        return ForgingKey(uri, self.azure)

    def trusts(self, uri: str) -> bool:
        return True


class ForgingKey:
    binds_context = False

    def __init__(self, uri: str, azure: FakeAzure) -> None:
        self.uri, versions = uri, azure.key(uri).versions
        self._version, private = list(versions.items())[-1]
        self._public = private.public_key()

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        blob = b"\x03" + self._public.encrypt(bind(kek, aad), OAEP)
        return WrappedKey(self.uri, blob, self._version, utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        raise AssertionError("that takes the private key")


@pytest.fixture
def team(azure: FakeAzure, ca: CertificateAuthority, tmp_path: Path) -> Team:
    return Team(azure, ca, tmp_path)


def refused(call: Callable[[], object], text: str = "nothing vouches") -> SignatureError:
    with pytest.raises(SignatureError, match=text) as caught:
        call()
    assert caught.value.code == "signature"
    return caught.value


def core_of(scene: Scene) -> str:
    return scene.inspect(use_keys=False).core_digest


# Who vouches


def test_with_a_trusted_signature_all_goes_as_ever(team: Team) -> None:
    team.signer.write(people())
    team.signer.append(people(10))
    assert ids(team.reader.table()) == OLD + NEW
    assert team.reader.table().column("name").to_pylist()[0] == "name 0"
    assert ids(team.reader.table(generation=1)) == OLD
    assert team.reader.verify().problems == ()
    assert team.reader.inspect().contents is not None


def test_a_key_of_the_writer_vouches_for_what_it_signed(team: Team) -> None:
    """Without trust.signers it is the signer of his own key."""
    team.signer.write(people())
    team.signer.append(people(10))
    team.signer.write(people(20), overwrite=True)
    assert ids(team.reader.table()) == list(range(20, 26))


def test_with_neither_it_is_refused_before_any_call(team: Team) -> None:
    team.plain.write(people())
    team.azure.asked.clear()
    for call in (
        team.plain.open,
        team.plain.verify,
        team.plain.inspect,
        lambda: team.plain.open(on_missing_key="skip"),
        lambda: team.plain.append(people(10)),
        lambda: team.plain.write(people(10), overwrite=True),
        lambda: encpipe.rewrap(team.url, **team.plain.access),
        lambda: encpipe.grant(team.url, "pii", team.keys["footer"][0], **team.plain.access),
        lambda: encpipe.sign_dataset(team.url, **team.signer.access),
    ):
        error = refused(call)
        assert "trust.signers" in error.hint
        assert "expect_core" in error.hint
    assert team.azure.asked == []
    assert team.plain.inspect(use_keys=False).generation == 1


def test_a_signature_that_nobody_asked_for_does_not_vouch(team: Team) -> None:
    """The attacker signs, too: with a key of his own."""
    team.signer.write(people())
    team.azure.asked.clear()
    refused(team.plain.open)
    assert team.azure.asked == []


def test_a_pinned_core_vouches(team: Team) -> None:
    team.plain.write(people())
    core = core_of(team.plain)
    assert ids(team.plain.table(expect_core=core)) == OLD
    for pin in ({"expect_dataset": team.plain.inspect(use_keys=False).dataset_id}, {"min_generation": 1}):
        refused(lambda pin=pin: team.plain.open(**pin))


def test_a_pin_store_does_not_vouch_for_what_it_sees_first(team: Team, tmp_path: Path) -> None:
    team.plain.write(people())
    refused(lambda: team.plain.open(pin_store=tmp_path / "pins"))


def test_what_is_looked_at_can_be_signed(team: Team) -> None:
    team.plain.write(people())
    encpipe.sign_dataset(team.url, **team.signer.access, expect_core=core_of(team.plain))
    assert ids(team.reader.table()) == OLD


def test_a_pickled_handle_is_as_pinned_as_it_was(team: Team) -> None:
    team.plain.write(people())
    with encpipe.open_dataset(team.url, config=team.config, expect_core=core_of(team.plain)) as dataset:
        again = pickle.loads(pickle.dumps(dataset))
    with again:
        assert ids(again.to_table()) == OLD
    known = again._open._known
    assert known.is_pinned
    object.__setattr__(known, "is_pinned", False)
    refused(lambda: pickle.loads(pickle.dumps(again)).to_table())


def test_another_wrapping_that_is_nobodys_to_forge_opens_it(team: Team) -> None:
    keys = {name: (*uris, "memory:main") for name, uris in team.keys.items()}
    both = team.having(keys=keys)
    both.write(people())
    team.azure.asked.clear()
    assert ids(both.table()) == OLD
    assert team.azure.asked == []
    refused(team.plain.open)


def test_a_column_key_alone_is_refused_when_it_is_needed(team: Team) -> None:
    """A refusal is no missing key, which `on_missing_key` would react to."""
    mixed = team.having(keys={"footer": ("memory:main",), "pii": team.keys["pii"]})
    mixed.write(people())
    with mixed.open() as dataset:
        assert ids(dataset.to_table(["id"])) == OLD
        refused(dataset.to_table)
    refused(lambda: mixed.open(on_missing_key="skip"))
    with mixed.open(expect_core=core_of(mixed)) as dataset:
        assert dataset.to_table().column_names == ["id", "name"]


# Whoever has the public halves and writes the storage


def test_a_forged_dataset_is_refused(team: Team) -> None:
    team.attacker.write(people(90))
    assert team.azure.asked == []
    refused(team.plain.open)
    refused(team.reader.open, "signed by none")
    assert team.azure.asked == []
    assert ids(team.plain.table(expect_core=core_of(team.plain))) == list(range(90, 96)), "a good forgery"


def test_a_forged_dataset_in_place_of_the_real_one_is_refused(team: Team, tmp_path: Path) -> None:
    team.signer.write(people())
    core = core_of(team.plain)
    Path(team.url).rename(tmp_path / "old")
    team.attacker.write(people(90))
    refused(team.reader.open, "signed by none")
    refused(lambda: team.signer.append(people(10)), "signed by none")
    with pytest.raises(StaleDatasetError):
        team.plain.open(expect_core=core)


def test_a_forged_dataset_is_not_wrapped_under_better_keys(team: Team) -> None:
    """Else the owner himself would make it one that opens without a signature."""
    team.attacker.write(people(90))
    to = dict.fromkeys(team.keys, "memory:main")
    refused(lambda: encpipe.rewrap(team.url, to=to, **team.plain.access))
    refused(lambda: encpipe.grant(team.url, "footer", "memory:main", **team.plain.access))
    refused(lambda: encpipe.rewrap(team.url, to=to, **team.reader.access), "signed by none")


def test_a_signed_dataset_moves_to_better_keys(team: Team) -> None:
    team.signer.write(people())
    encpipe.rewrap(team.url, to=dict.fromkeys(team.keys, "memory:main"), **team.reader.access)
    better = team.having(keys=dict.fromkeys(team.keys, ("memory:main",)))
    assert ids(better.table()) == OLD


def test_a_re_key_needs_a_signature_too(team: Team) -> None:
    team.plain.write(people())
    refused(lambda: encpipe.rekey(team.url, **team.plain.access))
    encpipe.sign_dataset(team.url, **team.signer.access, expect_core=core_of(team.plain))
    encpipe.rekey(team.url, **team.signer.access)
    assert ids(team.reader.table()) == OLD
    assert ids(team.reader.table(generation=1)) == OLD
    refused(team.plain.open)


def test_a_forged_journal_is_not_gone_on_with(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He leaves the very write that the victim is about to do, with a file of his own."""
    source = save(tmp_path / "new", people(), people(10))
    stop(monkeypatch, lambda: team.attacker.write(source, workers=1), "create_file", 2)
    assert "--restart" in refused(lambda: team.plain.write(source, workers=1)).hint
    assert "--restart" in refused(lambda: team.signer.write(source, workers=1), "not signed by").hint
    report = team.signer.write(source, workers=1, restart=True)
    assert report.resumed_files == 0
    assert ids(team.reader.table()) == OLD + NEW


def test_a_signed_write_that_was_stopped_goes_on(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "new", people(), people(10))
    stop(monkeypatch, lambda: team.signer.write(source, workers=1), "create_file", 2)
    report = team.signer.write(source, workers=1)
    assert report.resumed_files == 1
    assert ids(team.reader.table()) == OLD + NEW
