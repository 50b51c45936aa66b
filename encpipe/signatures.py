"""Signing a generation that is there already, and telling who signed it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from encpipe import manifest, signing
from encpipe.access import Access, AnyPath, open_access
from encpipe.audit import Facts
from encpipe.config import Config
from encpipe.errors import ConflictError, EncpipeError
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import Core, Manifest
from encpipe.pins import Pins
from encpipe.signing import SigningKey, writer_signing
from encpipe.state import MANIFEST_PATH, State, load_state

__all__ = ["SignReport", "sign_dataset"]


@dataclass(frozen=True)
class SignReport:
    """What was signed. `signers` are all whose signatures fit now; `revision` is that of the manifest, which
    counts up unless `signer` had signed this generation before."""

    url: str
    dataset_id: str
    generation: int
    core_digest: str
    revision: int
    signer: str
    signers: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def sign_dataset(
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    generation: int | None = None,
    expect_dataset: str | None = None,
    expect_core: str | None = None,
) -> SignReport:
    """Sign the newest generation of the dataset at `url`, or the retained one of this number.

    Signs with the configuration's signing key whatever holders of all its key names made: that this is what
    you mean to vouch for, `verify` before and `expect_core` have to tell. Needs every key name of the
    generation; checks the core MAC under each and the file list, and no data file. One conditional
    replacement of the manifest; the core stays byte for byte, and so do signatures of others.

    Raises `ConfigError` (`config-missing` without a signing key), `KmsError`, `IntegrityError`,
    `StorageError` (`ConflictError` when another writer was first). After an error nothing is changed.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    with contextlib.closing(access.storage):
        key = writer_signing(access.master_keys).key
        if key is None:
            raise signing.missing_key()
        pins = Pins(expect_dataset=expect_dataset, expect_core=expect_core)
        state = load_state(access.storage, access.master_keys, pins=pins, generation=generation, signers=())
        for record in map(state.view.core.active, state.view.core.key_names):
            if record.state != "shredded":
                state.keys.kek(record.id)  # checks the core MAC under it
        known = signing.valid_signers(state.view)
        revision = state.manifest.revision
        core = state.view.core
        if key.signer not in known:
            revision, known = revision + 1, (*known, key.signer)
            with access.master_keys.audit.attempt("sign", **_told(access, core, revision, key.signer)):
                _commit(access, state, key)
        return SignReport(
            access.storage.url,
            core.dataset_id,
            core.generation,
            state.view.digest,
            revision,
            key.signer,
            known,
        )


def _told(access: Access, core: Core, revision: int, signer: str) -> Facts:
    return {
        "how": signer,
        "dataset": access.storage.url,
        "dataset_id": core.dataset_id,
        "generation": core.generation,
        "revision": revision,
    }


def _commit(access: Access, state: State, key: SigningKey) -> None:
    found, digest = state.manifest, state.view.digest
    signed = replace(state.view, signatures=signing.add(state.view, key))
    head, *older = (signed if tagged.digest == digest else tagged for tagged in (found.head, *found.retained))
    data = manifest.rebuild(
        replace(found, head=head),
        revision=found.revision + 1,
        wrappings=found.wrappings,
        retained=older,
        footer_kek=state.keys.kek(found.core.footer_kek.id),
    )

    def check(current: bytes | None) -> None:
        if current != state.manifest_bytes:
            raise ConflictError(
                "another writer committed to the dataset in the meantime",
                hint="nothing was changed; run the command again",
            )

    access.storage.commit(
        MANIFEST_PATH, data, check=check, is_ours=lambda stored: _is_signed(stored, digest, key.signer)
    )


def _is_signed(stored: bytes, digest: str, signer: str) -> bool:
    try:
        found: Manifest = manifest.parse(stored)
    except EncpipeError:
        return False
    views = (tagged for tagged in (found.head, *found.retained) if tagged.digest == digest)
    return any(signer in signing.valid_signers(view) for view in views)
