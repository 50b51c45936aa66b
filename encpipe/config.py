"""The configuration: TOML to frozen dataclasses. An unknown key is an error.

Found in this order, the first wins, nothing is merged: the path given, `ENCPIPE_CONFIG`, `./encpipe.toml`,
`$XDG_CONFIG_HOME/encpipe/config.toml`. The environment is read when a configuration is loaded, not at import.

`ENCPIPE_KEYRING` names the keyring file, whatever the configuration says. Where the configuration does not
say how to unlock it, the first of these that is set does: `ENCPIPE_MASTER_KEY` (32 bytes, base64: the one
master key `local:env`, in place of a keyring file), `ENCPIPE_PASSPHRASE_FILE`, `ENCPIPE_PASSPHRASE`; else a
person is asked. The configuration keeps the name of the variable or file, never what it holds.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from encpipe.configparts import AuditConfig, KeyringConfig, SigningConfig, TlsConfig, TrustConfig
from encpipe.configtable import Table
from encpipe.errors import ConfigError, PolicyError
from encpipe.keys import KEY_NAME, SIGNER
from encpipe.policy import Policy

__all__ = [
    "AuditConfig",
    "Config",
    "KeyringConfig",
    "SigningConfig",
    "TlsConfig",
    "TrustConfig",
    "find_config",
    "load_config",
    "load_policy",
    "parse_config",
    "user_config_path",
]

MAX_CONFIG_BYTES: Final = 1 << 20
"""A configuration or policy file may be this long."""

ENVIRONMENT_KEYS: Final = {"footer": ("local:env",)}
"""Key names where there is no configuration file and `ENCPIPE_MASTER_KEY` is set, as in a container."""
UNLOCK_FORMS: Final = ("prompt", "env:NAME", "file:PATH", "key-env:NAME", "key-file:PATH")
SINK_FORMS: Final = ("file:PATH", "stderr", "logger:NAME")


@dataclass(frozen=True)
class Config:
    """One configuration. `kms`, `storage`: their tables by name; `gateway`: read by `encpipe serve`."""

    keyring: KeyringConfig = field(default_factory=KeyringConfig)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    trust: TrustConfig = field(default_factory=TrustConfig)
    signing: SigningConfig = field(default_factory=SigningConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    kms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    audit: AuditConfig = field(default_factory=AuditConfig)
    gateway: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    searched: tuple[str, ...] = field(default=(), compare=False)
    """Where a configuration file was looked for in vain; empty where one was found, or none looked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tls", replace(self.tls, audit=self.audit))

    def blamed(self, error: ConfigError) -> ConfigError:
        """The error to raise for one about keyring or master keys: where no configuration file was found, it
        says so and where it was looked for, since keyring and dataset may be as they should."""
        if not self.searched or error.code not in _WITHOUT_CONFIGURATION or _NONE_FOUND in error.message:
            return error
        return type(error)(
            f"{error.message}; {_NONE_FOUND}: looked for {', '.join(self.searched)}",
            hint="name the configuration (config=, --config or $ENCPIPE_CONFIG)"
            + (f"; without one: {error.hint}" if error.hint else ""),
            code=error.code,
        )


_NONE_FOUND: Final = "no configuration was found"
_WITHOUT_CONFIGURATION: Final = ("config", "config-missing", "untrusted-key")


def load_config(path: Path | None = None, *, env: Mapping[str, str] = os.environ) -> Config:
    """The one configuration that counts; with none anywhere, the defaults and what `env` says.

    `path` is the file given on the command line. Raises `ConfigError`: `config-missing` when the file that
    `path` or `ENCPIPE_CONFIG` names is not there, `config-unknown-key`, or `config` for any other fault.
    """
    found = find_config(path, env=env)
    if found is None:
        keyring = _with_environment(KeyringConfig(), unlock_given=False, env=env)
        keys = ENVIRONMENT_KEYS if env.get("ENCPIPE_MASTER_KEY") else {}
        return Config(keyring=keyring, keys=keys, searched=_searched(env))
    return parse_config(_read(found), found, env=env)


