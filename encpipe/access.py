"""What every operation on a dataset starts from: configuration, master keys and storage, made once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from encpipe.config import Config, SigningConfig, load_config
from encpipe.errors import ConfigError, EncpipeError
from encpipe.kms.registry import MasterKeys
from encpipe.storage import Storage, open_storage

AnyPath = str | os.PathLike[str]

_SECRET_OPTION: Final = re.compile(r"(.*[_-])?(secret|token|password|passphrase|pin)([_-]key|[_-]id)?")
_REFERENCE: Final = re.compile(r"(env|file|key-env|key-file):.*|prompt")
"""A value that says where a secret is found, as in `keyring.unlock`."""


@dataclass(frozen=True)
class Access:
    """One dataset's URL with what is needed to work on it.

    `place` is the URL as another process can use it: a local path is absolute. A pickle holds configuration
    and options, and no secret: with credentials among them it raises `EncpipeError` `unsupported`. The other
    process finds its own, as this one would without options.
    """

    config: Config
    master_keys: MasterKeys
    storage: Storage
    place: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def again(self) -> Access:
        """The same with connections of its own, for a forked child or a copy. No I/O."""
        return replace(self, storage=open_storage(self.place, config=self.config, options=self.options))

    def __reduce__(self) -> tuple[Callable[..., Access], tuple[Any, ...]]:
        for found in _secret_options(self.config, self.options):
            raise EncpipeError(
                f"{self.storage.url}: {found} is a secret, and secrets go into no pickle",
                hint="let every process find it by itself: for s3:// set the option profile=, AWS_PROFILE or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; forked processes can do without",
                code="unsupported",
            )
        return _in_another_process, (self.place, self.config, self.master_keys, dict(self.options))


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
    _check_same_rules(settings, keys.config)
    place = os.fspath(url)
    storage = open_storage(place, config=settings, options=storage_options)
    return Access(settings, keys, storage, _absolute(place), storage_options or {})


def _check_same_rules(settings: Config, of_keys: Config) -> None:
    """The configuration of the master keys counts: refuse one beside it that asks for other signatures or
    another audit log."""
    hint = "make master_keys from the same configuration: MasterKeys(config)"
    ours, theirs = ((c.trust.signers, c.signing) for c in (settings, of_keys))
    if ours != ((), SigningConfig()) and ours != theirs:
        raise ConfigError(
            "trust.signers or a signing key are set in config=, and others in that of master_keys=",
            hint=hint,
        )
    if settings.audit.sink is not None and settings.audit != of_keys.audit:
        raise ConfigError("audit is set in config=, and another one in that of master_keys=", hint=hint)


def resolve_config(config: Config | AnyPath | None, *, keyring: AnyPath | None = None) -> Config:
    """The configuration that an argument names. Raises `ConfigError`."""
    settings = config if isinstance(config, Config) else load_config(Path(config) if config else None)
    if keyring is None:
        return settings
    return replace(settings, keyring=replace(settings.keyring, path=Path(keyring).absolute()))


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


def _absolute(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "file":
        return url
    path = str(Path(rest if separator else url).expanduser().absolute())
    return f"file://{path}" if separator else path


def _in_another_process(
    place: str, config: Config, master_keys: MasterKeys, options: Mapping[str, Any]
) -> Access:
    return Access(config, master_keys, open_storage(place, config=config, options=options), place, options)


def _secret_options(config: Config, options: Mapping[str, Any]) -> Iterator[str]:
    """What a pickle must not carry, by name."""
    yield from _secrets("the storage option", options)
    for kind, tables in (("storage", config.storage), ("kms", config.kms)):
        for name, table in tables.items():
            yield from _secrets(f"the setting {kind}.{name}.", table)


def _secrets(where: str, table: Mapping[str, Any]) -> Iterator[str]:
    blank = "" if where.endswith(".") else " "
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _secrets(where, value)
        elif value and _SECRET_OPTION.fullmatch(name) and not _REFERENCE.fullmatch(str(value)):
            yield f"{where}{blank}{name}"
