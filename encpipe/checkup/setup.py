"""Packages, configuration, certificates and keyring."""

from __future__ import annotations

import platform
import ssl
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from encpipe import transport
from encpipe.checkup.finding import Finding, failed
from encpipe.config import Config, KeyringConfig, find_config, load_config
from encpipe.errors import ConfigError, EncpipeError
from encpipe.kms import privatefile
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.unlock import EnvironmentKey

CORE: Final = ("encpipe", "pyarrow", "cryptography", "fsspec", "typer", "rich")
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": ("torch", "numpy"),
    "s3": ("s3fs", "boto3"),
    "aws": ("boto3",),
    "vault": ("hvac", "requests"),
    "gcp": ("google-cloud-kms", "google-crc32c", "requests"),
    "pkcs11": ("python-pkcs11",),
    "azure": ("azure-keyvault-keys", "azure-identity"),
}
"""Extra -> its packages, as in pyproject.toml."""
_NEEDED_BY: Final = {
    "aws": "aws-kms:",
    "vault": "vault:",
    "gcp": "gcp-kms:",
    "pkcs11": "pkcs11:",
    "azure": "azure-kv:",
}
"""Extra -> how the master keys begin that cannot be used without it."""


def check_packages() -> Iterator[Finding]:
    """Versions, and extras that are not installed. Imports none of them."""
    versions = [f"{name} {installed(name) or 'missing'}" for name in CORE]
    yield Finding("packages", "ok", f"Python {platform.python_version()}, " + ", ".join(versions))
    for extra, names in EXTRAS.items():
        found = {name: installed(name) for name in names}
        if None not in found.values():
            text = ", ".join(f"{name} {number}" for name, number in found.items())
            yield Finding(f"extra {extra}", "ok", text)
        else:
            absent = ", ".join(name for name, number in found.items() if number is None)
            yield Finding(f"extra {extra}", "note", f"{absent} not installed", _pip(extra))
    from cryptography.hazmat.backends.openssl import backend

    yield Finding("TLS", "ok", ssl.OPENSSL_VERSION)
    yield Finding("ciphers", "ok", f"{backend.openssl_version_text()}, of cryptography")


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _pip(extra: str) -> str:
    return f"pip install 'encpipe[{extra}]'"


def check_configuration(file: Path | None, env: Mapping[str, str]) -> Iterator[Finding]:
    """The configuration that counts, and what it names; nothing more where it cannot be used."""
    try:
        path = find_config(file, env=env)
        config = load_config(file, env=env)
    except ConfigError as error:
        yield failed("configuration", error)
        return
    names = ", ".join(config.keys) or "none"
    if path is not None:
        yield Finding("configuration", "ok", f"{path}; key names: {names}")
    elif config.keys:
        yield Finding("configuration", "ok", f"no file; the environment gives the key names: {names}")
    else:
        hint = "make a keyring and a configuration with: encpipe init"
        places = ", ".join(config.searched)
        yield Finding("configuration", "warn", f"none found: looked for {places}", hint)
    yield from _check_extras(config)
    yield _check_certificates(config)
    yield from _check_keyring(config, env)


def _check_extras(config: Config) -> Iterator[Finding]:
    uris = (*config.trust.master_keys, *(uri for uris in config.keys.values() for uri in uris))
    for extra, scheme in _NEEDED_BY.items():
        named = [uri for uri in uris if uri.startswith(scheme)]
        if named and not all(installed(package) for package in EXTRAS[extra]):
            yield Finding(
                "key service", "fail", f"{named[0]} cannot be used: a package is absent", _pip(extra)
            )


def _check_certificates(config: Config) -> Finding:
    try:
        bundle = transport.ca_bundle(config.tls)
    except EncpipeError as error:
        return failed("certificates", error)
    if bundle is None:
        hint = "install ca-certificates, or set tls.ca_file"
        return Finding("certificates", "warn", "no CA store found: no https server can be trusted", hint)
    return Finding("certificates", "ok", f"CAs of {bundle}")


def _check_keyring(config: Config, env: Mapping[str, str]) -> Iterator[Finding]:
    kind, _, rest = config.keyring.unlock.partition(":")
    is_used = any(uri.startswith("local:") for uris in config.keys.values() for uri in uris)
    try:
        if kind == "key-env":
            EnvironmentKey(rest).key().wipe()
            yield Finding("keyring", "ok", f"none: the environment variable {rest} holds the one master key")
            return
        keyring = KeyringFile.from_config(config.keyring)
        if not is_used and not keyring.path.exists():
            yield Finding("keyring", "note", f"none at {keyring.path}, and no key name needs one")
            return
        names = ", ".join(keyring.list())
        yield Finding("keyring", "ok", f"{keyring.path}, for its owner only; master keys: {names}")
        yield _check_unlocking(config.keyring, env)
    except EncpipeError as error:
        yield failed("keyring", error)


def _check_unlocking(keyring: KeyringConfig, env: Mapping[str, str]) -> Finding:
    """Whether there is what unlocks it. Whether it is the right one shows when it is used."""
    kind, _, rest = keyring.unlock.partition(":")
    if kind == "env":
        if env.get(rest):
            return Finding("unlocking", "ok", f"a passphrase in the environment variable {rest}")
        hint = f"set {rest}, or set keyring.unlock otherwise"
        return Finding("unlocking", "fail", f"the environment variable {rest} is not set", hint)
    if kind in ("file", "key-file"):
        what = "key file" if kind == "key-file" else "passphrase file"
        try:
            privatefile.read(Path(rest), what=what, limit=0)
        except EncpipeError as error:
            return failed("unlocking", error)
        return Finding("unlocking", "ok", f"the {what} {rest}, for its owner only")
    return Finding("unlocking", "note", "by a passphrase that is asked for: jobs without a terminal cannot")
