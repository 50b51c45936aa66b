"""Destroying the master keys that wrapped what is shredded, after all that stays has moved to others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from encpipe.access import Access, AnyPath, open_access, overlap
from encpipe.audit import Event
from encpipe.errors import ConfigError, ConflictError, EncpipeError, KeyNotFoundError
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey, new_id
from encpipe.kms.base import Destroyable
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.change import change_keys
from encpipe.lifecycle.keysline import OneKek
from encpipe.lifecycle.shredchecks import Mark, may_be_one, places_under, wrapped_by
from encpipe.lifecycle.shredreport import RetiredMaster
from encpipe.state import read_manifest

_NAMED_HERE: Final = "retired"
"""Key name under which a master key is looked up that is trusted by being named to be destroyed."""


TRIES: Final = 3
"""How often what stays is moved once more before a master key is left undestroyed."""


class Retirement:
    """The master keys of one call that are to be destroyed: old URI -> new URI, or "" where nothing moves."""

    def __init__(self, access: Access, moves: Mapping[str, str], also: Sequence[AnyPath]) -> None:
        self._access, self._moves, self._also = access, dict(moves), tuple(also)
        self._mark = Mark(access.storage)
        self._rewrapped: dict[str, None] = {}
        self._told: dict[str, None] = {}

    @property
    def uris(self) -> tuple[str, ...]:
        """The master keys that are to be destroyed."""
        return tuple(self._moves)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was met, for people to read."""
        return tuple(self._told)

    def check(
        self, dataset_id: str, wrapped: Collection[str], staying: Collection[str], *, again: bool
    ) -> None:
        """Raise `ConfigError` for a master key that cannot be destroyed from here or that is none of these
        datasets', and what its service says.

        `wrapped` are those that wrap KEKs of the dataset, `staying` those of them under which some stay. One
        that is gone already is no fault where the dataset is shredded, `again`: a run before destroyed it.
        A new master key that does not wrap is refused as its service does.
        """
        self._check_use()
        if not self._moves:
            return
        others: set[str] = set()
        for url in self._also:
            with self._other(url) as access:
                others |= wrapped_by(read_manifest(access.storage)[1])
        self._check_apart({*staying, *others})
        self._check_new(dataset_id)
        known = {*wrapped, *others, *self._mark.read(dataset_id)}
        for old in self._moves:
            there = True
            try:
                self._destroyable(old).check_destroyable()
            except KeyNotFoundError:
                there = False
            if old not in known and (there or not again):
                raise ConfigError(
                    f"{old} wraps nothing of this dataset" + (", nor of the others" if self._also else ""),
                    hint="`encpipe inspect` shows the master keys as they are to be named; one that wrapped "
                    "it before is destroyed by the tools of its service (docs/kms)",
                    code="usage",
                )

    def _check_use(self) -> None:
        if self._also and not self._moves:
            raise ConfigError("other datasets move only where a master key is retired", code="usage")
        for old, new in self._moves.items():
            if new in self._moves:
                raise ConfigError(f"{new!r} is to be destroyed itself", hint="name another one", code="usage")
            if self._also and not new:
                raise ConfigError(
                    f"nothing says what the other datasets move to from {old}",
                    hint="name it: --retire-master OLD=NEW",
                    code="usage",
                )
        for url in self._also:
            if overlap(url, self._access.place):
                raise ConfigError(
                    f"{os.fspath(url)} is what is to be shredded",
                    hint="--also is for other datasets; what stays of this one moves anyway",
                    code="usage",
                )

    def _check_new(self, dataset_id: str) -> None:
        """Wrap a key made up for it by each new master key, before anything is changed. One call each."""
        for uri in dict.fromkeys(filter(None, self._moves.values())):
            master = self._access.master_keys.trusting({_NAMED_HERE: (uri,)}).get(uri, key_name=_NAMED_HERE)
            master.wrap(Secret.random(), aad=KeyContext(dataset_id, _NAMED_HERE, new_id()))

    def _check_apart(self, staying: Collection[str]) -> None:
        """Two URIs that may name one key would let what moved, or never moved, be lost with it."""
        for old in self._moves:
            for other in {*self._moves, *self._moves.values(), *staying}:
                if other != old and may_be_one(other, old):
                    raise ConfigError(
                        f"{other} and {old} may be one master key",
                        hint="name keys of AWS KMS by ARN; re-wrap what is under another spelling first "
                        "(encpipe rewrap)",
                        code="usage",
                    )

    def begin(self, dataset_id: str, key_names: Sequence[str]) -> None:
        """Move these key names of the dataset, and all of the other datasets, to the new master keys.

        Raises as `rewrap` does, and what the storage raises. Nothing is destroyed by then; a mark tells the
        next run what is to be.
        """
        if not self._moves:
            return
        if key_names:
            self._move(self._access, key_names)
        for url in self._also:
            with self._other(url) as access:
                self._move(access, None)
        self._mark.write(dataset_id, self.uris)

    def destroy(self) -> tuple[RetiredMaster, ...]:
        """Destroy them, one after the other. What fails is told, not raised."""
        done = tuple(self._destroy(old, new) for old, new in self._moves.items())
        if done and all(master.is_gone or master.missing for master in done):
            self._mark.remove()
        return done

    def planned(self) -> tuple[RetiredMaster, ...]:
        """What a dry run tells."""
        return tuple(RetiredMaster(old, new, (), failed="a dry run") for old, new in self._moves.items())

    def _destroyable(self, uri: str) -> Destroyable:
        master: MasterKey = self._access.master_keys.trusting({_NAMED_HERE: (uri,)}).get(
            uri, key_name=_NAMED_HERE
        )
        if not isinstance(master, Destroyable):
            raise ConfigError(
                f"{uri} cannot be destroyed from here",
                hint="destroy it by the tools of its service once shred has run without it (docs/kms)",
                code="config",
            )
        return master

    @contextlib.contextmanager
    def _other(self, url: AnyPath) -> Iterator[Access]:
        ours = self._access
        access = open_access(
            url, config=ours.config, master_keys=ours.master_keys, storage_options=ours.options
        )
        with contextlib.closing(access.storage):
            yield access

    def _move(self, access: Access, key_names: Sequence[str] | None) -> None:
        edit = _Move(access.master_keys, self._moves)
        report = change_keys(access, access.master_keys, edit, key_names, dry_run=False)
        if report.changes:
            self._rewrapped[report.url] = None
        for left in report.leftovers:
            if left.master_key in self._moves:
                note = f"{report.url}: {left.place} has a wrapping by {left.master_key} ({left.why})"
                self._told[note] = None

    def _destroy(self, old: str, new: str) -> RetiredMaster:
        audit = self._access.master_keys.audit
        retired = RetiredMaster(old, new, ())
        try:
            self._settle_all(old)
        except EncpipeError as error:
            return replace(retired, rewrapped=tuple(self._rewrapped), failed=error.message)
        retired = replace(retired, rewrapped=tuple(self._rewrapped))
        try:
            with audit.attempt("shred", how="master-key", target=old):
                done = self._destroyable(old).destroy()
        except KeyNotFoundError:
            return replace(retired, missing=True)
        except EncpipeError as error:
            return replace(retired, failed=error.message)
        return replace(retired, until=done.until, beyond=done.beyond)

    def _settle_all(self, old: str) -> None:
        self._settle(self._access, old)
        for url in self._also:
            with self._other(url) as access:
                self._settle(access, old)

    def _settle(self, access: Access, old: str) -> None:
        """Move once more what writers that still name the master key wrapped by it since. Raises what moving
        raises, and `ConflictError` where something is under it even then."""
        places: list[str] = []
        for n in range(TRIES + 1):
            places = places_under(access.storage, old)
            if not places:
                return
            if n < TRIES:
                self._move(access, None)
        raise ConflictError(
            f"{access.storage.url}: {', '.join(places)}: still under it",
            hint="have writers name another master key and end; then run the command again",
        )


