"""Under which KEKs a write puts its data: those of the dataset that still fit, and new ones."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from encpipe.commit import Contents, Target
from encpipe.errors import ConfigError, KmsError, PolicyError
from encpipe.keyring import make_kek
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey, new_id, utc_now
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import KekRecord, kek_commitment
from encpipe.state import State


def check_not_weaker(base: State, contents: Contents) -> None:
    """Raise `PolicyError` `policy-weaker` when a column under a column key of `base` would fall under the
    footer key, or become a partition column: whoever reads the rest could then read it, too."""
    footer_key = contents.policy.footer_key
    for leaf, name in base.files.columns.items():
        partition = leaf in contents.partitions
        falls = name != footer_key and contents.columns.get(leaf) == footer_key
        if name == base.files.policy.footer_key or not (partition or falls):
            continue
        becomes = "a partition column" if partition else f"one under the footer key {footer_key!r}"
        raise PolicyError(
            f"column {leaf!r} is under key name {name!r} and would become {becomes}",
            hint=f"name it under its key: --columns {name}={leaf}; in Python drop_column_keys=True allows it",
            code="policy-weaker",
        )


def make_target(
    base: State | None, names: tuple[str, ...], master_keys: MasterKeys, *, append: bool
) -> tuple[Target, int]:
    """What a write to `base` commits to, with an active KEK for each of `names` (the footer key first), and
    the KMS calls it took.

    An append keeps every KEK. Any other write keeps those whose wrappings are by just the master keys that
    the configuration names for the key name; the others are retired, and a new KEK takes their place. A key
    name the configuration names no master keys for keeps its KEK. Raises `ConfigError`, `KmsError`,
    `IntegrityError`; `ShreddedError` for an append to a dataset with a shredded key.
    """
    records: list[KekRecord] = []
    keks: dict[str, Secret] = {}
    calls = 0
    wrappings = {} if base is None else dict(base.manifest.wrappings)
    if base is not None:
        before = base.keys.unwraps
        for record in base.manifest.core.keks:
            kept = record.key_name in names and (
                record.state in ("active", "shredded")
                if append
                else record.state == "active" and _fits(record, base, master_keys)
            )
            if kept:
                keks[record.id] = base.keys.kek(record.id)  # refuses a shredded one
            records.append(record if kept else replace(record, state="retired"))
        calls = base.keys.unwraps - before
    dataset_id = new_id() if base is None else base.manifest.core.dataset_id
    known = {record.key_name for record in records if record.state == "active"}
    makers = {name: master_keys.for_key_name(name) for name in names if name not in known}
    for name, masters in makers.items():
        kek_id = new_id()
        made = make_kek(KeyContext(dataset_id, name, kek_id), masters)
        calls += len(made.wrappings)
        keks[kek_id], wrappings[kek_id] = made.kek, made.wrappings
        records.append(KekRecord(kek_id, name, utc_now(), kek_commitment(kek_id, made.kek), "active"))
    return Target(dataset_id, names[0], tuple(records), wrappings, keks, base), calls


def _fits(record: KekRecord, base: State, master_keys: MasterKeys) -> bool:
    """Whether a KEK is wrapped by just the master keys configured for its key name. An alias is none of the
    keys it may stand for: where it points to may have changed."""
    if not master_keys.config.keys.get(record.key_name):
        return True
    wanted = {master.uri for master in master_keys.for_key_name(record.key_name)}
    return wanted == {wrapped.master_key for wrapped in base.manifest.wrappings.get(record.id, ())}


def rekey_target(
    base: State, names: Sequence[str], to: Mapping[str, Sequence[str]], master_keys: MasterKeys
) -> tuple[Target, int]:
    """What a re-key of `names` commits to: a new active KEK for each, the others kept, and the KMS calls.

    All KEKs of the dataset are unwrapped, since its files are read. Raises what `rekey_masters` and wrapping
    raise; `ShreddedError` where a key name was shredded.
    """
    core, before = base.manifest.core, base.keys.unwraps
    current = {name: core.active(name) for name in core.key_names}
    keks = {record.id: base.keys.kek(record.id) for record in current.values()}
    calls = base.keys.unwraps - before
    records, wrappings = list(retiring(core.keks, names)), dict(base.manifest.wrappings)
    for name in names:
        kek_id, old = new_id(), current[name].id
        with _naming_key(name):
            masters = rekey_masters(name, base.manifest.wrappings[old], to, master_keys)
            made = make_kek(KeyContext(core.dataset_id, name, kek_id), masters)
        calls += len(made.wrappings)
        del keks[old]
        keks[kek_id], wrappings[kek_id] = made.kek, made.wrappings
        records.append(KekRecord(kek_id, name, utc_now(), kek_commitment(kek_id, made.kek), "active"))
    return Target(core.dataset_id, core.footer_key, tuple(records), wrappings, keks, base), calls


def rewrapped(target: Target, to: Mapping[str, Sequence[str]], master_keys: MasterKeys) -> tuple[Target, int]:
    """A re-key's target whose new KEKs are wrapped by the master keys that wrap the old ones in its base: one
    that was revoked meanwhile opens no new KEK either. And the KMS calls."""
    base = target.base
    assert base is not None
    core, wrappings, calls = base.manifest.core, dict(target.wrappings), 0
    known = {record.id for record in core.keks}
    for record in target.records:
        name = record.key_name
        if record.id in known or name in to:
            continue
        made = {wrapped.master_key: wrapped for wrapped in wrappings[record.id]}
        with _naming_key(name):
            masters = rekey_masters(name, base.manifest.wrappings[core.active(name).id], to, master_keys)
            context = KeyContext(core.dataset_id, name, record.id)
            some = []
            for master in masters:
                if master.uri not in made:
                    made[master.uri] = master.wrap(target.keks[record.id], aad=context)
                    calls += 1
                some.append(made[master.uri])
        wrappings[record.id] = tuple(some)
    return replace(target, wrappings=wrappings), calls


def rekey_masters(
    name: str, wrappings: Iterable[WrappedKey], to: Mapping[str, Sequence[str]], master_keys: MasterKeys
) -> tuple[MasterKey, ...]:
    """What wraps a new KEK of a key name: the master keys `to` names, else all that wrap it today.

    Raises `ConfigError`, `UntrustedKeyError`.
    """
    uris = to.get(name) or dict.fromkeys(wrapped.master_key for wrapped in wrappings)
    return tuple(master_keys.get(uri, key_name=name) for uri in uris)


def retiring(keks: Iterable[KekRecord], names: Collection[str]) -> tuple[KekRecord, ...]:
    """The KEKs of a dataset when those of `names` are replaced."""
    return tuple(
        replace(record, state="retired") if record.key_name in names and record.state == "active" else record
        for record in keks
    )


@contextlib.contextmanager
def _naming_key(name: str) -> Iterator[None]:
    """Say in an error how to name other master keys."""
    try:
        yield
    except (ConfigError, KmsError) as error:
        how = f"or name the master keys that are to open key name {name!r} from now on: --key {name}=URI"
        error.hint = f"{error.hint}; {how}" if error.hint else how
        raise
