"""The first steps on a machine: a keyring and a configuration that just work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from encpipe.config import KeyringConfig, parse_config
from encpipe.errors import ConfigError, KeyNotFoundError, StorageError
from encpipe.kms.base import AskPassphrase
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.keyringformat import KdfParams
from encpipe.kms.keyringkeys import ENV_KEY_NAME
from encpipe.kms.unlock import create_key_file

DEFAULT_URI: Final = "local:default"


@dataclass(frozen=True)
class Initialised:
    """What `initialise` made. `keyring` is None where no key is local, or the environment holds it."""

    config: Path
    keys: Mapping[str, tuple[str, ...]]
    keyring: Path | None
    keyring_is_new: bool
    key_file: Path | None

    def as_json(self) -> dict[str, Any]:
        return {
            "config": str(self.config),
            "keys": {name: list(uris) for name, uris in self.keys.items()},
            "keyring": None if self.keyring is None else str(self.keyring),
            "keyring_is_new": self.keyring_is_new,
            "key_file": None if self.key_file is None else str(self.key_file),
        }


def initialise(
    target: Path,
    *,
    keyring: KeyringConfig,
    keys: Mapping[str, tuple[str, ...]] | None = None,
    key_file: Path | None = None,
    ask_passphrase: AskPassphrase | None = None,
    kdf: KdfParams | None = None,
) -> Initialised:
    """Write the configuration `target`, and the keyring it needs unless there is one already.

    `keys` maps key names to master key URIs; `footer` is `local:default` unless given. With `key_file` the
    keyring is protected by a new key file there. Nothing is overwritten, and nothing is written when one
    of the files stands in the way. Raises `ConfigError` `exists`, `KeyNotFoundError` when the keyring that is
    there lacks a key, and what `KeyringFile` raises.
    """
    from_environment = keyring.unlock.startswith("key-env:") and key_file is None
    footer = f"local:{ENV_KEY_NAME}" if from_environment else DEFAULT_URI
    keys = {"footer": (footer,), **(keys or {})}
    _must_be_free(target, "configuration")
    if key_file is not None:
        key_file = key_file.absolute()
        _must_be_free(key_file, "key file")
        keyring = replace(keyring, unlock=f"key-file:{key_file}")
    names = _local_names(keys)
    text = _config_text(keyring, keys, key_file)
    parse_config(text, target)
    ring = KeyringFile.from_config(keyring, ask_passphrase) if names and not from_environment else None
    is_new = ring is not None and _provide(ring, names, key_file, kdf)
    _write_new(target, text)
    return Initialised(target, keys, ring.path if ring else None, is_new, key_file)


def _provide(ring: KeyringFile, names: list[str], key_file: Path | None, kdf: KdfParams | None) -> bool:
    """Make the keyring, or check that the one that is there has the keys. True when it was made."""
    if ring.path.exists() and key_file is None:
        there = ring.list()
        for name in names:
            if name not in there:
                raise KeyNotFoundError(
                    f"{ring.what} is there and has no master key {name!r}",
                    hint=f"add it with: encpipe keys create {name}",
                )
        return False
    _must_be_free(
        ring.path, "keyring", hint="leave out --key-file to use it, or set ENCPIPE_KEYRING to another path"
    )
    if key_file is not None:
        create_key_file(key_file)
    try:
        ring.create(*names, **({} if kdf is None else {"kdf": kdf}))
    except BaseException:
        if key_file is not None:
            key_file.unlink(missing_ok=True)  # it is ours, and protects nothing
        raise
    return True


def _local_names(keys: Mapping[str, tuple[str, ...]]) -> list[str]:
    uris = dict.fromkeys(uri for uris in keys.values() for uri in uris if uri.startswith("local:"))
    return [uri.removeprefix("local:") for uri in uris]


def _must_be_free(path: Path, what: str, *, hint: str = "move it away, or name another path") -> None:
    if path.exists() or path.is_symlink():
        raise ConfigError(f"the {what} {str(path)!r} exists and is not overwritten", hint=hint, code="exists")


def _config_text(keyring: KeyringConfig, keys: Mapping[str, tuple[str, ...]], key_file: Path | None) -> str:
    lines = ["# Made by encpipe init. A lost keyring is lost data: encpipe keys backup", ""]
    if keyring.path is not None or key_file is not None:
        lines.append("[keyring]")
    if keyring.path is not None:
        lines.append(f"path = {json.dumps(str(keyring.path))}")
    if key_file is not None:
        lines.append(f"unlock = {json.dumps(keyring.unlock)}")
    if lines[-1]:
        lines.append("")
    lines += [
        "# Key name -> master keys: the first wraps, and each of them opens. A master key that neither this",
        "# file nor your own local keyring names is never used. The keyring's count for all key names.",
        "[keys]",
    ]
    lines += [f"{name} = {json.dumps(list(uris))}" for name, uris in keys.items()]
    lines += [
        "",
        '# Which columns fall under which key name, for example: columns = { pii = ["name", "address.*"] }',
        "# with a line for pii in [keys]. What is not named falls under the footer key.",
        "[policy]",
        'footer_key = "footer"',
        "",
    ]
    return "\n".join(lines)


def _write_new(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _must_be_free(target, "configuration")
        raise
    except OSError as error:
        raise StorageError(
            f"the configuration {str(target)!r} cannot be written: {error.strerror}",
            hint="check the folder, then run encpipe init again: the keyring is kept",
        ) from None
