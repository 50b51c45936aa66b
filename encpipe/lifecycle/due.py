"""Which wrappings should be made anew. Nothing is opened, and no key service called unless it is to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from encpipe.keys import MasterKey, WrappedKey


@runtime_checkable
class Versioned(Protocol):
    """A master key that can tell its newest version without a call to a service."""

    def newest_version(self) -> str:
        """As a wrapping made now would have it. Raises `ConfigError`, `KmsError`."""
        ...


@runtime_checkable
class TellsVersion(Protocol):
    """A master key whose service tells its newest version when it is asked."""

    def ask_newest_version(self) -> str:
        """As a wrapping made now would have it. One call, which needs a permission of its own.

        Raises `ConfigError`, `KmsError`.
        """
        ...


@runtime_checkable
class Aliased(Protocol):
    """A master key whose URI may stand for others: an alias."""

    def may_have_made(self, wrapped: WrappedKey) -> bool:
        """Whether the wrapping may be by what the URI stands for. No call to a service."""
        ...


@dataclass(frozen=True)
class Overdue:
    """A KEK to re-wrap, and why: `another key`, `newer version` or `age`.

    `master_key`, `version` and `created` are those of its wrapping under the master key to wrap with, else of
    its first one.
    """

    key_name: str
    kek_id: str
    master_key: str
    version: str
    created: str
    why: str


def why_due(
    wrappings: Sequence[WrappedKey],
    target: MasterKey,
    *,
    older_than: timedelta | None,
    now: datetime,
    ask_services: bool = False,
) -> str:
    """Why a KEK with these wrappings should be re-wrapped under `target`; empty when it need not be.

    With `ask_services` a master key that cannot tell its newest version by itself is asked for it. Whether an
    alias points elsewhere by now is not asked. A time that cannot be read is old.
    """
    made = [wrapped for wrapped in wrappings if made_by(target, wrapped)]
    if not made:
        return "another key"
    newest = _newest(target, ask=ask_services)
    if newest is not None and all(wrapped.version != newest for wrapped in made):
        return "newer version"
    if older_than is not None and all(age_of(w.created, now) > older_than for w in made):
        return "age"
    return ""


def _newest(target: MasterKey, *, ask: bool) -> str | None:
    """The version that wraps now; None where it is not known."""
    if isinstance(target, Versioned):
        return target.newest_version()
    return target.ask_newest_version() if ask and isinstance(target, TellsVersion) else None


def made_by(master_key: MasterKey, wrapped: WrappedKey) -> bool:
    """Whether a wrapping is by this master key, or may be where its URI is an alias."""
    return wrapped.master_key == master_key.uri or (
        isinstance(master_key, Aliased) and master_key.may_have_made(wrapped)
    )


def age_of(created: str, now: datetime) -> timedelta:
    """How long ago a time of the format is; what cannot be read is as old as can be."""
    try:
        return now - datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return timedelta.max


def shown(wrappings: Iterable[WrappedKey], target: MasterKey) -> WrappedKey:
    """The wrapping that an `Overdue` names."""
    some = tuple(wrappings)
    return next((wrapped for wrapped in some if made_by(target, wrapped)), some[0])
