"""What can be told of a dataset, without keys and with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from encpipe import journal as journals
from encpipe import signing
from encpipe.access import Access, AnyPath, open_access
from encpipe.config import Config
from encpipe.errors import ConfigError, EncpipeError, KmsError
from encpipe.keys import WrappedKey
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.due import age_of, why_due
from encpipe.manifest import KekRecord, Manifest
from encpipe.negotiation import Negotiated
from encpipe.state import State, load_state, read_manifest


@dataclass(frozen=True)
class WrappingInfo:
    """One wrapping of a KEK. `trusted` says whether this configuration may use the master key."""

    master_key: str
    version: str
    created: str
    age_days: int
    trusted: bool


@dataclass(frozen=True)
class KekInfo:
    """One KEK: when it was made, and which master keys open it.

    `rewrap` says why `encpipe rewrap` should be run, as `Overdue.why`; empty when it need not.
    """

    key_name: str
    id: str
    created: str
    state: str
    rewrap: str
    wrappings: tuple[WrappingInfo, ...]


@dataclass(frozen=True)
class Opener:
    """What one master key opens of the newest generation: key names, and with the footer key's contents known
    the columns under them. Columns are readable only together with the footer key."""

    master_key: str
    key_names: tuple[str, ...]
    columns: tuple[str, ...]


@dataclass(frozen=True)
class SignerInfo:
    """Somebody whose signature fits the newest generation, and whether this configuration trusts him."""

    signer: str
    trusted: bool


@dataclass(frozen=True)
class Contents:
    """What only the footer key shows."""

    files: int
    rows: int
    row_groups: int
    bytes: int
    columns: tuple[tuple[str, str, str], ...]
    """(leaf path or partition column, Arrow type of the top-level column, key name), in schema order."""
    partitions: tuple[str, ...]
    partition_keks: Mapping[str, int]
    """How many KEKs of partitions each key name has; empty unless the policy has `partition_keys`."""
    policy: Mapping[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What is known of a dataset. `contents` is None when its footer key could not be had, and then nothing
    else here is authenticated; `why_no_contents` says why."""

    url: str
    dataset_id: str
    format: str
    generation: int
    revision: int
    created: str
    core_digest: str
    footer_key: str
    keks: tuple[KekInfo, ...]
    openers: tuple[Opener, ...]
    signers: tuple[SignerInfo, ...]
    retained_generations: tuple[int, ...]
    pending_writes: int
    authenticated: bool
    contents: Contents | None
    why_no_contents: str
    connection: Negotiated | None
    """With the storage, where TLS leads to it."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def inspect_dataset(
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
    use_keys: bool = True,
) -> Inspection:
    """Describe the dataset at `url`. Works without any key; with the footer key it tells the contents too.

    With `use_keys=False` no key service is called. A key that is refused or untrusted is no error here;
    damage is: raises `IntegrityError`, `StorageError`, `ConfigError`.
    """
    access = open_access(
        url, config=config, keyring=keyring, master_keys=master_keys, storage_options=storage_options
    )
    _, found = read_manifest(access.storage)
    contents, why = None, "not asked for"
    if use_keys:
        try:
            state = load_state(access.storage, access.master_keys)
            found, contents, why = state.manifest, _contents(state), ""
        except (KmsError, ConfigError) as error:
            why = error.message
    return _inspection(access, found, contents, why)


def _inspection(access: Access, found: Manifest, contents: Contents | None, why: str) -> Inspection:
    core = found.core
    return Inspection(
        url=access.storage.url,
        dataset_id=core.dataset_id,
        format="encpipe/1",
        generation=core.generation,
        revision=found.revision,
        created=core.created,
        core_digest=found.head.digest,
        footer_key=core.footer_key,
        keks=tuple(_kek_info(access, found, kek) for kek in core.keks),
        openers=_openers(found, contents),
        signers=tuple(
            SignerInfo(signer, signer in access.master_keys.config.trust.signers)
            for signer in signing.valid_signers(found.head)
        ),
        retained_generations=tuple(tagged.core.generation for tagged in found.retained),
        pending_writes=len(journals.writers(access.storage)),
        authenticated=contents is not None,
        contents=contents,
        why_no_contents=why,
        connection=_connection(access),
    )


def _connection(access: Access) -> Negotiated | None:
    try:
        return access.storage.negotiated()
    except EncpipeError:  # the manifest came from there a moment ago: whoever needs to know why asks `doctor`
        return None


def _kek_info(access: Access, found: Manifest, kek: KekRecord) -> KekInfo:
    now, wrappings = datetime.now(UTC), found.wrappings.get(kek.id, ())
    infos = tuple(
        WrappingInfo(
            w.master_key,
            w.version,
            w.created,
            age_of(w.created, now).days,
            _is_trusted(access.master_keys, w.master_key, kek.key_name),
        )
        for w in wrappings
    )
    why = _why_due(access.master_keys, kek.key_name, wrappings, now)
    return KekInfo(kek.key_name, kek.id, kek.created, kek.state, why, infos)


def _why_due(master_keys: MasterKeys, key_name: str, wrappings: tuple[WrappedKey, ...], now: datetime) -> str:
    uris = master_keys.config.keys.get(key_name)
    if not uris or not wrappings:
        return ""
    try:
        target = master_keys.get(uris[0], key_name=key_name)
        return why_due(wrappings, target, older_than=None, now=now)
    except EncpipeError:
        return ""


def _openers(found: Manifest, contents: Contents | None) -> tuple[Opener, ...]:
    names: dict[str, list[str]] = {}
    for key_name in found.core.key_names:
        for wrapped in found.wrappings.get(found.core.active(key_name).id, ()):
            names.setdefault(wrapped.master_key, []).append(key_name)
    columns = () if contents is None else contents.columns
    return tuple(
        Opener(uri, tuple(opened), tuple(column for column, _, name in columns if name in opened))
        for uri, opened in names.items()
    )


def _is_trusted(master_keys: MasterKeys, uri: str, key_name: str) -> bool:
    try:
        master_keys.get(uri, key_name=key_name)
    except EncpipeError:
        return False
    return True


def _contents(state: State) -> Contents:
    files = state.files
    schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(files.schema))
    footer_key = state.view.core.footer_key
    columns = [(leaf, _type_of(schema, leaf), name) for leaf, name in files.columns.items()]
    columns += [(name, str(schema.field(name).type), footer_key) for name in files.partitions]
    return Contents(
        files=len(files.files),
        rows=sum(entry.rows for entry in files.files),
        row_groups=sum(len(entry.row_groups) for entry in files.files),
        bytes=sum(entry.size for entry in files.files),
        columns=tuple(columns),
        partitions=files.partitions,
        partition_keks=dict(sorted(Counter(kek.key_name for kek in files.partition_keks).items())),
        policy=files.policy.as_json(),
    )


def _type_of(schema: pa.Schema, leaf: str) -> str:
    index = schema.get_field_index(leaf)
    top = schema.get_field_index(leaf.split(".")[0]) if index < 0 else index
    return str(schema.field(top).type) if top >= 0 else ""
