"""Opening a dataset for reading.

`open_dataset` checks the manifest (MACs under every key it gets hold of, pins) and the sealed file list
before it returns; each data file is checked when it is first touched. Nothing is fetched, unwrapped or
decrypted that is not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from encpipe.access import AnyPath, open_access
from encpipe.config import Config
from encpipe.dataset import Dataset, Integrity
from encpipe.errors import ManifestError
from encpipe.kms.registry import MasterKeys
from encpipe.pins import Pins, PinStore
from encpipe.projection import OnMissingKey, list_of_names
from encpipe.state import State, load_state

__all__ = ["open_dataset"]


def open_dataset(
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    on_missing_key: OnMissingKey = "error",
    expect_dataset: str | None = None,
    min_generation: int | None = None,
    min_revision: int | None = None,
    expect_core: str | None = None,
    pin_store: AnyPath | None = None,
    expect_key_names: Sequence[str] = (),
    generation: int | None = None,
    max_key_age: float | None = None,
    key_grace: float = 0.0,
    integrity: Integrity = "pages",
) -> Dataset:
    """Open a dataset for reading.

    The master keys that may open it are those the configuration trusts. `on_missing_key` says what becomes
    of columns whose key is denied, absent, shredded or not trusted by this configuration: `error` (when they
    are read), `skip` (left out) or `null` (null, and marked in the schema); of a nested column the parts
    whose key is missing are left out. It is decided here once, and never applies to outages or damage.
    `expect_*`, `min_*` and `pin_store` refuse another or an older dataset; `generation` opens a retained one.
    `expect_key_names` are unwrapped here and have to vouch for the dataset: which column falls under which
    key stands under the footer key only, so who holds that key and can write the storage could else move a
    column under it and forge it.
    `max_key_age` and `key_grace` are seconds (see `DatasetKeys`).
    `integrity="file-hash"` reads every file that is touched as a whole, into memory, and uses it only if its
    SHA-256 is the committed one. It is for readers who must not trust other holders of the dataset's keys who
    can write the storage: `pages`, the default, checks every byte it uses, under keys that those hold, too.
    Who does not trust them with the file list either names `trust.signers`.

    Raises `ConfigError`, `KmsError`, `IntegrityError` or `StorageError`.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    state = load_state(
        access.storage,
        access.master_keys,
        pins=Pins(expect_dataset, min_generation, min_revision, expect_core),
        generation=generation,
        max_key_age=max_key_age,
        key_grace=key_grace,
    )
    with access.master_keys.audit.refusals("open", dataset=access.storage.url):
        _expect(state, list_of_names(expect_key_names, "expect_key_names"))
        if pin_store is not None:
            PinStore(pin_store).check_and_record(access.storage.url, state.manifest, state.keys.kek)
    return Dataset(access, state, on_missing_key, integrity)


def _expect(state: State, key_names: Sequence[str]) -> None:
    core = state.view.core
    for name in key_names:
        if name not in core.key_names:
            raise ManifestError(
                f"this dataset has no key name {name!r}; it has: {', '.join(sorted(core.key_names))}",
                hint="check expect_key_names=; if it had this key name before, someone replaced the dataset",
            )
        state.keys.kek(core.active(name).id)
