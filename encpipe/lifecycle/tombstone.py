"""The manifests that shred commits: a tombstone, and new generations without something. No I/O here.

A tombstone is a manifest whose footer key is `shredded`. It has one generation more than the dataset had, no
wrapping, no older generation and no file list (docs/format.md, "Tombstone"), so that no reader finds a key,
and no commit on top of what was there before can pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from encpipe import filelist, manifest
from encpipe.core import Core, KekRecord, TaggedCore
from encpipe.filelist import FileList
from encpipe.keys import Secret, WrappedKey, new_id, utc_now
from encpipe.lifecycle.keysline import kek_records
from encpipe.manifest import Manifest, Sign
from encpipe.state import State

NO_LIST: Final = "0" * 32
"""The id of the file list that a tombstone does not have; its SHA-256 is zeros, too."""

Names = Collection[str] | None
"""Key names; None for the whole dataset."""


@dataclass(frozen=True)
class Made:
    """What is to be committed: the manifest's bytes and, unless it is a tombstone, the file list it names."""

    core: Core
    data: bytes
    sealed: bytes | None = None


def is_shredded(found: Manifest, names: Names) -> bool:
    """Whether the manifest is as a shred leaves it: nothing is left in it to open these key names with."""
    doomed = doomed_keks(found, names)
    if names is None and (found.core.footer_kek.state != "shredded" or found.retained):
        return False
    active = any(kek.state == "active" for kek in found.core.keks if kek.id in doomed)
    return not active and not any(found.wrappings.get(kek_id) for kek_id in doomed)


def doomed_keks(found: Manifest, names: Names) -> dict[str, KekRecord]:
    """The KEKs of all generations that go with these key names, by id."""
    records = kek_records(found).items()
    return {kek_id: record for kek_id, record in records if names is None or record.key_name in names}


def tombstone(found: Manifest, sign: Sign | None) -> Made:
    """The tombstone of a dataset. Needs none of its keys.

    Its manifest MAC is under a key that is thrown away: there is nobody left who could check one.
    """
    core = Core(
        dataset_id=found.core.dataset_id,
        generation=found.core.generation + 1,
        commit_id=new_id(),
        created=utc_now(),
        footer_key=found.core.footer_key,
        list_id=NO_LIST,
        list_sha256=bytes(32),
        keks=tuple(_shredded(record) for record in found.core.keks),
    )
    data = manifest.build(
        core,
        revision=found.revision + 1,
        wrappings={},
        retained=(),
        keks={core.footer_kek.id: Secret.random()},
        sign=sign,
    )
    return Made(core, data)


def without(state: State, names: Collection[str], sign: Sign | None) -> Made:
    """The same data as a new generation that nothing opens these key names of; nor do the retained ones.

    Retained generations whose footer key is one of `names` leave. Raises what unwrapping the other key
    names raises: each of them has to vouch for the new core.
    """
    doomed = doomed_keks(state.manifest, names)
    return _next(
        state,
        state.files,
        keks=tuple(_shredded(kek) if kek.id in doomed else kek for kek in state.manifest.core.keks),
        wrappings={k: some for k, some in state.manifest.wrappings.items() if k not in doomed},
        retained=[tagged for tagged in state.manifest.history if tagged.core.footer_key not in names],
        sign=sign,
    )


def without_files(state: State, files: FileList, leaving: Collection[str], sign: Sign | None) -> Made:
    """A new generation with these files; older ones whose list is among `leaving` (paths) leave.

    Raises what unwrapping any key name raises.
    """
    found = state.manifest
    retained = [tagged for tagged in found.history if tagged.core.list_name not in leaving]
    return _next(state, files, keks=found.core.keks, wrappings=found.wrappings, retained=retained, sign=sign)


def _next(
    state: State,
    files: FileList,
    *,
    keks: tuple[KekRecord, ...],
    wrappings: Mapping[str, tuple[WrappedKey, ...]],
    retained: Sequence[TaggedCore],
    sign: Sign | None,
) -> Made:
    found, base = state.manifest, state.manifest.core
    opened = {kek.id: state.keys.kek(kek.id) for kek in keks if kek.state == "active"}
    generation, list_id = base.generation + 1, new_id()
    sealed = filelist.seal(
        files,
        footer_kek=opened[base.footer_kek.id],
        dataset_id=base.dataset_id,
        generation=generation,
        list_id=list_id,
    )
    core = replace(
        base,
        generation=generation,
        commit_id=new_id(),
        created=utc_now(),
        list_id=list_id,
        list_sha256=hashlib.sha256(sealed).digest(),
        keks=keks,
    )
    data = manifest.build(
        core,
        revision=found.revision + 1,
        wrappings=wrappings,
        retained=retained,
        keks=opened,
        keys_raw=found.keys_raw,
        sign=sign,
    )
    return Made(core, data, sealed)


def _shredded(record: KekRecord) -> KekRecord:
    """A KEK that only older generations used stays `retired`: at most one of a key name is anything else."""
    return replace(record, state="shredded") if record.state == "active" else record
