"""Which wrappings should be made anew. No key service is called, and nothing is opened."""

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
    wrappings: Sequence[WrappedKey], target: MasterKey, *, older_than: timedelta | None, now: datetime
) -> str:
    """Why a KEK with these wrappings should be re-wrapped under `target`; empty when it need not be.

    Whether an alias points elsewhere by now is not asked. A time that cannot be read is old.
    """
    made = [wrapped for wrapped in wrappings if made_by(target, wrapped)]
    if not made:
        return "another key"
    if isinstance(target, Versioned) and all(w.version != target.newest_version() for w in made):
        return "newer version"
    if older_than is not None and all(age_of(w.created, now) > older_than for w in made):
        return "age"
    return ""


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
