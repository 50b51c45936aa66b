"""Destroying the master keys that wrapped what is shredded, after all that stays has moved to others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from encpipe.access import Access, AnyPath, open_access
from encpipe.audit import Event
from encpipe.errors import ConfigError, EncpipeError, KeyNotFoundError
from encpipe.keys import MasterKey, WrappedKey
from encpipe.kms.base import Destroyable
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.change import change_keys
from encpipe.lifecycle.keysline import OneKek
from encpipe.lifecycle.shredreport import RetiredMaster

_NAMED_HERE: Final = "retired"
"""Key name under which a master key is looked up that is trusted by being named to be destroyed."""


class Retirement:
    """The master keys of one call that are to be destroyed: old URI -> new URI, or "" where nothing moves."""

    def __init__(self, access: Access, moves: Mapping[str, str], also: Sequence[AnyPath]) -> None:
        self._access, self._moves, self._also = access, dict(moves), tuple(also)
        self._rewrapped: list[str] = []
        self.notes: list[str] = []

    def check(self) -> None:
        """Raise `ConfigError` for a master key that cannot be destroyed from here, and what its service says.

        One that is gone already is none of the faults: a shred before this one may have destroyed it.
        """
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
            with contextlib.suppress(KeyNotFoundError):
                self._destroyable(old).check_destroyable()

    def rewrap(self, key_names: Sequence[str]) -> None:
        """Move these key names of the dataset, and all of the other datasets, to the new master keys.

        Raises as `rewrap` does. Nothing is destroyed by then.
        """
        if not self._moves:
            return
        if key_names:
            self._move(self._access, key_names)
        for url in self._also:
            with self._other(url) as access:
                self._move(access, None)

    def destroy(self) -> tuple[RetiredMaster, ...]:
        """Destroy them, one after the other. What fails is told, not raised."""
        return tuple(self._destroy(old, new) for old, new in self._moves.items())

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
            self._rewrapped.append(report.url)
        self.notes += [
            f"{report.url}: {left.place} has a wrapping by {left.master_key} ({left.why})"
            for left in report.leftovers
            if left.master_key in self._moves
        ]

    def _destroy(self, old: str, new: str) -> RetiredMaster:
        audit = self._access.master_keys.audit
        retired = RetiredMaster(old, new, tuple(self._rewrapped))
        try:
            with audit.attempt("shred", how="master-key", target=old):
                done = self._destroyable(old).destroy()
        except KeyNotFoundError:
            return retired
        except EncpipeError as error:
            return replace(retired, failed=error.message)
        return replace(retired, until=done.until, beyond=done.beyond)


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
        again = {wrapped.master_key for wrapped in fresh}
        stay = (w for w in kek.wrappings if w not in leave and w.master_key not in again)
        return (*fresh, *stay)
