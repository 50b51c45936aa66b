"""gc: removes what a dataset does not need any more. `gcplan` decides what that is; here it is done.

Order: stopped writes that nobody went on with are thrown away, each after its line in the audit log; the rest
gets a line; the manifest is replaced (line 1 as it was, fewer retained generations, no wrappings that none of
them uses); what left is marked; objects are removed. A stop at any point leaves a whole dataset, and the next
run does the rest.

No object is removed before a conditional write has shown that the manifest, which does not name it, is the
newest. So a writer whose journal was thrown away cannot commit files that are being removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

from encpipe import manifest
from encpipe.access import Access, AnyPath, open_access
from encpipe.config import Config
from encpipe.errors import ConfigError, ConflictError, ManifestError, StorageError
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle import gcplan
from encpipe.lifecycle.gclook import Loaded, Look, mark_bytes
from encpipe.lifecycle.gcplan import GRACE, LONGEST, Found, Plan, Rules, Survey
from encpipe.lifecycle.keysline import MAX_TRIES, only
from encpipe.pins import Pins
from encpipe.sealing import ProgressCallback, Tally
from encpipe.state import MANIFEST_PATH
from encpipe.storage import ObjectInfo

__all__ = ["GRACE", "Collected", "gc"]

DELETE_THREADS: Final = 8
"""Objects that are removed at a time: on S3 each takes a request."""


@dataclass(frozen=True)
class Collected:
    """What gc removed; with `dry_run` what it would remove.

    `left` are the generations that left the manifest, `kept` those in it; `keks` the KEKs whose wrappings
    went, since no generation in the manifest uses them; `writes` the stopped writes that were thrown away.
    `waiting` objects (of `waiting_bytes`) are not needed and go later: their grace time is not over, or one
    of `writes_kept` may need them. `foreign` objects are not called as ours are, or are Parquet files that
    are not encrypted, and stay.
    """

    url: str
    dataset_id: str
    generation: int
    revision: int
    dry_run: bool
    left: tuple[int, ...]
    kept: tuple[int, ...]
    keks: tuple[str, ...]
    writes: tuple[str, ...]
    writes_kept: tuple[str, ...]
    removed: tuple[str, ...]
    removed_bytes: int
    uploads: int
    waiting: int
    waiting_bytes: int
    foreign: tuple[str, ...]
    kms_calls: int

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def gc(
    url: AnyPath,
    *,
    keep: int | None = None,
    older_than: timedelta | None = None,
    grace: timedelta = GRACE,
    dry_run: bool = False,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expect_dataset: str | None = None,
    min_generation: int | None = None,
    progress: ProgressCallback | None = None,
) -> Collected:
    """Remove what the dataset at `url` does not need any more. Safe beside writers and readers.

    Of the generations in the manifest those leave it that are none of the `keep` newest and that a newer one
    replaced `older_than` ago; without either, none leaves. Their files go once they have been out of the
    manifest for `grace`, so readers have that long to finish; the same holds for generations that newer
    commits pushed out. Stopped writes that nobody went on with for `grace` are thrown away with their files,
    and so are temp files and, on S3, unfinished uploads. KEKs go with the last generation that uses them. All
    times are by the storage's clock.

    Nothing is removed that a generation in the manifest names, or that was made since a write began that is
    under way or may go on; no generation leaves that such a write builds upon. `dry_run` changes nothing.

    Needs the footer key. A `grace` of 0 waits for nobody: who reads a generation that leaves then loses it.
    Raises `ConfigError`, `KmsError`, `IntegrityError` (`stale` where file lists show that there was a newer
    manifest), `StorageError`; what was not removed then is by the next run.
    """
    rules = _rules(keep, older_than, grace)
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    pins = Pins(expect_dataset=expect_dataset, min_generation=min_generation)
    audit = access.master_keys.audit
    with contextlib.closing(access.storage), audit.refusals("gc", dataset=access.storage.url):
        if not dry_run:
            audit.check()
        return _Run(access, rules, pins, dry_run, progress).collect()


def _rules(keep: int | None, older_than: timedelta | None, grace: timedelta) -> Rules:
    if keep is not None and keep < 1:
        raise ConfigError("keep is the number of generations that stay: at least 1", code="usage")
    for time in (grace, older_than or timedelta(0)):
        if not timedelta(0) <= time <= LONGEST:
            raise ConfigError(
                f"grace and older_than are lengths of time: not negative, and at most {LONGEST.days} days",
                code="usage",
            )
    return Rules(keep, older_than, grace)


class _Run:
    """One call of `gc`."""

    def __init__(
        self, access: Access, rules: Rules, pins: Pins, dry_run: bool, progress: ProgressCallback | None
    ) -> None:
        self._storage, self._audit = access.storage, access.master_keys.audit
        self._rules, self._dry_run, self._progress = rules, dry_run, progress
        self._look = Look(access, rules, pins, dry_run=dry_run)

    def collect(self) -> Collected:
        """Do it all, again where someone replaces the manifest in between."""
        loaded = self._look.load()
        for _ in range(MAX_TRIES):
            found, loaded = self._look.around(loaded)
            try:
                return self._collect(found, loaded)
            except ConflictError as error:
                if error.code != "conflict":
                    raise
                self._audit.refuse("gc", error, dataset=self._storage.url)
            except ManifestError as error:
                if error.code != "file-missing" or not self._look.is_old(loaded):
                    raise
        raise ConflictError(f"other writers were first {MAX_TRIES} times", hint="run the command again")

    def _collect(self, found: Found, loaded: Loaded) -> Collected:
        left = gcplan.leaving(found, self._rules)
        survey = Survey(found, self._rules, left)
        survey.check_newest()
        opened = {path: self._look.once_named(loaded, path) for path in survey.unmarked()}
        stay = [path for path in loaded.generations if path not in left]
        plan = self._look.without_foreign(survey.plan(self._look.named(loaded, stay), opened))
        unused = _unused_keks(loaded, stay)
        revision = loaded.manifest.revision
        if not self._dry_run:
            facts = loaded.facts(removed=plan.removed, generations=len(left), keks=len(unused))
            self._audit.record("gc", **facts)
            if left or unused or plan.removed:
                revision = self._replace_manifest(loaded, stay, unused)
            self._mark(plan, found)
            self._remove(plan)
        return self._report(loaded, found, plan, left, unused, revision)

    def _replace_manifest(self, loaded: Loaded, stay: Collection[str], unused: Collection[str]) -> int:
        """Commit a manifest with only these generations and without these KEKs' wrappings; its revision."""
        found = loaded.manifest
        new = manifest.rebuild(
            found,
            revision=found.revision + 1,
            wrappings={kek_id: some for kek_id, some in found.wrappings.items() if kek_id not in unused},
            retained=[tagged for tagged in found.retained if tagged.core.list_name in stay],
            footer_kek=loaded.keys.kek(found.core.footer_kek.id),
        )
        self._storage.commit(
            MANIFEST_PATH, new, check=only(loaded.data), is_ours=lambda current: current == new
        )
        return found.revision + 1

    def _mark(self, plan: Plan, found: Found) -> None:
        there = {info.path for info in found.objects}
        for listed, files in plan.marks.items():
            path = gcplan.mark_path(listed)
            if path in there and listed in found.lists:  # made before an older manifest was restored
                self._storage.delete(path)
            try:
                self._storage.create(path, mark_bytes(files))
            except StorageError as error:
                if error.code != "exists":  # another gc made it
                    raise

    def _remove(self, plan: Plan) -> None:
        for upload in plan.uploads:
            self._storage.drop_upload(upload)
        tally = Tally(len(plan.removed), sum(info.size for info in plan.removed), self._progress)

        def delete(info: ObjectInfo) -> None:
            self._storage.delete(info.path)
            tally.add(files=1, size=info.size)

        with ThreadPoolExecutor(DELETE_THREADS, thread_name_prefix="encpipe-gc") as pool:
            for step in (plan.files, plan.lists, plan.old_marks):
                list(pool.map(delete, step))

    def _report(
        self,
        loaded: Loaded,
        found: Found,
        plan: Plan,
        left: Sequence[str],
        unused: tuple[str, ...],
        revision: int,
    ) -> Collected:
        core, thrown = loaded.manifest.core, self._look.thrown
        numbers = {path: tagged.core.generation for path, tagged in loaded.generations.items()}
        removed = [*plan.removed, *(info for journal in thrown.values() for info in journal)]
        return Collected(
            url=self._storage.url,
            dataset_id=core.dataset_id,
            generation=core.generation,
            revision=revision,
            dry_run=self._dry_run,
            left=tuple(numbers[path] for path in left),
            kept=tuple(number for path, number in numbers.items() if path not in left),
            keks=unused,
            writes=tuple(thrown),
            writes_kept=tuple(write.writer_id for write in found.writes),
            removed=tuple(info.path for info in removed),
            removed_bytes=sum(info.size for info in removed),
            uploads=len(plan.uploads),
            waiting=len(plan.waiting),
            waiting_bytes=sum(info.size for info in plan.waiting),
            foreign=plan.foreign,
            kms_calls=loaded.keys.unwraps + loaded.keys.refusals,
        )


def _unused_keks(loaded: Loaded, stay: Collection[str]) -> tuple[str, ...]:
    """The KEKs with wrappings that no generation uses which stays."""
    cores = {path: tagged.core for path, tagged in loaded.generations.items()}
    known = {kek.id for core in cores.values() for kek in core.keks}
    used = {kek.id for path in stay for kek in cores[path].keks if kek.state != "retired"}
    return tuple(kek_id for kek_id in loaded.manifest.wrappings if kek_id in known - used)
