"""What the tests of gc share: ageing a dataset, collecting, writes that were stopped, and what must hold."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import Scene, ended, forked, ids, people, save

from encpipe.lifecycle.gc import Collected, gc

OLD, NEW, MORE = list(range(6)), list(range(10, 16)), list(range(20, 26))
DAY = timedelta(days=1)
NOW = timedelta(0)


def local(folder: Path) -> Scene:
    """A dataset that is not there yet."""
    return Scene(str(folder / "dataset"))


def new_rows(folder: Path) -> Path:
    """A source of two files, with the rows `NEW` and `MORE`."""
    return save(folder / "new", people(10), people(20))


def collect(scene: Scene, **more: Any) -> Collected:
    return gc(scene.url, **{**scene.access, **more})


def age(scene: Scene, days: float, what: str = "") -> None:
    """Let everything that is there (with `what` in its path) be older by `days`."""
    for path in scene.folder.rglob("*"):
        if path.is_file() and what in str(path):
            then = path.stat().st_mtime - days * 86_400
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, (then, then))


def hashes(scene: Scene) -> dict[str, str]:
    return {path: hashlib.sha256((scene.folder / path).read_bytes()).hexdigest() for path in scene.objects()}


def assert_clean(scene: Scene, rows: list[int], when: str = "") -> None:
    """The rows are there, every byte is as committed, and nothing is there that no generation names."""
    assert ids(scene.table()) == rows, when
    found = scene.verify()
    assert (found.problems, found.unlisted, found.pending) == ((), (), ()), when


def stopped_write(scene: Scene, monkeypatch: pytest.MonkeyPatch, source: Path, at: str, nth: int = 1) -> None:
    """An append that was killed before the n-th step that begins with `at`."""
    log = steps.Log()

    def before(n: int, step: str) -> None:
        if step.startswith(at) and sum(s.startswith(at) for s in log.steps[: n + 1]) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = before
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(lambda: scene.append(source, workers=1))) == -signal.SIGKILL
