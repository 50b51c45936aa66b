"""Pins: what a reader knows of a dataset from elsewhere, so that an old or another one is refused.

A manifest proves that a dataset is what its writers made, not that it is the newest they made: whoever can
write the storage can put back an old manifest with its files. A reader who pins notices. Without a pin a full
rollback goes unnoticed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from encpipe import strictjson
from encpipe.errors import (
    ConfigError,
    IntegrityError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    ManifestError,
    ShreddedError,
    StaleDatasetError,
    UntrustedKeyError,
)
from encpipe.keys import Secret
from encpipe.manifest import KekRecord, Manifest, TaggedCore, check_commitment
from encpipe.strictjson import Fields

MAX_STORE_BYTES: Final = 16 << 20
_GONE: Final = (KeyAccessDeniedError, KeyNotFoundError, ShreddedError, UntrustedKeyError)
"""A KEK that cannot be had; an outage passes."""


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

    The footer KEK is remembered, too, by id and commitment. A newer state that has another one (re-key,
    overwrite) has to follow from it: every generation since then that changed the footer KEK carries a MAC
    under the one before. An entry of an earlier version of encpipe has none, and gets it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def check_and_record(
        self, url: str, manifest: Manifest, kek: Callable[[str], Secret] | None = None
    ) -> None:
        """Raise `StaleDatasetError` for an older or another dataset; else remember this state.

        To be called after the manifest's MACs were checked. `kek` gives a KEK of the dataset by its id, and
        is called for each footer KEK that another one has followed since. Raises `ConfigError` for an
        unusable file, and the `KmsError` of `kek` in an outage.
        """
        key = canonical_url(url)
        try:
            with self._locked():
                entries = self._read()
                known = entries.get(key)
                if known is not None:
                    self._known(known, manifest).check(manifest, manifest.head)
                    self._check_follows(known, manifest, kek)
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

    def _check_follows(self, entry: Any, manifest: Manifest, kek: Callable[[str], Secret] | None) -> None:
        try:
            known = Fields(entry, what="an entry")
            if "footer_kek" not in entry:
                return
            footer = known.fields("footer_kek")
            pinned = _FooterKek(footer.hex_id("id"), footer.sha256("commitment"))
            since = known.integer("generation")
        except ManifestError as error:
            raise self._damaged(error.message) from None
        _check_chain(pinned, since, manifest, kek)

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


@dataclass(frozen=True)
class _FooterKek:
    id: str
    commitment: bytes

    @classmethod
    def of(cls, record: KekRecord) -> _FooterKek:
        return cls(record.id, record.commitment)


def _check_chain(
    pinned: _FooterKek, since: int, manifest: Manifest, kek: Callable[[str], Secret] | None
) -> None:
    """Raise `StaleDatasetError` unless the newest generation's footer KEK is `pinned`, or follows from it by
    generations that are in the manifest."""
    now = pinned
    for tagged in (*manifest.retained, manifest.head):
        found = _FooterKek.of(tagged.core.footer_kek)
        if tagged.core.generation > since and found != now:
            _check_link(now, tagged, kek)
            now = found
    if now != _FooterKek.of(manifest.core.footer_kek):
        raise _not_following(manifest.head, "it is of the generation that was pinned")


def _check_link(before: _FooterKek, tagged: TaggedCore, kek: Callable[[str], Secret] | None) -> None:
    if kek is None:
        raise _not_following(tagged, "no key is at hand")
    try:
        secret = kek(before.id)
        check_commitment(KekRecord(before.id, tagged.core.footer_key, "", before.commitment, ""), secret)
        tagged.check(before.id, secret)
    except (IntegrityError, *_GONE) as error:
        raise _not_following(tagged, error.message) from None


def _not_following(tagged: TaggedCore, why: str) -> StaleDatasetError:
    return StaleDatasetError(
        f"generation {tagged.core.generation} has another footer KEK than the one that was pinned, and does "
        f"not show that it follows it: {why}",
        hint="ask whoever re-keyed or wrote the dataset; if this is what you want to read, remove its entry "
        "from the pin store",
    )


def _state(manifest: Manifest) -> dict[str, Any]:
    footer = manifest.core.footer_kek
    return {
        "dataset_id": manifest.core.dataset_id,
        "generation": manifest.core.generation,
        "revision": manifest.revision,
        "core": manifest.head.digest,
        "footer_kek": {"id": footer.id, "commitment": footer.commitment.hex()},
    }
