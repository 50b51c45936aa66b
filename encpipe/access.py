"""What every operation on a dataset starts from: configuration, master keys and storage, made once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encpipe.config import Config, load_config
from encpipe.kms.registry import MasterKeys
from encpipe.storage import Storage, open_storage

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Access:
    """One dataset's URL with what is needed to work on it."""

    config: Config
    master_keys: MasterKeys
    storage: Storage


def open_access(
    url: AnyPath,
    *,
    config: Config | AnyPath | None = None,
    keyring: AnyPath | None = None,
    master_keys: MasterKeys | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Access:
    """Resolve the keyword arguments that `open_dataset`, `write_dataset` and the others share.

    `config` is a `Config`, the path of one, or None for the search order of the command line; `keyring` is
    the path of a local keyring and wins over the configuration's; `master_keys` brings ready key services.
    Raises `ConfigError`. Does no network I/O.
    """
    settings = resolve_config(config, keyring=keyring)
    keys = master_keys or MasterKeys(settings)
    return Access(settings, keys, open_storage(os.fspath(url), config=settings, options=storage_options))


def resolve_config(config: Config | AnyPath | None, *, keyring: AnyPath | None = None) -> Config:
    """The configuration that an argument names. Raises `ConfigError`."""
    settings = config if isinstance(config, Config) else load_config(Path(config) if config else None)
    if keyring is None:
        return settings
    return replace(settings, keyring=replace(settings.keyring, path=Path(keyring)))


def overlap(one: AnyPath, other: AnyPath) -> bool:
    """Whether two paths or URLs are the same place, or one lies in the other; symbolic links are followed."""
    first, second = _parts(os.fspath(one)), _parts(os.fspath(other))
    shorter = min(len(first), len(second))
    return first[:shorter] == second[:shorter]


def _parts(url: str) -> list[str]:
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        return [scheme, *filter(None, rest.split("/"))]
    path = rest if separator else url
    return ["file", *filter(None, os.path.realpath(Path(path).expanduser()).split("/"))]
