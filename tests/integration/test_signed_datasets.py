"""Signed datasets: who signs when, what readers and writers refuse, and what a signature survives."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import Scene, ids, on_s3, people, save
from servers.seaweed import Seaweed
from simulation import DatasetSim, Kek
from simulation.dataset import MANIFEST
from test_resume import stop

import encpipe
from encpipe import Config, ConfigError, ConflictError, EncpipeError, MasterKeys, SignatureError
from encpipe import journal as journals
from encpipe.config import AuditConfig, SigningConfig, TrustConfig
from encpipe.records import Records
from encpipe.signing import create_key_file
from encpipe.stopped import journal_keys
from encpipe.storage.local import LocalStorage

OLD, NEW = list(range(6)), list(range(10, 16))


class Team:
    """A dataset, a signer's key, and the roles around it."""

    def __init__(self, scene: Scene, keys: Path) -> None:
        self.ann = create_key_file(keys / "ann.pem")
        self.bob = create_key_file(keys / "bob.pem")
        self.keys, self.plain = keys, scene
        self.signer = self.signing("ann")
        self.reader = self.trusting(self.ann)

    def _with(self, **settings: Any) -> Scene:
        return replace(self.plain, config=replace(self.plain.config, **settings))

    def signing(self, name: str) -> Scene:
        return self._with(signing=SigningConfig(self.keys / f"{name}.pem"))

    def trusting(self, *signers: str) -> Scene:
        return self._with(trust=TrustConfig(signers=signers))

    def sign(self, by: str = "ann", **more: Any) -> Any:
        return encpipe.sign_dataset(self.plain.url, **self.signing(by).access, **more)

    def manifest(self) -> bytes:
        return (self.plain.folder / MANIFEST).read_bytes()

    def sim(self) -> DatasetSim:
        """The dataset for somebody who has all its KEKs, and no signing key."""
        with self.plain.open() as dataset:
            keys, core = dataset._state.keys, dataset._state.view.core
            keks = {kek.key_name: Kek(kek.id, keys.kek(kek.id)) for kek in core.keks}
        footer = {"footer": keks.pop("footer")}
        return DatasetSim.load(self.plain.folder, {**footer, **keks})


@pytest.fixture
def team(tmp_path: Path) -> Team:
    return Team(Scene(str(tmp_path / "dataset")), tmp_path / "keys")


def refused(call: Callable[[], object]) -> SignatureError:
    with pytest.raises(SignatureError) as caught:
        call()
    assert caught.value.code == "signature"
    return caught.value


# Reading


def test_what_a_signer_writes_his_readers_read(team: Team) -> None:
    team.signer.write(people())
    team.signer.append(people(10))
    for scene in (team.reader, team.trusting(team.bob, team.ann), team.plain):
        assert ids(scene.table()) == OLD + NEW
    assert ids(team.reader.table(generation=1)) == OLD
    assert [info.signer for info in team.reader.inspect().signers] == [team.ann]
    assert team.reader.verify().problems == ()


def test_an_unsigned_dataset_is_refused_before_any_call_to_a_key_service(team: Team) -> None:
    team.plain.write(people())
    before = team.plain.kms.unwraps
    for call in (team.reader.open, team.reader.verify, team.reader.inspect):
        refused(call)
    assert team.plain.kms.unwraps == before
    assert team.reader.inspect(use_keys=False).signers == ()


def test_another_signer_is_refused(team: Team) -> None:
    team.signing("bob").write(people())
    assert team.bob in refused(team.reader.open).hint
    (info,) = team.reader.inspect(use_keys=False).signers
    assert (info.signer, info.trusted) == (team.bob, False)


def test_a_writer_without_a_key_makes_a_generation_that_readers_refuse(team: Team) -> None:
    team.signer.write(people())
    team.plain.append(people(10))
    refused(team.reader.open)
    assert ids(team.reader.table(generation=1)) == OLD


def test_a_holder_of_every_key_cannot_change_what_was_signed(team: Team) -> None:
    team.signer.write(save(Path(team.plain.url).parent / "source", people(), people(10)))
    sim = team.sim()
    sim.file_list["files"].pop()
    sim.publish()
    sim.write_to(team.plain.folder)
    assert ids(team.plain.table()) == OLD
    refused(team.reader.open)


