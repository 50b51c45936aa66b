"""What operations tell the audit log, and that they do nothing where it does not take their lines."""

from __future__ import annotations

import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from scene import Scene, ended, forked, people, save

import encpipe
from encpipe.audit import verify_audit
from encpipe.config import AuditConfig
from encpipe.errors import (
    ConfigError,
    ConflictError,
    EncpipeError,
    KeyAccessDeniedError,
    ManifestError,
    StaleDatasetError,
    StorageError,
    UntrustedKeyError,
    UnwrapError,
)
from encpipe.lifecycle.gc import gc
from encpipe.testing import FaultyKms


class Audited(Scene):
    """A scene whose operations write an audit log."""

    @property
    def log(self) -> Path:
        return self.folder.parent / "audit.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        """The lines since the last call; the log has to be whole."""
        verify_audit(self.log).check()
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.log.unlink()
        return found

    def events(self) -> list[str]:
        """Short: the event, with a refusal's code."""
        return [f"{line['of']}: {line['code']}" if "of" in line else line["event"] for line in self.lines()]


@pytest.fixture
def scene(tmp_path: Path) -> Audited:
    made = Audited(str(tmp_path / "data"))
    made.config = dataclasses.replace(made.config, audit=AuditConfig(f"file:{made.log}"))
    return made


@pytest.fixture
def written(scene: Audited, tmp_path: Path) -> Audited:
    scene.write(save(tmp_path / "source", people(), people(6)))
    scene.log.unlink()
    return scene


def test_a_write_tells_its_generation_keys_and_counts(scene: Audited) -> None:
    report = scene.write(people())
    (line,) = scene.lines()
    shown = ("event", "how", "dataset", "dataset_id", "generation", "key_names", "counts")
    assert {name: line[name] for name in shown} == {
        "event": "encrypt",
        "how": "write",
        "dataset": report.url,
        "dataset_id": report.dataset_id,
        "generation": 1,
        "key_names": ["footer", "pii"],
        "counts": {"files": 1, "rows": 6, "bytes": report.bytes_out},
    }
    assert [key["uri"] for key in line["master_keys"]] == ["memory:main", "memory:pii"]
    assert [key["version"] for key in line["master_keys"]] == ["1", "1"]


def test_opening_and_reading_all_columns_is_three_lines(written: Audited) -> None:
    with written.open() as dataset:
        dataset.to_table()
        dataset.to_table()
    footer, opened, pii = written.lines()
    assert [line["event"] for line in (footer, opened, pii)] == ["unwrap", "open", "unwrap"]
    assert (footer["key_names"], pii["key_names"]) == (["footer"], ["pii"])
    assert pii["master_keys"] == [{"uri": "memory:pii", "version": "1"}]
    assert pii["dataset_id"] == opened["dataset_id"] == dataset.dataset_id
    assert opened["dataset"] == dataset.url
    assert (opened["generation"], opened["revision"], opened["counts"]) == (1, 1, {"files": 2, "rows": 12})


def test_other_operations_tell_what_they_did(written: Audited, tmp_path: Path) -> None:
    written.append(people(12))
    assert written.events() == ["unwrap", "open", "unwrap", "open", "unwrap", "encrypt"]
    written.decrypt(tmp_path / "plain", columns=["id"])
    line = written.lines()[-1]
    assert (line["event"], line["key_names"], line["generation"]) == ("decrypt", ["footer"], 2)
    assert line["target"].endswith("/plain")
    assert line["counts"] == {"files": 3, "rows": 18}
    written.verify()
    assert written.events() == ["unwrap", "open", "unwrap"]
    written.inspect(use_keys=False)
    assert not written.log.exists()
    written.write(people(), overwrite=True)
    assert written.events()[-1] == "encrypt"


def test_gc_tells_what_it_removes_before_it_does(written: Audited) -> None:
    written.write(people(), overwrite=True)
    written.log.unlink()
    gc(written.url, keep=1, dry_run=True, **written.access)
    assert written.events() == ["unwrap"]
    blind = without_log(written)
    before = written.objects()
    with pytest.raises(StorageError, match="audit log"):
        gc(blind.url, keep=1, grace=timedelta(0), **blind.access)
    assert written.objects() == before
    collected = gc(written.url, keep=1, grace=timedelta(0), **written.access)
    line = next(line for line in written.lines() if line["event"] == "gc")
    assert line["counts"] == {
        "generations": 1,
        "keks": 0,
        "writes": 0,
        "objects": len(collected.removed),
        "bytes": collected.removed_bytes,
    }
    assert (line["generation"], line["revision"]) == (2, 2)
    assert len(collected.removed) >= 2


def test_the_log_names_no_column_and_no_value(written: Audited, tmp_path: Path) -> None:
    written.decrypt(tmp_path / "plain", filter=[("name", "==", "name 3")])
    with pytest.raises(EncpipeError):
        written.table(["salary"])
    written.append(people(12))
    text = written.log.read_text()
    for secret in ("name 3", "salary", '"name"', '"id"'):
        assert secret not in text


# Refusals


def test_a_denied_column_key_is_one_refusal(written: Audited) -> None:
    faulty = FaultyKms(written.kms)
    faulty.fail("denied", "memory:pii")
    keys = encpipe.MasterKeys(written.config, extra={"memory": faulty})
    with pytest.raises(KeyAccessDeniedError):
        written.table(master_keys=keys)
    assert written.events() == ["unwrap", "open", "unwrap: key-denied"]
    written.table(master_keys=keys, on_missing_key="skip")
    assert written.events() == ["unwrap", "open", "unwrap: key-denied"]


