"""Whether a dataset is whole: every file there, every byte as committed, nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from encpipe.access import Access, AnyPath, open_access
from encpipe.config import Config
from encpipe.dataset import Dataset
from encpipe.errors import EncpipeError, IntegrityError, KmsError, StorageError, UntrustedKeyError
from encpipe.filelist import FileEntry
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import TaggedCore
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
    """What was checked and found. `unlisted` are objects no generation names: never read, removed by `gc`.

    `unchecked_key_names` are those whose key was refused: their columns were not decrypted.
    """

    url: str
    dataset_id: str
    generation: int
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
    dataset = Dataset(access.storage, state, "skip")
    check = _FileCheck(dataset, access.storage, deep)
    tally = Tally(len(dataset.files), sum(entry.size for entry in dataset.files), progress)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="encpipe-verify") as pool:
        found = pool.map(lambda entry: check.one(entry, tally), dataset.files)
        problems = tuple(problem for problem in found if problem is not None)
    unlisted, pending = _unlisted(access, state)
    return Verification(
        url=access.storage.url,
        dataset_id=dataset.dataset_id,
        generation=dataset.generation,
        deep=deep,
        files=len(dataset.files),
        rows=dataset.num_rows,
        problems=problems,
        unlisted=unlisted,
        pending=pending,
        unchecked_key_names=unchecked,
    )


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


def _unlisted(access: Access, state: State) -> tuple[tuple[str, ...], tuple[str, ...]]:
    named = {*_OWN_PATHS}
    for tagged in (state.manifest.head, *state.manifest.retained):
        named.add(tagged.core.list_name)
        named |= _paths_of(access, state, tagged)
    others = [info.path for info in access.storage.list() if info.path not in named]
    pending = tuple(path for path in others if path.startswith(_PENDING))
    return tuple(path for path in others if not path.startswith(_PENDING)), pending


def _paths_of(access: Access, state: State, tagged: TaggedCore) -> set[str]:
    if tagged is state.view:
        return {entry.path for entry in state.files.files}
    try:
        older = read_list(access.storage, tagged, state.keys.kek(tagged.core.footer_kek.id))
    except EncpipeError:
        return set()  # a retained generation that cannot be opened names nothing
    return {entry.path for entry in older.files}