def test_a_pickled_dataset_is_checked_again_where_it_arrives(team: Team) -> None:
    team.signer.write(people())
    with team.reader.open() as dataset:
        known = dataset._open._known
        other = copy.copy(dataset)
        opened = type(other._open)(dataset._open._process.get().access, known)
    assert opened.state.view.digest == known.core_digest
    line_1, line_2, _ = known.manifest_bytes.splitlines()
    tags = json.loads(known.manifest_bytes.splitlines()[2])
    edited = b"\n".join((line_1, line_2, json.dumps({**tags, "signatures": []}).encode(), b""))
    object.__setattr__(known, "manifest_bytes", edited)
    refused(lambda: type(other._open)(dataset._open._process.get().access, known).state)


def test_no_pickle_holds_the_signing_key(team: Team) -> None:
    data = pickle.dumps(team.signer.config)
    assert b"ann.pem" in data
    assert b"PRIVATE" not in data


def test_two_configurations_that_differ_in_signatures_are_refused(team: Team) -> None:
    team.plain.write(people())
    for config in (team.reader.config, team.signer.config):
        with pytest.raises(ConfigError, match="in that of master_keys="):
            encpipe.open_dataset(team.plain.url, config=config, master_keys=team.plain.keys)
    refused(lambda: encpipe.open_dataset(team.plain.url, config=Config(), master_keys=team.reader.keys))


# Writing


def test_who_trusts_signers_cannot_write_without_a_key(team: Team) -> None:
    for call in (lambda: team.reader.write(people()), lambda: team.reader.append(people())):
        with pytest.raises(ConfigError, match="names no key to sign with"):
            call()
    assert team.plain.objects() == []


@pytest.mark.parametrize("kind", ["append", "overwrite"])
def test_a_signer_does_not_build_on_what_nobody_signed(team: Team, kind: str) -> None:
    team.plain.write(people())
    before = team.manifest()
    write = team.signer.append if kind == "append" else lambda rows: team.signer.write(rows, overwrite=True)
    assert "encpipe sign" in refused(lambda: write(people(10))).hint
    assert team.manifest() == before
    assert team.plain.objects("_encpipe/pending/") == []
    team.sign()
    write(people(10))
    assert ids(team.reader.table()) == (OLD + NEW if kind == "append" else NEW)


