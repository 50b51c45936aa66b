"""Under which KEKs each file is: those that all files share, or those of its partition."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from encpipe.core import PARTITION_KEKS, Core
from encpipe.errors import ManifestError, UnwrapError
from encpipe.filelist import FileEntry, FileList
from encpipe.keyring import DatasetKeys
from encpipe.parquet import Layout
from encpipe.partitionkeks import PartitionKek, Values


class Layouts:
    """The layout of each file of a generation, for readers."""

    def __init__(self, shared: Layout, partition_keks: Iterable[PartitionKek]) -> None:
        self.shared = shared
        self._names = {kek.id: kek.key_name for kek in partition_keks}

    def of(self, entry: FileEntry) -> Layout:
        """That of one file. Raises `UnwrapError` for one of another generation's list."""
        if not entry.partition_keks:
            return self.shared
        if not self._names.keys() >= set(entry.partition_keks):
            raise UnwrapError(f"file {entry.path} is under partition KEKs that its generation does not have")
        return replace(self.shared, keks={self._names[kek_id]: kek_id for kek_id in entry.partition_keks})


class NewLayouts:
    """The layout of each file that a write makes.

    Where the policy has `partition_keys` (`columns` here) each combination of their values gets a KEK for
    each key name: one of those `known` whose parent is in use, else a new one, made when its first file is
    begun. No key service is called. Safe to use from several threads.
    """

    def __init__(
        self,
        shared: Layout,
        keys: DatasetKeys,
        *,
        columns: tuple[str, ...] = (),
        known: Iterable[PartitionKek] = (),
    ) -> None:
        self.shared = shared
        self._keys, self._columns = keys, columns
        self._lock = threading.Lock()
        self._found: dict[tuple[str, tuple[str | None, ...]], PartitionKek] = {}
        self._made: dict[str, PartitionKek] = {}
        self._add(known)

    def _add(self, keks: Iterable[PartitionKek]) -> None:
        keks = [kek for kek in keks if self.shared.keks.get(kek.key_name) == kek.parent]
        self._keys.partitions.learn(keks)
        for kek in keks:
            if set(kek.partition) == set(self._columns):
                self._found.setdefault((kek.key_name, self._values(kek.partition)), kek)

    def _values(self, partition: Values) -> tuple[str | None, ...]:
        return tuple(partition[column] for column in self._columns)

    def resume(self, made: Iterable[PartitionKek]) -> None:
        """Take up what an earlier run of this write made."""
        made = tuple(made)
        with self._lock:
            self._made.update((kek.id, kek) for kek in made)
            self._add(made)

    def of(self, partition: Values) -> tuple[Layout, tuple[str, ...]]:
        """The layout of a file with these partition values, and the ids of its partition KEKs, if any."""
        if not self._columns:
            return self.shared, ()
        with self._lock:
            keks = {name: self._kek(name, partition).id for name in sorted(self.shared.keks)}
        return replace(self.shared, keks=keks), tuple(keks.values())

    def _kek(self, key_name: str, partition: Values) -> PartitionKek:
        place = key_name, self._values(partition)
        if place not in self._found:
            parent, values = self.shared.keks[key_name], dict(zip(self._columns, place[1], strict=True))
            kek = self._keys.new_partition_kek(key_name, parent, values)
            self._found[place] = self._made[kek.id] = kek
        return self._found[place]

    def made(self, kek_ids: Iterable[str]) -> tuple[PartitionKek, ...]:
        """Those of these partition KEKs that this write made."""
        return tuple(self._made[kek_id] for kek_id in kek_ids if kek_id in self._made)


def check_partition_keks(files: FileList, core: Core) -> None:
    """Raise `ManifestError` unless the core tells of partition KEKs, and each is wrapped by the KEK that its
    key name uses."""
    wrapped = all(kek.parent == core.active(kek.key_name).id for kek in files.partition_keks)
    if bool(files.policy.partition_keys) != (PARTITION_KEKS in core.requires) or not wrapped:
        raise ManifestError(
            f"the file list {core.list_name} has other partition KEKs than its manifest goes with",
            hint="restore both from one copy that you trust",
            code="file-list",
        )
