"""Wrappings outside the manifest: those of stopped writes are changed with it, all other copies are told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import KEYS, PII, Scene, ended, forked, ids, on_s3, people, save

import encpipe
from encpipe import Config, StorageError
from encpipe import journal as journals
from encpipe.audit import verify_audit
from encpipe.config import AuditConfig, TrustConfig
from encpipe.lifecycle import KeysReport
from encpipe.state import read_manifest

MANIFEST = "_encpipe/manifest.json"
BOTH = Config(
    keys={"footer": ("memory:main", "memory:new"), "pii": ("memory:pii",)}, trust=TrustConfig(("memory:new",))
)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Six rows, wrapped by `memory:main` and `memory:pii`; `memory:new` is there too."""
    made = Scene(str(tmp_path / "dataset"))
    made.kms.create("new")
    made.write(people(0))
    return made


def rewrap(scene: Scene, **more: Any) -> KeysReport:
    return encpipe.rewrap(scene.url, to={"footer": ["memory:new"]}, **{**scene.access, **more})


def opening(scene: Scene) -> list[str]:
    """The master keys of the footer KEK."""
    storage = scene.storage()
    found = read_manifest(storage)[1]
    storage.close()
    return [wrapped.master_key for wrapped in found.wrappings[found.core.footer_kek.id]]


def stopped_write(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """An overwrite under a KEK of its own, killed before its commit. Returns how to run it again."""
    source = save(tmp_path / "new", people(50))
    writer = replace(scene, config=Config(keys={**KEYS, "money": ("memory:main",)}, trust=BOTH.trust))
    policy = replace(PII, columns={**PII.columns, "money": ("id",)})

    def run() -> object:
        return writer.write(source, overwrite=True, workers=1, policy=policy)

    log = steps.Log()

    def before(n: int, step: str) -> None:
        if step.startswith("commit"):
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(run)) == -signal.SIGKILL
    return run