REFUSED: dict[str, tuple[Callable[[Audited], object], type[EncpipeError], list[str]]] = {
    "a key that is not trusted": (
        lambda scene: Audited(scene.url, scene.kms, dataclasses.replace(scene.config, keys={})).open(),
        UntrustedKeyError,
        ["unwrap: untrusted-key", "open: untrusted-key"],
    ),
    "a pin that does not hold": (
        lambda scene: scene.open(min_generation=2),
        StaleDatasetError,
        ["open: stale"],
    ),
    "no dataset": (lambda scene: scene.at(scene.url + "/none").open(), StorageError, ["open: not-found"]),
    "a key name it does not have": (
        lambda scene: scene.open(expect_key_names=["other"]),
        ManifestError,
        ["unwrap", "open", "open: manifest"],
    ),
    "a dataset in the way": (
        lambda scene: scene.write(people()),
        ConfigError,
        ["unwrap", "open", "encrypt: exists"],
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_is_told_by_its_code(written: Audited, why: str) -> None:
    operation, error, events = REFUSED[why]
    with pytest.raises(error):
        operation(written)
    assert written.events() == events


def test_a_wrong_key_is_told_as_a_refusal_and_not_as_an_unwrap(written: Audited) -> None:
    faulty = FaultyKms(written.kms)
    faulty.fail("wrong-key", "memory:main")
    with pytest.raises(UnwrapError):
        written.open(master_keys=encpipe.MasterKeys(written.config, extra={"memory": faulty}))
    assert written.events() == ["unwrap: kek-commitment", "open: kek-commitment"]


# A log that fails


def without_log(scene: Audited, *, required: bool = True) -> Audited:
    sink = AuditConfig(f"file:{scene.folder.parent}/none/audit.jsonl", required=required)
    return Audited(scene.url, scene.kms, dataclasses.replace(scene.config, audit=sink))


def test_nothing_is_written_without_the_log(scene: Audited) -> None:
    with pytest.raises(StorageError, match="audit log"):
        without_log(scene).write(people())
    assert scene.objects() == []
    assert scene.kms.wraps == 0


def test_nothing_is_read_without_the_log(written: Audited, tmp_path: Path) -> None:
    blind = without_log(written)
    for operation in (blind.open, blind.verify, blind.inspect, lambda: blind.decrypt(tmp_path / "plain")):
        with pytest.raises(StorageError) as caught:
            operation()
        assert caught.value.code == "audit"
    assert not (tmp_path / "plain").exists() or not any((tmp_path / "plain").iterdir())


def test_a_log_that_the_master_keys_would_not_write_to_is_refused(written: Audited) -> None:
    others = dataclasses.replace(written.config, audit=AuditConfig())
    with pytest.raises(ConfigError, match="audit is set in config="):
        written.open(master_keys=encpipe.MasterKeys(others, extra={"memory": written.kms}))


def test_a_log_that_fails_later_stops_what_comes_then(written: Audited, tmp_path: Path) -> None:
    with written.open(on_missing_key="error") as dataset:
        written.log.unlink()
        written.log.mkdir()
        with pytest.raises(StorageError, match="audit log"):
            dataset.to_table()
        dataset.to_table(["id"])
    written.log.rmdir()


def test_a_commit_that_the_log_does_not_take_changes_nothing(scene: Audited, tmp_path: Path) -> None:
    scene.write(people())
    scene.log.unlink()

    source = save(tmp_path / "more", people(6))

    def break_the_log(_: object) -> None:
        if scene.log.is_file():
            scene.log.unlink()
            scene.log.mkdir()

    with pytest.raises(StorageError) as caught:
        scene.append(source, progress=break_the_log)
    assert caught.value.code == "audit"
    scene.log.rmdir()
    assert scene.open().generation == 1
    assert scene.append(source).resumed_files == 1
    assert scene.open().generation == 2


def test_on_missing_key_does_not_hide_a_log_that_fails(written: Audited) -> None:
    faulty = FaultyKms(written.kms)
    opened = written.open(master_keys=encpipe.MasterKeys(written.config, extra={"memory": faulty}))
    written.log.unlink()
    written.log.mkdir()
    with pytest.raises(StorageError):
        opened.to_table()
    written.log.rmdir()


def test_where_it_is_not_required_everything_goes_on(scene: Audited) -> None:
    blind = without_log(scene, required=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        blind.write(people())
        assert len(blind.table()) == 6
    assert {warning.category for warning in caught} == {RuntimeWarning}


# Processes


def test_a_forked_and_an_unpickled_dataset_tell_their_own(written: Audited) -> None:
    with written.open() as dataset:
        child = forked(dataset.to_table)
        assert ended(child) == 0
    assert [(line["event"], line["pid"] == child) for line in written.lines()] == [
        ("unwrap", False),
        ("open", False),
        ("unwrap", True),
    ]
    assert pickle.loads(pickle.dumps(written.config)).audit == written.config.audit


def test_two_writers_tell_which_commit_lost(written: Audited, tmp_path: Path) -> None:
    done: list[int] = []

    def overtake(_: object) -> None:
        if not done:
            done.append(1)
            written.append(people(100))

    written.append(save(tmp_path / "more", people(6)), progress=overtake)
    lines = [line for line in written.lines() if line["event"] in ("encrypt", "refusal")]
    assert [(line["event"], line["generation"]) for line in lines] == [
        ("encrypt", 2),
        ("encrypt", 2),
        ("refusal", 2),
        ("encrypt", 3),
    ]
    assert lines[2]["code"] == ConflictError.default_code
