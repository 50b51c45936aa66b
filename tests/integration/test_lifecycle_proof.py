"""A re-wrap that opens each new wrapping before an old one goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scene import KEYS, Scene, ids, people

import encpipe
from encpipe import Config, EncpipeError, KeyAccessDeniedError, MasterKeys, UntrustedKeyError, UnwrapError
from encpipe.config import AuditConfig
from encpipe.keys import WrappedKey
from encpipe.testing import FaultyKms, InMemoryKms

MANIFEST = "_encpipe/manifest.json"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(str(tmp_path / "dataset"), kms=InMemoryKms(["main", "pii", "new"]))
    made.write(people(0))
    return made


def test_it_takes_a_third_call_for_each_key_name(scene: Scene) -> None:
    before = scene.kms.wraps, scene.kms.unwraps
    scene.kms.rotate("main")
    report = encpipe.rewrap(scene.url, prove=True, **scene.access)
    assert report.kms_calls == 6
    assert (scene.kms.wraps - before[0], scene.kms.unwraps - before[1]) == (2, 4)
    assert [change.key_name for change in report.changes] == ["footer", "pii"]
    assert ids(scene.table()) == list(range(6))


def test_a_dry_run_proves_nothing(scene: Scene) -> None:
    assert encpipe.rewrap(scene.url, prove=True, dry_run=True, **scene.access).kms_calls == 2


def test_every_new_master_key_is_tried(scene: Scene) -> None:
    to = {"footer": ["memory:main", "memory:new"]}
    assert encpipe.rewrap(scene.url, to=to, prove=True, **scene.access).kms_calls == 5


@pytest.mark.parametrize(("fault", "error"), [("denied", KeyAccessDeniedError), ("wrong-key", UnwrapError)])
@pytest.mark.parametrize("prove", [True, False])
def test_what_is_wrapped_and_does_not_open_changes_nothing(
    scene: Scene, fault: Any, error: type[EncpipeError], prove: bool
) -> None:
    kms = FaultyKms(scene.kms)
    met: list[str] = []

    def meet(uri: str) -> Any:
        met.append(uri)
        return fault if met.count("memory:new") > 1 else None  # the first call wraps

    kms.meet = meet  # type: ignore[method-assign]  # the point of the test
    before = (scene.folder / MANIFEST).read_bytes()
    more = {**scene.access, "master_keys": MasterKeys(scene.config, extra={"memory": kms})}
    if not prove:
        encpipe.rewrap(scene.url, to={"pii": "memory:new"}, **more)
        assert (scene.folder / MANIFEST).read_bytes() != before
        return
    with pytest.raises(error):
        encpipe.rewrap(scene.url, to={"pii": "memory:new"}, prove=True, **more)
    assert (scene.folder / MANIFEST).read_bytes() == before


def test_a_name_that_readers_do_not_trust_is_found_out(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the key that an alias stands for."""
    kind = type(scene.kms.master_key("memory:new"))
    wrap = kind.wrap

    def elsewhere(self: Any, *args: Any, **more: Any) -> WrappedKey:
        return replace(wrap(self, *args, **more), master_key="other:behind-the-alias")

    monkeypatch.setattr(kind, "wrap", elsewhere)
    before = (scene.folder / MANIFEST).read_bytes()
    with pytest.raises(UntrustedKeyError, match="behind-the-alias"):
        encpipe.rewrap(scene.url, to={"pii": "memory:new"}, prove=True, **scene.access)
    assert (scene.folder / MANIFEST).read_bytes() == before


def test_the_audit_log_tells_of_it(scene: Scene, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    scene.config = Config(keys=KEYS, audit=AuditConfig(f"file:{log}"))
    encpipe.rewrap(scene.url, to={"pii": "memory:new"}, prove=True, **scene.access)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [(line["event"], [key["uri"] for key in line["master_keys"]]) for line in lines]
    assert told == [
        ("unwrap", ["memory:main"]),
        ("unwrap", ["memory:pii"]),
        ("unwrap", ["memory:new"]),
        ("rewrap", ["memory:new"]),
    ]
