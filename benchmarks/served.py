"""Peers in processes of their own: started, told what to do, checked, and set to their best."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import peervenvs
from benchmarks.workloads import DATA, Workload

SCRIPTS: Final = Path(__file__).parent / "peerscripts"
WORKER_COUNTS: Final = (0, 1, 2)
_CALIBRATIONS: Final = 2
_PACKED: Final = {"int64": pa.int64(), "double": pa.float64()}
_ENDING_SECONDS: Final = 30
_ANSWER_SECONDS: Final = 120


class PeerHungError(RuntimeError):
    """A peer that does not go on: with worker processes that happens to some."""


@dataclass(frozen=True)
class Setup:
    """A peer on the first `rows` rows of a workload: 1 or 2 s of its work, so that all fits into minutes.

    `options` are alternatives (of its script) of which the fastest is taken.
    """

    peer: str
    script: str
    workload: Workload
    rows: int
    batch_size: int
    options: tuple[str, ...] = ("",)

    def target(self, option: str) -> Path:
        """Where its own copy lies; another script or recipe makes another one."""
        name = f"{self.workload.path().name}-{self.rows}-{option.replace('=', '-') or 'plain'}"
        return DATA / "peers" / self.peer / _digest(self.peer) / name


@cache
def _digest(peer: str) -> str:
    texts = [path.read_bytes() for path in sorted(SCRIPTS.glob("*.py"))]
    made_from = (*texts, repr(peervenvs.PEERS[peer]).encode())
    return hashlib.sha256(b"".join(made_from)).hexdigest()[:12]


class Served:
    """One peer's process. Raises `RuntimeError` with what it said when it ends too early."""

    def __init__(self, setup: Setup, option: str) -> None:
        self.setup = setup
        python = peervenvs.python_of(setup.peer)
        if python is None:
            raise RuntimeError(f"{setup.peer} is not installed: make bench-peers")
        folder = setup.target(option).parent
        for older in folder.parent.glob("*") if folder.parent.exists() else ():
            if older != folder:
                shutil.rmtree(older)
        folder.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [
            python,
            SCRIPTS / setup.script,
            setup.workload.name,
            setup.workload.ensure(),
        ]
        command += [setup.target(option), str(setup.rows), str(setup.batch_size), *filter(None, [option])]
        self._log = folder / f"{setup.workload.name}.log"
        self._temporary = tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_env(folder, self._temporary.name),
            )
        self.made = self.ask("make")

    def ask(self, command: str) -> dict[str, Any]:
        """Its answer to a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(command, file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], _ANSWER_SECONDS)[0]:
            self._process.kill()
            raise PeerHungError(f"{self.setup.peer} did not answer {command!r} for {_ANSWER_SECONDS} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"{self.setup.peer} ended with {code}: {self._log.read_text()[-2000:]}")
        return dict(json.loads(line))

    def epoch(self) -> float:
        """All rows once. Returns the seconds that the peer measured."""
        answer = self.ask("epoch")
        if answer["rows"] != self.setup.rows:
            raise AssertionError(f"{self.setup.peer} gave {answer['rows']} rows of {self.setup.rows}")
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process and wait for it."""
        try:
            self._process.communicate(timeout=_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._temporary.cleanup()

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _env(folder: Path, temporary: str) -> dict[str, str]:
    """Caches of the peers go where `make clean` finds them. The path of what is temporary is short: worker
    processes of PyTorch hang where that of a socket there has more than 108 bytes."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    names = ("HF_HOME", "DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER")
    caches = dict.fromkeys(names, str(scratch))
    return {**os.environ, **caches, "TMPDIR": temporary, "HF_HUB_OFFLINE": "1"}


def best(setup: Setup) -> dict[str, Any]:
    """The option and number of workers at which a peer is fastest, found once and kept beside its data."""
    kept = setup.target("").with_name(f"best-{setup.workload.name}-{setup.rows}-{len(setup.options)}.json")
    if not kept.exists():
        found = [_tried(setup, option, workers) for option in setup.options for workers in WORKER_COUNTS]
        fastest = max(found, key=lambda tried: float(tried["rows_per_second"]))
        kept.write_text(json.dumps({**fastest, "tried": found}))
    return dict(json.loads(kept.read_text()))


def _tried(setup: Setup, option: str, workers: int) -> dict[str, Any]:
    """What it reaches; nothing where it hangs."""
    try:
        return _measured(setup, option, workers)
    except PeerHungError:
        return {"option": option, "workers": workers, "rows_per_second": 0, "bytes": 0}


def _measured(setup: Setup, option: str, workers: int) -> dict[str, Any]:
    with Served(setup, option) as peer:
        peer.ask(f"open {workers}")
        peer.epoch()
        seconds = min(peer.epoch() for _ in range(_CALIBRATIONS))
        if workers == 0:
            check_totals(setup, peer.ask("check")["totals"])
        rate = round(setup.rows / seconds)
        return {"option": option, "workers": workers, "rows_per_second": rate, "bytes": peer.made["bytes"]}


def check_totals(setup: Setup, totals: dict[str, float]) -> None:
    """Raise `AssertionError` unless a peer's columns add up to what the workload's do."""
    wanted = expected_totals(setup.workload.ensure(), setup.rows)
    for name, value in totals.items():
        if not math.isclose(wanted.pop(name), value, rel_tol=1e-6):
            raise AssertionError(f"{setup.peer} gives other values in {name} of {setup.workload.name}")
    if wanted:
        raise AssertionError(f"{setup.peer} leaves out {sorted(wanted)} of {setup.workload.name}")


def expected_totals(folder: Path, rows: int) -> dict[str, float]:
    """Sums over the first rows: numbers (a type's together, as peers pack them), lengths of texts."""
    totals: dict[str, float] = {}
    kinds: list[str] = []
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path).slice(0, rows)
        rows -= len(table)
        kinds = [str(pa.int64() if pa.types.is_timestamp(f.type) else f.type) for f in table.schema]
        for name, kind, column in zip(table.column_names, kinds, table.columns, strict=True):
            key = kind if kind in _PACKED and kinds.count(kind) > 1 else name
            totals[key] = totals.get(key, 0.0) + _total(column)
        if rows <= 0:
            break
    return totals


def _total(column: pa.ChunkedArray) -> float:
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks])
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        count: Callable[[Any], Any] = pc.utf8_length if pa.types.is_string(kind) else pc.binary_length
        column = count(column)
    elif pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    return float(pc.sum(column.cast(pa.float64(), safe=False)).as_py() or 0.0)
