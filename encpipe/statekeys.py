"""The keys of some generations: which check each KEK has to pass, and which of them are vouched for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from encpipe import manifest
from encpipe.config import Config
from encpipe.errors import ConfigError
from encpipe.keyring import DatasetKeys
from encpipe.keys import Secret
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import Manifest, TaggedCore


def dataset_keys(
    found: Manifest,
    cores: Sequence[TaggedCore],
    master_keys: MasterKeys,
    *,
    max_age: float | None = None,
    grace: float = 0.0,
    vouched: Collection[str] = (),
) -> DatasetKeys:
    """The keys of some generations. Each KEK is checked against every core that names it before its use.

    `vouched` are the digests of those cores that a trusted signer signed, or that were pinned.
    """
    records = {kek.id: kek for tagged in cores for kek in tagged.core.keks}
    sure = [kek for tagged in cores if tagged.digest in vouched for kek in tagged.core.keks]

    def check(kek_id: str, kek: Secret) -> None:
        manifest.check_commitment(records[kek_id], kek)
        for tagged in cores:
            if any(record.id == kek_id and record.state == "active" for record in tagged.core.keks):
                tagged.check(kek_id, kek)

    return _ConfiguredKeys(
        master_keys.config,
        found.core.dataset_id,
        records.values(),
        found.wrappings,
        master_keys,
        check,
        max_age=max_age,
        grace=grace,
        vouched=[kek.id for kek in sure if kek.commitment == records[kek.id].commitment],
    )


class _ConfiguredKeys(DatasetKeys):
    """Says it where there was no configuration file to name the master keys."""

    def __init__(self, config: Config, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._config = config

    def kek(self, kek_id: str) -> Secret:
        try:
            return super().kek(kek_id)
        except ConfigError as error:
            raise self._config.blamed(error) from None