def find_config(path: Path | None = None, *, env: Mapping[str, str] = os.environ) -> Path | None:
    """The file that `load_config` would read, or None. Raises `ConfigError` `config-missing`."""
    if path is not None:
        return _must_exist(path, "the configuration file")
    named = env.get("ENCPIPE_CONFIG")
    if named:
        return _must_exist(Path(named), "the configuration that ENCPIPE_CONFIG names,")
    here = Path("encpipe.toml").absolute()
    if here.is_file():
        return here
    personal = user_config_path(env=env)
    return personal if personal.is_file() else None


def _searched(env: Mapping[str, str]) -> tuple[str, ...]:
    return "$ENCPIPE_CONFIG (not set)", "./encpipe.toml", str(user_config_path(env=env))


def user_config_path(*, env: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME/encpipe/config.toml`; as XDG has it, a relative or empty variable does not count."""
    folder = Path(env.get("XDG_CONFIG_HOME", ""))
    return (folder if folder.is_absolute() else _home(env) / ".config") / "encpipe" / "config.toml"


def parse_config(text: str, source: Path, *, env: Mapping[str, str] | None = None) -> Config:
    """The configuration in `text`. Relative paths in it start at the folder of `source`; `~` is the home.

    Pure but for the home folder. `env` counts as in `load_config`; None is an empty environment. Raises
    `ConfigError` as `load_config` does, naming file, table and key.
    """
    env = {} if env is None else env
    top = Table(_toml(text, source), "", source, home=_home(env))
    keyring = top.table("keyring")
    unlock = keyring.text("unlock")
    tls, trust, signing = top.table("tls"), top.table("trust"), top.table("signing")
    config = Config(
        keyring=_with_environment(
            KeyringConfig(keyring.path("path"), _unlock(keyring, unlock) if unlock else "prompt"),
            unlock_given=unlock is not None,
            env=env,
        ),
        keys=_keys(top.table("keys")),
        policy=_policy(top.table("policy")),
        trust=TrustConfig(_exact(trust, "master_keys"), _signers(trust)),
        signing=SigningConfig(signing.path("key_file"), _one_uri(signing, "key")),
        tls=TlsConfig(
            tls.path("ca_file"),
            tls.path("client_cert"),
            tls.path("client_key"),
            tls.texts("allow_plain_http_to"),
        ),
        kms=top.table("kms").tables(),
        storage=top.table("storage").tables(),
        audit=_audit(top.table("audit")),
        gateway=top.as_it_stands("gateway"),
        source=source.absolute(),
    )
    for table in (keyring, tls, trust, signing, top):
        table.finish()
    return config


def load_policy(path: Path) -> Policy:
    """A policy file: TOML with the keys of the table `policy` at its top. Raises `ConfigError`."""
    source = _must_exist(path, "the policy file", hint="check the path of --policy")
    values = _toml(_read(source), source)
    if isinstance(values.get("policy"), dict):
        raise ConfigError(
            f"{source}: a policy file has no table [policy]",
            hint="leave out the [policy] line, and write [columns] for [policy.columns]",
            code="config-unknown-key",
        )
    return _policy(Table(values, "", source))


def _must_exist(
    path: Path, what: str, *, hint: str = "check the path, or make a configuration with: encpipe init"
) -> Path:
    if path.is_file():
        return path.absolute()
    raise ConfigError(f"{what} {str(path)!r} is not there", hint=hint, code="config-missing")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text", hint="TOML files are UTF-8") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: is longer than {MAX_CONFIG_BYTES} bytes")
    return text


def _toml(text: str, source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: is not TOML: {error}", hint="see https://toml.io") from None


def _home(env: Mapping[str, str]) -> Path:
    home = Path(env.get("HOME", ""))
    return home if home.is_absolute() else Path.home()


def _with_environment(keyring: KeyringConfig, *, unlock_given: bool, env: Mapping[str, str]) -> KeyringConfig:
    """The keyring as the environment has it. An empty variable counts as not set."""
    if env.get("ENCPIPE_KEYRING"):
        keyring = replace(keyring, path=Path(env["ENCPIPE_KEYRING"]).absolute())
    if unlock_given:
        return keyring
    if env.get("ENCPIPE_MASTER_KEY"):
        return replace(keyring, unlock="key-env:ENCPIPE_MASTER_KEY")
    if env.get("ENCPIPE_PASSPHRASE_FILE"):
        return replace(keyring, unlock=f"file:{Path(env['ENCPIPE_PASSPHRASE_FILE']).absolute()}")
    if env.get("ENCPIPE_PASSPHRASE"):
        return replace(keyring, unlock="env:ENCPIPE_PASSPHRASE")
    return keyring


def _unlock(table: Table, value: str) -> str:
    """`value` with its path made absolute. The value is not repeated in errors: it might be a passphrase."""
    kind, _, rest = value.partition(":")
    if value == "prompt" or (kind in ("env", "key-env") and rest.isidentifier()):
        return value
    if kind in ("file", "key-file") and rest:
        return f"{kind}:{table.resolve(rest)}"
    raise table.error(
        "unlock",
        f"must be one of: {', '.join(UNLOCK_FORMS)}",
        hint='for example unlock = "key-file:~/encpipe.key"; never the passphrase itself',
    )


def _keys(table: Table) -> dict[str, tuple[str, ...]]:
    keys = {}
    for name in table.names():
        if not KEY_NAME.fullmatch(name):
            hint = "a key name is a lower-case letter, then up to 31 of a-z, 0-9, _ and -"
            raise table.error(name, "is not a key name", hint=hint)
        keys[name] = _exact(table, name)
        if not keys[name]:
            raise table.error(name, "names no master key", hint=f'for example {name} = ["local:default"]')
    return keys


def _exact(table: Table, key: str) -> tuple[str, ...]:
    """Master key URIs, each once."""
    uris = table.texts(key)
    for uri in uris:
        scheme, colon, rest = uri.partition(":")
        if not (scheme and colon and rest):
            hint = 'URIs look like "local:default" or "aws-kms:alias/NAME"'
            raise table.error(key, f"holds {uri[:60]!r}, which is not a master key URI", hint=hint)
        if "*" in uri:
            raise table.error(key, f"holds the pattern {uri[:60]!r}", hint="name each master key by its URI")
    return tuple(dict.fromkeys(uris))


def _one_uri(table: Table, key: str) -> str | None:
    uri = table.text(key)
    if uri is not None and not re.fullmatch(r"[a-z0-9-]+:[!-~]+", uri):
        hint = 'URIs look like "vault:NAME" or "pkcs11:token=LABEL;object=LABEL"'
        raise table.error(key, f"is {uri[:60]!r}, which is not the URI of a key", hint=hint)
    return uri


def _signers(table: Table) -> tuple[str, ...]:
    for signer in table.texts("signers"):
        if not SIGNER.fullmatch(signer):
            hint = 'a signer is "ed25519:" and 43 characters, as encpipe keys show-signer prints it'
            raise table.error("signers", f"holds {signer[:60]!r}, which is not a signer", hint=hint)
    return tuple(dict.fromkeys(table.texts("signers")))


def _audit(table: Table) -> AuditConfig:
    sink, required = table.text("sink"), table.flag("required", default=True)
    kind, _, rest = (sink or "").partition(":")
    if not (sink == "stderr" or (kind in ("file", "logger") and rest) or not table.names()):
        raise table.error("sink", f"must be one of: {', '.join(SINK_FORMS)}")
    table.finish()
    return AuditConfig(f"file:{table.resolve(rest)}" if kind == "file" else sink, required)


def _policy(table: Table) -> Policy:
    columns = table.table("columns")
    footer_key, partitions = table.text("footer_key"), table.texts("plaintext_partitions")
    strict, partition_keys = table.flag("strict"), table.texts("partition_keys")
    named = {name: columns.texts(name) for name in columns.names()}
    table.finish()
    try:
        return Policy(footer_key or "footer", named, partitions, strict, partition_keys)
    except PolicyError as error:
        raise PolicyError(f"{table.place}: {error.message}", hint=error.hint, code=error.code) from None
