"""The keys of one dataset: KEK <-> master key.

A `DatasetKeys` is made for one dataset and passed in, never global. It unwraps a KEK when it is first
needed, once for all threads, and checks it before it is used (commitment and core MAC).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from encpipe.audit import Audit, Facts
from encpipe.errors import (
    ConfigError,
    EncpipeError,
    IntegrityError,
    KmsError,
    KmsUnavailableError,
    ShreddedError,
    UnwrapError,
)
from encpipe.failedtries import most_telling, unvouched
from encpipe.heldkeks import Held, HeldKeks
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, is_public_key_wrap
from encpipe.kms.deadline import one_deadline
from encpipe.manifest import KekRecord
from encpipe.partitionkeks import PartitionKek, PartitionKeks, Values
from encpipe.perprocess import PerProcess

RENEWAL_PAUSE_SECONDS: Final = 5.0
"""How long an outage is believed before a KEK past its age is asked for again."""

Check = Callable[[str, Secret], None]
"""(KEK id, KEK): raises unless this is the KEK that the manifest or journal commits to."""

Reread = Callable[[], Mapping[str, Iterable[WrappedKey]]]
"""The wrappings that the storage holds now, by KEK id. Raises `EncpipeError`."""


class MasterKeySource(Protocol):
    """Where master keys come from; `encpipe.kms.MasterKeys` is one."""

    @property
    def audit(self) -> Audit:
        """The log that every unwrap and refusal is told to."""
        ...

    def get(self, uri: str, *, key_name: str) -> MasterKey:
        """The master key of a URI trusted for this key name; raises `UntrustedKeyError` for any other."""
        ...

    def rank(self, uri: str, *, key_name: str) -> int:
        """The order in which wrappings are tried."""
        ...


@dataclass(frozen=True)
class NewKek:
    """A KEK made here, with its wrappings."""

    kek: Secret
    wrappings: tuple[WrappedKey, ...]


def make_kek(context: KeyContext, master_keys: Iterable[MasterKey]) -> NewKek:
    """A random KEK, wrapped by each of `master_keys`. One KMS call for each.

    Raises `ValueError` when there is no master key: what the KEK protects would be lost.
    """
    kek = Secret.random(KEY_BYTES)
    wrappings = tuple(master.wrap(kek, aad=context) for master in master_keys)
    if not wrappings:
        raise ValueError(f"no master key wraps the KEK of key name {context.key_name!r}")
    return NewKek(kek, wrappings)


class DatasetKeys:
    """The KEKs of one dataset, unwrapped when needed and kept as long as this object lives.

    With `max_age` (seconds) a KEK is asked for again after that time: a denial then stops the reader, an
    outage is bridged for `grace` seconds more. `check` is called with every KEK before it is used. Threads
    that wait for an unwrap share its outcome, failures too. A forked child goes on with the KEKs that were
    held at the fork. A wrapping that anybody can make (`public_key_wrap`) is opened only for the KEKs in
    `vouched`: those whose commitment stands in a core, or journal, that a trusted signer signed or that was
    pinned; and `check` must compare them with just that one. Where `reread` is set and no wrapping of a KEK
    opens, it is called once: a re-wrap may have replaced them.
    """

    def __init__(
        self,
        dataset_id: str,
        records: Iterable[KekRecord],
        wrappings: Mapping[str, Iterable[WrappedKey]],
        master_keys: MasterKeySource,
        check: Check,
        *,
        max_age: float | None = None,
        grace: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        vouched: Collection[str] = (),
    ) -> None:
        self._dataset_id = dataset_id
        self._process = PerProcess(
            HeldKeks({record.id: Held(record) for record in records}), HeldKeks.inherited
        )
        self._wrappings = wrappings
        self._master_keys = master_keys
        self._check = check
        self.max_age = max_age
        self.grace = grace
        self._clock = clock
        self._vouched = frozenset(vouched)
        self.reread: Reread | None = None
        self.partitions = PartitionKeks(dataset_id)
        """The KEKs of partitions, opened under those that are held here."""

    @property
    def _held(self) -> Mapping[str, Held]:
        return self._process.get().held

    @property
    def unwraps(self) -> int:
        """KMS calls of this process that gave a KEK."""
        return self._process.get().unwraps

    @property
    def refusals(self) -> int:
        """KMS calls of this process that gave none."""
        return self._process.get().refusals

    def put(self, kek_id: str, kek: Secret) -> None:
        """Hold a KEK that was made here, so that it need not be unwrapped."""
        held = self._held[kek_id]
        with held.lock:
            held.kek, held.since = kek, self._clock()

    def new_partition_kek(self, key_name: str, parent: str, values: Values) -> PartitionKek:
        """A KEK for one partition, under the KEK `parent` of its key name, and known from then on.

        Raises what `kek` raises.
        """
        kek = self.kek(parent)
        made = PartitionKek.make(key_name, parent, kek, values, dataset_id=self._dataset_id)
        self.partitions.learn([made])
        return made

    def opened_by(self, kek_id: str) -> WrappedKey | None:
        """The wrapping that gave the KEK; None where it is not held or was made here."""
        return self._held[kek_id].opened_by

    def prove(self, kek_id: str, wrappings: Iterable[WrappedKey]) -> None:
        """Check that one of these wrappings opens the KEK; what is held counts where one of them gave it.

        No other wrapping is tried, and what is held stays. One call where the first of them opens. Raises
        what `kek` raises.
        """
        some = tuple(wrappings)
        if self.opened_by(kek_id) not in some:
            with one_deadline():
                self._open(Held(self._held[kek_id].record), some)

    def kek(self, kek_id: str) -> Secret:
        """The KEK of this id; that of a partition is opened under its parent, and asked for with it.

        Raises `UnwrapError` for an id the dataset does not have, `UntrustedKeyError` or another
        `ConfigError`, a `KmsError`, or the `IntegrityError` of `check`. Of several wrappings that fail it
        reports what may pass or be mended before a denial, and a denial before a key that is not trusted.
        """
        held, partition = self._held.get(kek_id), self.partitions.get(kek_id)
        if held is None and partition is not None:
            return self.partitions.open(partition, self.kek(partition.parent))
        if held is None:
            raise UnwrapError(f"the dataset has no KEK {kek_id[:64]!r}: the file is of another dataset")
        arrived = held.flights
        with held.lock:
            if held.failure is not None and held.flights != arrived:
                make, args = held.failure
                raise make(*args)
            if held.kek is None or self._is_due(held):
                self._ask(held)
            assert held.kek is not None
            return held.kek

    def _is_due(self, held: Held) -> bool:
        now = self._clock()
        return self.max_age is not None and now - held.since > self.max_age and now >= held.not_before

    def _ask(self, held: Held) -> None:
        held.failure = None
        try:
            held.kek = self._unwrap(held)
            held.since = self._clock()
        except EncpipeError as error:
            if held.kek is not None and isinstance(error, KmsUnavailableError) and self._bridge(held):
                return
            held.kek = None
            held.failure = error.__reduce__()
            raise
        finally:
            held.flights += 1

    def _bridge(self, held: Held) -> bool:
        """Whether a KEK past its age may serve on in an outage, and until when it is not asked for again."""
        now, end = self._clock(), held.since + (self.max_age or 0.0) + self.grace
        held.not_before = min(now + RENEWAL_PAUSE_SECONDS, end)
        return now <= end

    def _unwrap(self, held: Held) -> Secret:
        tried = self._wrappings.get(held.record.id)
        with one_deadline():
            try:
                return self._open(held, tried or ())
            except (KmsError, IntegrityError, ConfigError):
                if not self._replaced(held.record.id, tried):
                    raise
            return self._open(held, self._wrappings[held.record.id])

    def _replaced(self, kek_id: str, tried: Iterable[WrappedKey] | None) -> bool:
        """Whether the storage has other wrappings of the KEK than were tried; they count from then on."""
        try:
            newer = {} if self.reread is None else self.reread()
        except EncpipeError:
            return False
        if not newer.get(kek_id) or newer[kek_id] == tried:
            return False
        self._wrappings = {**self._wrappings, **newer}
        return True

    def _open(self, held: Held, tried: Iterable[WrappedKey]) -> Secret:
        record = held.record
        wrappings = sorted(
            tried,
            key=lambda w: self._master_keys.rank(w.master_key, key_name=record.key_name),
        )
        if record.state == "shredded" or not wrappings:
            with self._master_keys.audit.refusals("unwrap", **self._facts(record)):
                raise ShreddedError(
                    f"the keys of key name {record.key_name!r} were shredded",
                    hint="the data under them cannot be read any more, by anyone",
                )
        failures: list[EncpipeError] = []
        for wrapped in wrappings:
            try:
                kek = self._try(record, wrapped)
            except (KmsError, IntegrityError, ConfigError) as error:
                failures.append(error)
            else:
                held.opened_by = wrapped
                return kek
        raise most_telling(failures, record.key_name)

    def _try(self, record: KekRecord, wrapped: WrappedKey) -> Secret:
        audit = self._master_keys.audit
        facts: Facts = {**self._facts(record), "master_keys": (wrapped,)}
        with audit.refusals("unwrap", **facts):
            kek = self._unwrapped(record, wrapped)
        audit.record("unwrap", **facts)
        return kek

    def _facts(self, record: KekRecord) -> Facts:
        return {"dataset_id": self._dataset_id, "key_names": (record.key_name,), "kek_id": record.id}

    def _unwrapped(self, record: KekRecord, wrapped: WrappedKey) -> Secret:
        context = KeyContext(self._dataset_id, record.key_name, record.id)
        process = self._process.get()
        master = self._master_keys.get(wrapped.master_key, key_name=record.key_name)
        if is_public_key_wrap(master) and record.id not in self._vouched:
            raise unvouched(record.key_name, master.uri)
        try:
            kek = master.unwrap(wrapped, aad=context)
            if len(kek) != KEY_BYTES:
                raise UnwrapError(f"a wrapping of key name {record.key_name!r} holds no 256-bit key")
            self._check(record.id, kek)
        except EncpipeError:
            with process.count:
                process.refusals += 1
            raise
        with process.count:
            process.unwraps += 1
        return kek