def test_the_journal_of_a_stopped_write_is_changed_too_and_it_goes_on(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_write(scene, tmp_path, monkeypatch)
    scene.config = replace(BOTH, keys={**BOTH.keys, "money": ("memory:main",)})
    report = encpipe.rewrap(scene.url, to={"footer": ["memory:new"]}, **scene.access)
    assert report.leftovers == ()
    storage = scene.storage()
    (writer,) = journals.writers(storage)
    journal = journals.load(storage, writer).journal
    names = {kek.id: kek.key_name for kek in journal.keks}
    wrapped = {names[kek_id]: [w.master_key for w in some] for kek_id, some in journal.wrappings.items()}
    assert wrapped == {"footer": ["memory:new"], "pii": ["memory:pii"], "money": ["memory:main"]}
    scene.kms.rotate("main")
    scene.config = replace(scene.config, keys={**KEYS, "money": ("memory:main",)})
    assert encpipe.rewrap(scene.url, **scene.access).leftovers == ()
    journal = journals.load(storage, writer).journal
    versions = {names[kek_id]: [w.version for w in some] for kek_id, some in journal.wrappings.items()}
    assert versions == {"footer": ["2"], "pii": ["1"], "money": ["2"]}
    run()
    assert opening(scene) == ["memory:main"]
    assert ids(scene.table()) == list(range(50, 56))
    assert scene.inspect(use_keys=False).pending_writes == 0


def test_each_changed_journal_is_a_line_before_it_is_changed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_write(scene, tmp_path, monkeypatch)
    log = tmp_path / "audit.jsonl"
    scene.config = replace(BOTH, audit=AuditConfig(f"file:{log}"))
    seen = []
    with monkeypatch.context() as patched:
        watched = steps.Log()
        watched.before = lambda n, step: seen.append((step, log.read_text())) if "commit" in step else None
        steps.install(patched, watched)
        rewrap(scene)
    assert [step.rpartition("/")[2] for step, _ in seen] == ["manifest.json", "journal.json"]
    verify_audit(log).check()
    manifest, journal = (
        line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "rewrap"
    )
    told = [text.count('"event":"rewrap"') for _, text in seen]
    assert told == [1, 2]
    assert "how" not in manifest
    assert journal["how"] == "stopped write"
    for name in ("dataset", "dataset_id", "key_names", "master_keys"):
        assert journal[name] == manifest[name]


def become_a_folder(log: Path) -> None:
    log.unlink()
    log.mkdir()


def test_no_journal_is_changed_whose_line_was_not_taken(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was by then; the next run does the rest."""
    stopped_write(scene, tmp_path, monkeypatch)
    log = tmp_path / "audit.jsonl"
    scene.config = replace(BOTH, audit=AuditConfig(f"file:{log}"))
    (journal,) = scene.folder.glob("_encpipe/pending/*/journal.json")
    before = journal.read_bytes()
    with monkeypatch.context() as patched:
        watched = steps.Log()
        watched.before = lambda n, step: become_a_folder(log) if step.startswith("hold") else None
        steps.install(patched, watched)
        with pytest.raises(StorageError) as refused:
            rewrap(scene)
    assert refused.value.code == "audit"
    assert journal.read_bytes() == before
    scene.config = BOTH
    assert rewrap(scene).leftovers == ()
    assert journal.read_bytes() != before


def test_what_is_left_in_a_live_writers_journal_is_told(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_write(scene, tmp_path, monkeypatch)
    scene.config = BOTH
    storage = scene.storage()
    (writer,) = journals.writers(storage)
    with storage.hold(journals.lock_path(writer)):
        (left,) = rewrap(scene).leftovers
    assert (left.place, left.key_name, left.master_key) == (
        journals.journal_path(writer),
        "footer",
        "memory:main",
    )
    assert rewrap(scene).leftovers == ()


def test_a_temp_file_with_the_old_wrapping_is_told(scene: Scene) -> None:
    scene.config = BOTH
    (scene.folder / "_encpipe" / ".tmp-0123").write_bytes((scene.folder / MANIFEST).read_bytes())
    (left,) = rewrap(scene).leftovers
    assert (left.place, left.why) == ("_encpipe/.tmp-0123", "a temp file")


def test_what_may_hold_a_wrapping_and_cannot_be_read_is_told(scene: Scene) -> None:
    """A torn write of a manifest or a journal does; that of a sealed list or record does not."""
    scene.config = BOTH
    folder, pending = scene.folder / "_encpipe", scene.folder / "_encpipe/pending" / ("a" * 32)
    pending.mkdir(parents=True)
    torn, (sealed,) = (scene.folder / MANIFEST).read_bytes()[:-200], folder.glob("files-1-*")
    for name, data in {
        ".tmp-0001": torn,
        ".tmp-0002": torn + bytes(4096),
        ".tmp-0003": sealed.read_bytes()[:-20],
        ".tmp-0004": b"",
        ".tmp-0005": bytes(4096),
    }.items():
        folder.joinpath(name).write_bytes(data)
        pending.joinpath(name).write_bytes(data)
    pending.joinpath("journal.json").write_bytes(b"{}")
    inside = f"_encpipe/pending/{'a' * 32}"
    assert {(left.place, left.key_name, left.master_key, left.why) for left in rewrap(scene).leftovers} == {
        *((f"{place}/.tmp-000{n}", "", "", "a temp file, not readable")
          for place in ("_encpipe", inside) for n in (1, 2)),
        (f"{inside}/journal.json", "", "", "a write under way or stopped, not readable"),
    }  # fmt: skip


@pytest.mark.server
def test_older_versions_in_a_bucket_are_told(request: pytest.FixtureRequest) -> None:
    seaweed, bucket = request.getfixturevalue("seaweed"), request.getfixturevalue("bucket")
    client = seaweed.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.close()
    scene = on_s3(seaweed, f"s3://{bucket}/folder")
    scene.kms.create("new")
    scene.write(people(0))
    scene.config = replace(scene.config, keys=BOTH.keys, trust=BOTH.trust)
    left = rewrap(scene).leftovers
    assert {(entry.key_name, entry.master_key, entry.why) for entry in left} == {
        ("footer", "memory:main", "an older version")
    }
    assert {entry.place.partition("?")[0].rpartition("/")[2] for entry in left} == {
        "manifest.json",
        "journal.json",
    }