def test_an_append_that_meets_an_unsigned_one_does_not_sign_it(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.signer.write(people())
    log = steps.install(monkeypatch)

    def before(n: int, step: str) -> None:
        if step == "commit _encpipe/manifest.json" and log.count("commit") == 1:
            with monkeypatch.context() as without:
                without.setattr("encpipe.access.open_storage", steps.open_storage)
                team.plain.append(people(20))

    log.before = before
    refused(lambda: team.signer.append(people(10)))
    assert ids(team.plain.table()) == [*OLD, *range(20, 26)]


def test_two_signers_append_by_turns(team: Team) -> None:
    trust = TrustConfig(signers=(team.ann, team.bob))
    for n, name in enumerate(("ann", "bob", "ann")):
        both = replace(team.signing(name).config, trust=trust)
        scene = replace(team.plain, config=both)
        scene.append(people(n * 10)) if n else scene.write(people())
    assert len(ids(team.trusting(team.ann, team.bob).table())) == 18
    refused(lambda: team.trusting(team.bob).open())
    assert ids(team.trusting(team.bob).table(generation=2)) == OLD + NEW


def test_a_signed_write_that_was_stopped_goes_on(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(tmp_path / "new", people(), people(10))

    def run() -> Any:
        return team.signer.write(source, workers=1)

    stop(monkeypatch, run, "create_file", 2)
    report = run()
    assert (report.resumed_files, report.rows) == (1, 12)
    assert ids(team.reader.table()) == OLD + NEW
    team.plain.check_whole()


@pytest.mark.parametrize("finished", [0, 1])
@pytest.mark.parametrize("began", ["unsigned", "by another signer"])
def test_a_signer_does_not_go_on_with_what_others_began(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: str, finished: int
) -> None:
    """Whoever holds the footer key could else leave a stopped write with files of his own."""
    source = save(tmp_path / "new", people(), people(10))
    other = team.plain if began == "unsigned" else team.signing("bob")
    stop(monkeypatch, lambda: other.write(source, workers=1), "create_file", finished + 1)
    assert "--restart" in refused(lambda: team.signer.write(source, workers=1)).hint
    report = team.signer.write(source, workers=1, restart=True)
    assert report.resumed_files == 0
    assert ids(team.reader.table()) == OLD + NEW


def test_a_record_that_the_signer_did_not_sign_is_refused(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed journal, and a record sealed by a holder of the footer KEK."""
    source = save(tmp_path / "new", people(), people(10))

    def run() -> Any:
        return team.signer.write(source, workers=1)

    stop(monkeypatch, run, "create_file", 2)
    storage = team.plain.storage()
    (writer,) = journals.writers(storage)
    found = journals.load(storage, writer)
    kek = journal_keys(found, team.plain.keys).kek(found.journal.footer_kek_id)
    records = Records(storage, found.open(kek), kek)
    entry = records.read(0, ())
    storage.delete(f"_encpipe/pending/{writer}/0.sealed")
    records.add(0, entry)
    refused(run)


def test_a_leftover_journal_of_another_signer_is_in_nobodys_way(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = TrustConfig(signers=(team.ann, team.bob))
    ann, bob = (
        replace(team.plain, config=replace(team.signing(name).config, trust=trust)) for name in ("ann", "bob")
    )
    source = save(tmp_path / "new", people())
    stop(monkeypatch, lambda: bob.write(source), "delete")
    assert team.plain.inspect().pending_writes == 1
    ann.append(save(tmp_path / "more", people(10)))
    assert ids(team.trusting(team.ann).table()) == OLD + NEW
    team.plain.check_whole()


def test_a_re_wrap_keeps_every_signature(team: Team) -> None:
    team.signer.write(people())
    team.signer.append(people(10))
    team.plain.kms.rotate("main")
    report = encpipe.rewrap(team.plain.url, **team.reader.access)
    assert report.revision == 3
    team.plain.kms.rotate("main")
    assert ids(team.reader.table()) == OLD + NEW
    assert ids(team.reader.table(generation=1)) == OLD
    assert [info.trusted for info in team.reader.inspect().signers] == [True]


def test_an_unsigned_dataset_is_not_re_wrapped_by_who_trusts_signers(team: Team) -> None:
    team.plain.write(people())
    refused(lambda: encpipe.rewrap(team.plain.url, **team.reader.access))


def test_a_stopped_signed_write_goes_on_after_a_re_wrap(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.signer.write(people())
    source = save(tmp_path / "new", people(10), people(20))

    def run() -> Any:
        return team.signer.append(source, workers=1)

    stop(monkeypatch, run, "create_file", 2)
    team.plain.kms.rotate("main")
    encpipe.rewrap(team.plain.url, **team.plain.access)
    report = run()
    assert (report.resumed_files, report.rows) == (1, 12)
    assert len(ids(team.reader.table())) == 18


# Signing what is there


def test_signing_changes_nothing_else(team: Team) -> None:
    team.plain.write(people())
    team.plain.append(people(10))
    before, objects = team.manifest(), team.plain.objects()
    report = team.sign()
    after = team.manifest()
    assert after.splitlines()[0] == before.splitlines()[0]
    assert team.plain.objects() == objects
    assert (report.signer, report.signers, report.generation, report.revision) == (
        team.ann,
        (team.ann,),
        2,
        3,
    )
    with team.reader.open() as dataset:
        assert dataset.core_digest == report.core_digest
    refused(lambda: team.reader.open(generation=1))
    (problem,) = team.reader.verify().problems
    assert problem.code == "signature"


def test_an_older_generation_is_signed_by_its_number(team: Team) -> None:
    team.plain.write(people())
    team.plain.append(people(10))
    team.sign(generation=1)
    refused(team.reader.open)
    assert ids(team.reader.table(generation=1)) == OLD
    team.sign()
    assert team.reader.verify().problems == ()


def test_a_second_signature_stands_beside_the_first(team: Team) -> None:
    team.signer.write(people())
    assert team.sign("bob").signers == (team.ann, team.bob)
    for signer in (team.ann, team.bob):
        assert ids(team.trusting(signer).table()) == OLD


def test_the_audit_log_tells_who_signed_what(team: Team, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    team.plain.write(people())
    config = replace(team.signer.config, audit=AuditConfig(f"file:{log}"))
    auditor = replace(team.signer, config=config)
    report = encpipe.sign_dataset(team.plain.url, **auditor.access)
    told = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in told if line["event"] == "sign"]
    assert (line["how"], line["generation"], line["revision"]) == (team.ann, 1, report.revision)


def test_signing_twice_writes_once(team: Team) -> None:
    team.signer.write(people())
    before = team.manifest()
    assert team.sign().revision == 1
    assert team.manifest() == before


def test_only_the_state_that_was_looked_at_is_signed(team: Team) -> None:
    team.plain.write(people())
    core = team.plain.inspect().core_digest
    team.plain.append(people(10))
    with pytest.raises(encpipe.StaleDatasetError):
        team.sign(expect_core=core)
    with pytest.raises(encpipe.StaleDatasetError):
        team.sign(expect_dataset="00" * 16)
    team.sign(expect_core=team.plain.inspect().core_digest)


def test_signing_needs_every_key_name(team: Team) -> None:
    team.plain.write(people())
    footer_only = team.signing("ann").knowing("footer")
    before = team.manifest()
    with pytest.raises(encpipe.UntrustedKeyError):
        encpipe.sign_dataset(team.plain.url, **footer_only.access)
    assert team.manifest() == before


def test_signing_needs_a_key(team: Team) -> None:
    team.plain.write(people())
    with pytest.raises(ConfigError, match="names no key to sign with"):
        encpipe.sign_dataset(team.plain.url, **team.plain.access)


def test_what_a_footer_key_holder_rewrote_is_not_signed(team: Team) -> None:
    team.plain.write(save(Path(team.plain.url).parent / "source", people(), people(10)))
    sim = team.sim()
    sim.file_list["files"].pop()
    sim.publish(holding=["footer"])
    sim.write_to(team.plain.folder)
    with pytest.raises(encpipe.ManifestError):
        team.sign()


def test_a_commit_in_between_wins(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.plain.write(people())
    log = steps.install(monkeypatch)

    def before(n: int, step: str) -> None:
        if step == "commit _encpipe/manifest.json" and log.count("commit") == 1:
            with monkeypatch.context() as without:
                without.setattr("encpipe.access.open_storage", steps.open_storage)
                team.plain.append(people(10))

    log.before = before
    with pytest.raises(ConflictError):
        team.sign()
    assert ids(team.plain.table()) == OLD + NEW
    refused(team.reader.open)


def test_a_lost_answer_is_settled_by_what_is_there(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.plain.write(people())
    commit = LocalStorage.commit
    asked: list[bool] = []

    def spy(self: LocalStorage, path: str, data: bytes, *, check: Any, is_ours: Any) -> None:
        asked.extend(map(is_ours, (team.manifest(), b"no manifest", data)))
        commit(self, path, data, check=check, is_ours=is_ours)

    monkeypatch.setattr(LocalStorage, "commit", spy)
    team.sign()
    assert asked == [False, False, True]


def test_no_dataset_there(team: Team) -> None:
    with pytest.raises(EncpipeError) as caught:
        team.sign()
    assert caught.value.code == "not-found"


@pytest.mark.server
def test_on_s3(seaweed: Seaweed, bucket: str, tmp_path: Path) -> None:
    team = Team(on_s3(seaweed, f"s3://{bucket}/signed"), tmp_path)
    team.plain.write(people())
    refused(team.reader.open)
    team.sign()
    team.signer.append(people(10))
    assert ids(team.reader.table()) == OLD + NEW
    assert ids(team.reader.table(integrity="file-hash")) == OLD + NEW
    assert MasterKeys(team.reader.config).config.trust.signers == (team.ann,)