class _Move:
    """The edit that puts a wrapping by the new master key in the place of that by the old one."""

    event: Event = "rewrap"

    def __init__(self, master_keys: MasterKeys, moves: Mapping[str, str]) -> None:
        self._master_keys, self._moves = master_keys, moves
        self.wraps = 0

    def __call__(self, kek: OneKek) -> tuple[WrappedKey, ...]:
        name = kek.record.key_name
        leave = [wrapped for wrapped in kek.wrappings if wrapped.master_key in self._moves]
        if not leave:
            return kek.wrappings
        fresh = []
        for uri in dict.fromkeys(self._moves[wrapped.master_key] for wrapped in leave):
            if not uri:
                raise ConfigError(
                    f"key name {name!r} stays, and is wrapped by a master key that is to be destroyed",
                    hint="name the one it moves to: --retire-master OLD=NEW",
                    code="usage",
                )
            master = self._master_keys.trusting({name: (uri,)}).get(uri, key_name=name)
            fresh.append(master.wrap(kek.open()[0], aad=kek.context))
            self.wraps += 1
            if any(may_be_one(fresh[-1].master_key, old) for old in self._moves):
                raise ConfigError(
                    f"{uri} is {fresh[-1].master_key}, which is to be destroyed itself",
                    hint="name another one",
                    code="usage",
                )
        again = {wrapped.master_key for wrapped in fresh}
        stay = (w for w in kek.wrappings if w not in leave and w.master_key not in again)
        return (*fresh, *stay)
