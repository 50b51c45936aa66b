"""One generation of a dataset, loaded and checked: manifest, core, file list and keys."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, Final, ParamSpec

from encpipe import aead, filelist, manifest, signing
from encpipe.errors import (
    KmsError,
    KmsUnavailableError,
    ManifestError,
    StaleDatasetError,
    StorageError,
    UntrustedKeyError,
)
from encpipe.filelist import FileList
from encpipe.keyring import DatasetKeys
from encpipe.keys import Secret, WrappedKey
from encpipe.kms.registry import MasterKeys
from encpipe.layouts import Layouts, check_partition_keks
from encpipe.manifest import Manifest, TaggedCore
from encpipe.parquet import Layout
from encpipe.pins import Pins
from encpipe.statekeys import dataset_keys
from encpipe.storage import Storage

MANIFEST_PATH: Final = "_encpipe/manifest.json"
MAX_LIST_BYTES: Final = aead.MAX_SEALED_BYTES + 1

_More = ParamSpec("_More")
_Load = Callable[Concatenate[Storage, MasterKeys, _More], "State"]


@dataclass(frozen=True)
class State:
    """One generation of a dataset, checked: manifest, core, file list and the keys that opened them."""

    manifest: Manifest
    view: TaggedCore
    files: FileList
    keys: DatasetKeys
    manifest_bytes: bytes = field(repr=False)
    is_pinned: bool = False
    """Whether `expect_core` named this very generation."""

    def __post_init__(self) -> None:
        self.keys.partitions.learn(self.files.partition_keks)

    @property
    def layouts(self) -> Layouts:
        """Under which KEKs each file is."""
        core = self.view.core
        shared = Layout(
            columns=self.files.columns,
            keks={name: core.active(name).id for name in core.key_names},
            footer_key=core.footer_key,
        )
        return Layouts(shared, self.files.partition_keks)


def read_manifest(storage: Storage) -> tuple[bytes, Manifest]:
    """The manifest, parsed and not yet checked. Raises `StorageError` `not-found` where there is none."""
    try:
        data = storage.read(MANIFEST_PATH, limit=manifest.MAX_MANIFEST_BYTES)
    except StorageError as error:
        if error.code != "not-found":
            raise
        raise StorageError(
            f"no encpipe dataset at {storage.url}",
            hint="check the URL; `encpipe encrypt SRC DST` makes a dataset",
            code="not-found",
        ) from None
    return data, manifest.parse(data)


def _told(load: _Load[_More]) -> _Load[_More]:
    """Tell the audit log that a dataset was opened, or why not."""

    @wraps(load)
    def told(storage: Storage, master_keys: MasterKeys, /, *args: _More.args, **more: _More.kwargs) -> State:
        audit = master_keys.audit
        with audit.refusals("open", dataset=storage.url):
            state = load(storage, master_keys, *args, **more)
        if audit.enabled:
            core, files = state.view.core, state.files.files
            audit.record(
                "open",
                dataset=storage.url,
                dataset_id=core.dataset_id,
                generation=core.generation,
                revision=state.manifest.revision,
                key_names=sorted(core.key_names),
                counts={"files": len(files), "rows": sum(entry.rows for entry in files)},
            )
        return state

    return told


@_told
def load_state(
    storage: Storage,
    master_keys: MasterKeys,
    *,
    pins: Pins | None = None,
    generation: int | None = None,
    max_key_age: float | None = None,
    key_grace: float = 0.0,
    signers: Sequence[str] | None = None,
) -> State:
    """Read and check manifest and file list. One KMS call, for the footer key.

    One of `signers` (default: the configuration's `trust.signers`) must have signed the generation, where
    there are any; this is checked before any KMS call.

    A list that is gone may mean that a newer manifest was committed in between: it is read once more.
    """
    try:
        return _load(storage, master_keys, pins, generation, max_key_age, key_grace, signers)
    except ManifestError as error:
        if error.code != "file-missing":
            raise
        return _load(storage, master_keys, pins, generation, max_key_age, key_grace, signers)


def _load(
    storage: Storage,
    master_keys: MasterKeys,
    pins: Pins | None,
    generation: int | None,
    max_key_age: float | None,
    key_grace: float,
    signers: Sequence[str] | None,
) -> State:
    data, found = read_manifest(storage)
    view = found.head if generation is None else found.generation(generation)
    if pins is not None:
        pins.check(found, view)
    pinned = pins is not None and pins.expect_core is not None
    return _checked(storage, master_keys, data, found, view, max_key_age, key_grace, signers, pinned=pinned)


def _checked(
    storage: Storage,
    master_keys: MasterKeys,
    data: bytes,
    found: Manifest,
    view: TaggedCore,
    max_key_age: float | None,
    key_grace: float,
    signers: Sequence[str] | None = None,
    *,
    pinned: bool = False,
) -> State:
    trusted = master_keys.config.trust.signers if signers is None else signers
    signing.check(view, trusted)
    cores = (found.head,) if view is found.head else (found.head, view)
    vouched = {tagged.digest for tagged in cores if signing.is_signed(tagged, trusted)}
    if pinned:
        vouched.add(view.digest)
    keys = dataset_keys(found, cores, master_keys, max_age=max_key_age, grace=key_grace, vouched=vouched)
    keys.reread = lambda: wrappings_now(storage, found)
    found.check_all(keys.kek(found.core.footer_kek.id))
    footer_kek = keys.kek(view.core.footer_kek.id)
    return State(found, view, read_list(storage, view, footer_kek), keys, data, pinned)


@dataclass(frozen=True)
class Known:
    """A generation that was open before: the manifest's bytes, the core's digest. Nothing in it is secret."""

    manifest_bytes: bytes = field(repr=False)
    core_digest: str
    max_key_age: float | None
    key_grace: float
    is_pinned: bool

    @classmethod
    def of(cls, state: State) -> Known:
        """What is needed to load `state` again."""
        keys = state.keys
        return cls(state.manifest_bytes, state.view.digest, keys.max_age, keys.grace, state.is_pinned)


@_told
def load_known(storage: Storage, master_keys: MasterKeys, known: Known) -> State:
    """Load exactly this generation again, also when newer ones were committed. Everything is checked anew.

    The manifest is read from the storage only where no wrapping of the known one opens, since a re-wrap may
    have replaced them. Raises `StaleDatasetError` when the generation was removed, and what
    `load_state` raises.
    """
    found = manifest.parse(known.manifest_bytes)
    view = _view(found, known)
    if view is None:
        raise StaleDatasetError("the handle of a dataset does not fit itself", hint="open the dataset anew")
    settings = known.max_key_age, known.key_grace
    try:
        data, pinned = known.manifest_bytes, known.is_pinned
        return _checked(storage, master_keys, data, found, view, *settings, pinned=pinned)
    except (KmsError, UntrustedKeyError) as error:
        if not isinstance(error, KmsUnavailableError):
            Pins(found.core.dataset_id, min_revision=found.revision).check(read_manifest(storage)[1], view)
        raise
    except ManifestError as error:
        if error.code == "file-missing":
            check_still_there(storage, view)
        raise


def check_still_there(storage: Storage, view: TaggedCore) -> None:
    """Raise `StaleDatasetError` when a generation has left the manifest: gc may remove its files then."""
    found = read_manifest(storage)[1]
    if all(tagged.digest != view.digest for tagged in (found.head, *found.retained)):
        raise StaleDatasetError(
            f"generation {view.core.generation} of {storage.url} is gone: gc removed it, or the dataset was "
            "written anew",
            hint="open the dataset again, for the generation that is there now",
        ) from None


def _view(found: Manifest, known: Known) -> TaggedCore | None:
    return next((t for t in (found.head, *found.retained) if t.digest == known.core_digest), None)


def wrappings_now(storage: Storage, known: Manifest) -> Mapping[str, tuple[WrappedKey, ...]]:
    """The wrappings on the storage, unless they are another dataset's or older than those known.

    Not authenticated, and need not be: a KEK that they give is checked before it is used.
    """
    newer = read_manifest(storage)[1]
    same = newer.core.dataset_id == known.core.dataset_id and newer.revision > known.revision
    return newer.wrappings if same else {}


def load_keys(
    storage: Storage, master_keys: MasterKeys, *, signers: Sequence[str] | None = None
) -> tuple[bytes, Manifest, DatasetKeys]:
    """The manifest, checked, with the KEKs of all its generations. One KMS call, for the footer key.

    No file list is read. `signers` as in `load_state`. Raises what that raises.
    """
    data, found = read_manifest(storage)
    signers = master_keys.config.trust.signers if signers is None else signers
    signing.check(found.head, signers)
    cores = (*found.retained, found.head)
    vouched = [tagged.digest for tagged in cores if signing.is_signed(tagged, signers)]
    keys = dataset_keys(found, cores, master_keys, vouched=vouched)
    found.check_all(keys.kek(found.core.footer_kek.id))
    return data, found, keys


def read_list(storage: Storage, view: TaggedCore, footer_kek: Secret) -> FileList:
    """The file list of a generation, checked against its core. Raises `ManifestError`."""
    core = view.core
    try:
        sealed = storage.read(core.list_name, limit=MAX_LIST_BYTES)
    except StorageError as error:
        if error.code != "not-found":
            raise
        raise ManifestError(
            f"the file list {core.list_name} is missing",
            hint="restore it from a copy; without it the files cannot be told apart",
            code="file-missing",
        ) from None
    if not hmac.compare_digest(hashlib.sha256(sealed).digest(), core.list_sha256):
        raise ManifestError(
            f"the file list {core.list_name} is not the one the manifest commits to",
            hint="it was cut, edited or replaced: restore it from a copy you trust",
            code="file-list",
        )
    files = filelist.open_sealed(
        sealed,
        footer_kek=footer_kek,
        dataset_id=core.dataset_id,
        generation=core.generation,
        list_id=core.list_id,
    )
    check_partition_keks(files, core)
    return files
