"""No plaintext on disk: real training under strace, in each way that rows reach a model.

What is looked for is in `markers`, what counts as writing in `tracing`, and the program is `training`. The
last tests show that it would be noticed.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import markers
import pyarrow as pa
import pytest
import torch
import tracing
from markers import Finder
from tracing import Verdict

import encpipe

pytestmark = pytest.mark.system

PROGRAM = Path(__file__).parents[1] / "training.py"
EPOCHS = 2
CONFIG = """
[keys]
footer = ["local:env"]
pii = ["local:env"]
[policy.columns]
pii = ["name", "number"]
"""


@dataclass(frozen=True)
class Sealed:
    """A dataset, its rows, and the environment that opens it."""

    url: Path
    rows: pa.Table
    config: Path
    key: bytes

    @property
    def finder(self) -> Finder:
        return Finder({**markers.of_table(self.rows), **markers.of_key(self.key)})

    @property
    def env(self) -> dict[str, str]:
        return {
            "ENCPIPE_MASTER_KEY": base64.b64encode(self.key).decode(),
            "ENCPIPE_CONFIG": str(self.config),
        }


@dataclass(frozen=True)
class Watched:
    """What a watched training did. `folder` has all that it may write to: work, home, tmp."""

    verdict: Verdict
    folder: Path
    told: dict[str, int]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """Four files of 300 rows. Their plaintext is never on a disk, not even here."""
    folder = tmp_path_factory.mktemp("sealed")
    rows, key = markers.table(), secrets.token_bytes(32)
    config = folder / "config.toml"
    config.write_text(CONFIG)
    made = Sealed(folder / "dataset", rows, config, key)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in made.env.items():
            patched.setenv(name, value)
        encpipe.write_dataset(rows.slice(0, 300), made.url)
        for first in range(300, markers.ROWS, 300):
            encpipe.append_dataset(rows.slice(first, 300), made.url)
    return made


def watch(sealed: Sealed, folder: Path, *arguments: str) -> Watched:
    """Train in folders of its own, and judge all that the program and its children did."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    env = {**inherited, **sealed.env}
    for name in ("work", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    log = folder / "trace"
    argv = [sys.executable, PROGRAM, str(sealed.url), *arguments]
    with tempfile.TemporaryDirectory(prefix="enc-") as short:
        # worker processes make sockets in there, whose paths have a hundred characters at most
        (Path(short) / "t").symlink_to(folder / "tmp")
        env |= {"HOME": str(folder / "home"), "TMPDIR": f"{short}/t"}
        done = tracing.run(argv, log=log, env=env, cwd=folder / "work")
    assert done.returncode == 0, done.stderr
    verdict = tracing.judge(log, sealed.finder, shared_memory=arguments[0] != "process")
    log.unlink()
    return Watched(verdict, folder, json.loads(done.stdout))


@pytest.mark.parametrize("mode", ["process", "fork", "spawn"])
def test_training_puts_nothing_in_clear_on_disk(sealed: Sealed, tmp_path: Path, mode: str) -> None:
    """One test for each mode, since a run takes seconds."""
    training = watch(sealed, tmp_path / "training", mode)
    check_it_trained(training, sealed)
    assert training.verdict.leaks == []
    assert sealed.finder.in_files(training.folder) == {}
    assert sealed.finder.in_files(sealed.url) == {}
    check_nothing_was_left(training)
    shared = {path.rstrip("0123456789_") for path in training.verdict.shared if "/sem." not in path}
    assert shared == (set() if mode == "process" else {"/dev/shm/torch"}), "tensors of worker processes"


def check_it_trained(training: Watched, sealed: Sealed) -> None:
    """On every row, twice, with checkpoints that strace saw."""
    lengths = sum(len(name) for name in sealed.rows["name"].to_pylist())
    lengths += sum(len(blob) for blob in sealed.rows["blob"].to_pylist())
    assert training.told == {"rows": EPOCHS * markers.ROWS, "texts": EPOCHS * lengths}
    checkpoint = training.folder / "work" / "checkpoint-1.pt"
    assert torch.load(checkpoint, weights_only=True).keys() == {"model", "optimizer", "loader"}
    assert str(checkpoint) in training.verdict.files


def check_nothing_was_left(training: Watched) -> None:
    """In the home, where Hugging Face, torch and XDG have their caches, or among the temporary files."""
    kept = [path for name in ("home", "tmp") for path in (training.folder / name).rglob("*")]
    assert [path for path in kept if not path.is_dir()] == []
    made = {path.name for path in (training.folder / "work").iterdir()}
    assert made == {"checkpoint-0.pt", "checkpoint-1.pt"}


WAYS = {"write": "write", "writev": "writev", "mmap": "mmap"}
WAYS |= {"text": "write", "child": "write", "worker": "write"}
"""File `leak.NAME` that the program makes -> the system call that is to be blamed."""


@pytest.fixture(scope="module")
def leaking(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watch(sealed, tmp_path_factory.mktemp("leaking"), "fork", "--leak")


@pytest.mark.parametrize(("way", "call"), WAYS.items(), ids=WAYS)
def test_a_deliberate_leak_is_noticed(leaking: Watched, sealed: Sealed, way: str, call: str) -> None:
    assert leaking.verdict.at(f"leak.{way}") == {call}
    assert leaking.folder / "work" / f"leak.{way}" in sealed.finder.in_files(leaking.folder)


def test_nothing_but_the_leaks_is_noticed(leaking: Watched) -> None:
    assert {Path(leak.place).name for leak in leaking.verdict.leaks} == {f"leak.{way}" for way in WAYS}
