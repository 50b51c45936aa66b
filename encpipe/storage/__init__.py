"""URLs to storage. `SCHEMES` shows every back end; each is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from encpipe.config import Config
from encpipe.errors import ConfigError
from encpipe.storage.base import ObjectInfo, OldVersion, Storage, UnfinishedUpload

SCHEMES: Final[Mapping[str, str]] = {
    "file": "encpipe.storage.local:LocalStorage",
    "memory": "encpipe.storage.memory:MemoryStorage",
    "s3": "encpipe.storage.s3:S3Storage",
}
"""URL scheme -> module:class; each is made with (url, options, config)."""

__all__ = ["SCHEMES", "ObjectInfo", "OldVersion", "Storage", "UnfinishedUpload", "open_storage"]


def open_storage(url: str, *, config: Config, options: Mapping[str, Any] | None = None) -> Storage:
    """The storage at `url`: a local path, `file://`, `memory://` or `s3://bucket/prefix`.

    `options` are fsspec's `storage_options`; they win over the configuration's `storage.<scheme>` table.
    Raises `ConfigError` for an unknown scheme or option. Does no I/O.
    """
    unknown = set(config.storage) - set(SCHEMES)
    if unknown:
        raise ConfigError(
            f'the configuration has a table "storage.{min(unknown)}", and there is no such storage',
            hint=f"known: {', '.join(SCHEMES)}",
            code="config-unknown-key",
        )
    scheme = url.partition("://")[0] if "://" in url else "file"
    target = SCHEMES.get(scheme)
    if target is None:
        known = "known: a local path, " + ", ".join(f"{name}://" for name in SCHEMES)
        if scheme.startswith("grpc"):
            known = "what a gateway serves (grpc+tls://) is read by encpipe head and open_gateway only"
        raise ConfigError(f"no storage for the scheme {scheme[:40]!r}", hint=known)
    module, _, name = target.partition(":")
    merged = {**config.storage.get(scheme, {}), **(options or {})}
    made: Storage = getattr(import_module(module), name)(url, merged, config)
    return made
