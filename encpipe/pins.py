"""Pins: what a reader knows of a dataset from elsewhere, so that an old or another one is refused.

A manifest proves that a dataset is what its writers made, not that it is the newest they made: whoever can
write the storage can put back an old manifest with its files. A reader who pins notices. Without a pin a full
rollback goes unnoticed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from encpipe import strictjson
from encpipe.errors import ConfigError, ManifestError, StaleDatasetError
from encpipe.manifest import Manifest, TaggedCore
from encpipe.strictjson import Fields

MAX_STORE_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class Pins:
    """What must be true of the dataset that is opened; None leaves a thing open.

    `expect_dataset` is the dataset id, `expect_core` the core's SHA-256 (hex); `min_generation` and
    `min_revision` are the least that the manifest may show. Where a retained generation is opened,
    `min_generation` and `expect_core` hold for that one too.
    """

    expect_dataset: str | None = None
    min_generation: int | None = None
    min_revision: int | None = None
    expect_core: str | None = None

    def check(self, manifest: Manifest, view: TaggedCore) -> None:
        """Raise `StaleDatasetError` when the manifest is not what was pinned."""
        core, opened = manifest.core, view.core.generation
        if self.expect_dataset is not None and core.dataset_id != self.expect_dataset:
            _refuse(f"this is dataset {core.dataset_id}, not the pinned {self.expect_dataset}")
        if self.min_generation is not None and core.generation < self.min_generation:
            _refuse(f"this is generation {core.generation}, older than the pinned {self.min_generation}")
        if self.min_generation is not None and opened < self.min_generation:
            raise StaleDatasetError(
                f"generation {opened} is asked for, older than the pinned {self.min_generation}",
                hint="if this is what you want to read, change the pin",
            )
        if self.min_revision is not None and manifest.revision < self.min_revision:
            _refuse(f"this is revision {manifest.revision}, older than the pinned {self.min_revision}")
        if self.expect_core is not None and view.digest != self.expect_core:
            _refuse(f"the core has the digest {view.digest}, not the pinned {self.expect_core}")


def _refuse(what: str) -> None:
    raise StaleDatasetError(
        f"{what}: the dataset was rolled back or replaced",
        hint="if this is what you want to read, change the pin",
    )


def canonical_url(url: str) -> str:
    """One spelling for all that name one place, so that another spelling is no way around a pin.

    For a local path or `file://` the absolute path with symbolic links followed, else `scheme://` and what
    follows without empty parts: no double and no trailing slash. Pure but for looking up symbolic links.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        return f"{scheme}://{'/'.join(filter(None, rest.split('/')))}"
    return os.path.realpath(Path(rest if separator else url).expanduser())


class PinStore:
    """A local file that remembers the newest state seen of each dataset (trust on first use).

    Keyed by `canonical_url`: the first open records dataset id, generation, revision and core; a later open
    of the same place that shows another dataset, an older state, or the same generation with another core is
    refused. A bucket of the same name at another endpoint is the same place.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def check_and_record(self, url: str, manifest: Manifest) -> None:
        """Raise `StaleDatasetError` for an older or another dataset; else remember this state.

        To be called after the manifest's MACs were checked. Raises `ConfigError` for an unusable file.
        """
        key = canonical_url(url)
        try:
            with self._locked():
                entries = self._read()
                known = entries.get(key)
                if known is not None:
                    self._known(known, manifest).check(manifest, manifest.head)
                state = _state(manifest)
                if known != state:
                    self._write({**entries, key: state})
        except OSError as error:
            raise ConfigError(
                f"the pin store {self._path} cannot be used: {error.strerror}", hint="name a writable file"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(self._path.name + ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, Any]:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_STORE_BYTES + 1)
        except FileNotFoundError:
            return {}
        if len(data) > MAX_STORE_BYTES:
            raise self._damaged(f"is longer than {MAX_STORE_BYTES} bytes")
        try:
            return strictjson.loads(data, what="it")
        except ManifestError as error:
            raise self._damaged(error.message) from None

    def _known(self, entry: Any, manifest: Manifest) -> Pins:
        try:
            known = Fields(entry, what="an entry")
            generation = known.integer("generation")
            same_generation = manifest.core.generation == generation
            return Pins(
                expect_dataset=known.hex_id("dataset_id"),
                min_generation=generation,
                min_revision=known.integer("revision"),
                expect_core=known.sha256("core").hex() if same_generation else None,
            )
        except ManifestError as error:
            raise self._damaged(error.message) from None

    def _damaged(self, why: str) -> ConfigError:
        return ConfigError(
            f"the pin store {self._path} is damaged: {why}",
            hint="restore it, or remove it and trust what is there now",
        )

    def _write(self, entries: dict[str, Any]) -> None:
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        with fresh.open("wb") as file:
            file.write(strictjson.dumps(entries))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)


def _state(manifest: Manifest) -> dict[str, Any]:
    return {
        "dataset_id": manifest.core.dataset_id,
        "generation": manifest.core.generation,
        "revision": manifest.revision,
        "core": manifest.head.digest,
    }
