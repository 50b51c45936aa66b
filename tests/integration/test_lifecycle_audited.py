"""The audit log is told of a change of wrappings before it happens, and of one that was refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scene import Scene, people

import encpipe
from encpipe import ConfigError, StorageError
from encpipe.audit import verify_audit
from encpipe.config import AuditConfig
from encpipe.testing import InMemoryKms

MANIFEST = "_encpipe/manifest.json"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(str(tmp_path / "dataset"), kms=InMemoryKms(["main", "pii", "new"]))
    made.write(people(0))
    made.config = replace(made.config, audit=AuditConfig(f"file:{tmp_path / 'audit.jsonl'}"))
    return made


def lines(scene: Scene) -> list[dict[str, Any]]:
    """The lines but those of unwraps; the log has to be whole."""
    log = scene.folder.parent / "audit.jsonl"
    verify_audit(log).check()
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in found if line["event"] != "unwrap"]


def test_each_change_is_a_line_with_its_master_keys(scene: Scene) -> None:
    encpipe.grant(scene.url, "pii", "memory:new", **scene.access)
    encpipe.revoke(scene.url, "pii", "memory:new", **scene.access)
    encpipe.rewrap(scene.url, **scene.access)
    found = lines(scene)
    assert [(x["event"], x["key_names"], x["revision"]) for x in found] == [
        ("grant", ["pii"], 2),
        ("revoke", ["pii"], 3),
        ("rewrap", ["footer", "pii"], 4),
    ]
    assert [{key["uri"] for key in line["master_keys"]} for line in found] == [
        {"memory:new"},
        {"memory:new"},
        {"memory:main", "memory:pii"},
    ]
    assert {line["dataset"] for line in found} == {scene.url}


def test_a_dry_run_is_none(scene: Scene) -> None:
    encpipe.rewrap(scene.url, dry_run=True, **scene.access)
    assert lines(scene) == []


def test_a_refusal_is_a_line_with_its_code(scene: Scene) -> None:
    with pytest.raises(ConfigError):
        encpipe.revoke(scene.url, "pii", "memory:pii", **scene.access)
    with pytest.raises(ConfigError):
        encpipe.revoke(scene.url, "pii", "memory:nobody", **scene.access)
    found = lines(scene)
    assert {(line["event"], line["of"], line["dataset"]) for line in found} == {
        ("refusal", "revoke", scene.url)
    }
    assert [line["code"] for line in found] == ["last-wrapping", "no-wrapping"]


@pytest.mark.parametrize(
    "change",
    [
        lambda scene: encpipe.rewrap(scene.url, **scene.access),
        lambda scene: encpipe.grant(scene.url, "pii", "memory:new", **scene.access),
    ],
    ids=["rewrap", "grant"],
)
def test_nothing_is_changed_whose_line_was_not_taken(scene: Scene, change: Callable[[Scene], object]) -> None:
    before = (scene.folder / MANIFEST).read_bytes()
    scene.config = replace(scene.config, audit=AuditConfig("file:/nowhere/audit.jsonl"))
    with pytest.raises(StorageError) as refused:
        change(scene)
    assert refused.value.code == "audit"
    assert (scene.folder / MANIFEST).read_bytes() == before
