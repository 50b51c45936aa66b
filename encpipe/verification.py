"""Whether a dataset is whole: every file there, every byte as committed, nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from encpipe import signing
from encpipe.access import Access, AnyPath, open_access
from encpipe.config import Config
from encpipe.dataset import Dataset
from encpipe.errors import IntegrityError, KmsError, SignatureError, StorageError, UntrustedKeyError
from encpipe.filelist import FileEntry
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.gcplan import list_of_mark
from encpipe.pins import Pins
from encpipe.sealing import ProgressCallback, Tally
from encpipe.state import MANIFEST_PATH, State, load_state, read_list
from encpipe.storage import Storage

_OWN_PATHS: Final = (MANIFEST_PATH, "_encpipe/lock")
_PENDING: Final = "_encpipe/pending/"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a file (or "" for the dataset), an error code of `CODES`, and the message."""

    path: str
    code: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What was checked and found. `unlisted` are objects no generation names: never read, removed by `gc`;
    none is named as long as a retained generation does not open.

    `files` and `rows` are those of `generation`; the files of `older_generations` were checked as well.
    `unchecked_key_names` are those whose key was refused: their columns were not decrypted.
    """

    url: str
    dataset_id: str
    generation: int
    older_generations: tuple[int, ...]
    deep: bool
    files: int
    rows: int
    problems: tuple[Problem, ...]
    unlisted: tuple[str, ...]
    pending: tuple[str, ...]
    unchecked_key_names: tuple[str, ...]

    def check(self) -> None:
        """Raise `IntegrityError` when there is a problem."""
        if self.problems:
            first = self.problems[0]
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise IntegrityError(
                f"{first.message}{more}",
                hint="restore what is damaged from a copy you trust",
                code=first.code,
            )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def verify_dataset(
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    deep: bool = False,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    expect_dataset: str | None = None,
    min_generation: int | None = None,
) -> Verification:
    """Check the dataset at `url` and report everything that is wrong.

    Quick: MACs under every key that can be had, file list, and of each file size, footer and row counts. With
    `deep` also the SHA-256 of every file and the tag of every page. Raises `IntegrityError` when manifest or
    list themselves do not hold, else reports; call `check()` on the result to raise on a problem.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    pins = Pins(expect_dataset=expect_dataset, min_generation=min_generation)
    state = load_state(access.storage, access.master_keys, pins=pins)
    unchecked = _try_keys(state)
    older, problems = _older(access, state)
    jobs = list(_jobs(access, (state, *older), deep))
    tally = Tally(len(jobs), sum(entry.size for _, entry in jobs), progress)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="encpipe-verify") as pool:
        found = pool.map(lambda job: job[0].one(job[1], tally), jobs)
        problems += [problem for problem in found if problem is not None]
    unlisted, pending = _unlisted(access, (state, *older))
    complete = len(older) == len(state.manifest.retained)
    return Verification(
        url=access.storage.url,
        dataset_id=state.view.core.dataset_id,
        generation=state.view.core.generation,
        older_generations=tuple(one.view.core.generation for one in older),
        deep=deep,
        files=len(state.files.files),
        rows=sum(entry.rows for entry in state.files.files),
        problems=tuple(problems),
        unlisted=unlisted if complete else (),
        pending=pending,
        unchecked_key_names=unchecked,
    )


def _older(access: Access, state: State) -> tuple[list[State], list[Problem]]:
    """The retained generations that open, and a problem for each that does not, or is not signed as asked."""
    older: list[State] = []
    problems: list[Problem] = []
    for tagged in state.manifest.retained:
        try:
            signing.check(tagged, access.master_keys.config.trust.signers)
        except SignatureError as error:
            problems.append(Problem(tagged.core.list_name, error.code, error.message))
        try:
            files = read_list(access.storage, tagged, state.keys.kek(tagged.core.footer_kek.id))
        except (IntegrityError, StorageError) as error:
            where = f"generation {tagged.core.generation}: {error.message}"
            problems.append(Problem(tagged.core.list_name, error.code, where))
        except (KmsError, UntrustedKeyError):
            continue  # its footer key is not ours any more: nothing can be said of it
        else:
            older.append(replace(state, view=tagged, files=files))
    return older, problems


def _jobs(access: Access, states: Iterable[State], deep: bool) -> Iterator[tuple[_FileCheck, FileEntry]]:
    """Every file once, to be checked as a file of the newest generation that has it."""
    seen: set[str] = set()
    for state in states:
        check = _FileCheck(Dataset(access, state, "skip"), access.storage, deep)
        for entry in state.files.files:
            if entry.path not in seen:
                seen.add(entry.path)
                yield check, entry


def _try_keys(state: State) -> tuple[str, ...]:
    """The key names that are refused. A wrong MAC or commitment under any other raises."""
    refused = []
    for name in state.view.core.key_names:
        try:
            state.keys.kek(state.view.core.active(name).id)
        except (KmsError, UntrustedKeyError):
            refused.append(name)
    return tuple(refused)


@dataclass(frozen=True)
class _FileCheck:
    dataset: Dataset
    storage: Storage
    deep: bool

    def one(self, entry: FileEntry, tally: Tally) -> Problem | None:
        try:
            self.dataset.check_file(entry)
            if self.deep:
                self._check_bytes(entry)
                for table in self.dataset.scan(files=[entry], threads=1).tables():
                    del table
        except (IntegrityError, StorageError) as error:
            return Problem(entry.path, error.code, error.message)
        finally:
            tally.add(files=1, rows=entry.rows, size=entry.size)
        return None

    def _check_bytes(self, entry: FileEntry) -> None:
        if self.storage.sha256(entry.path) != entry.sha256:
            raise IntegrityError(f"file {entry.path} has other bytes than committed", code="file-hash")


def _unlisted(access: Access, states: Iterable[State]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    named = set(_OWN_PATHS)
    for state in states:
        named.add(state.view.core.list_name)
        named |= {entry.path for entry in state.files.files}
    others = [info.path for info in access.storage.list() if info.path not in named]
    others = [path for path in others if list_of_mark(path) is None]
    pending = tuple(path for path in others if path.startswith(_PENDING))
    return tuple(path for path in others if not path.startswith(_PENDING)), pending
