"""URI scheme -> back end, and the rule which master keys may be used at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from encpipe.audit import audit_of
from encpipe.config import Config
from encpipe.errors import ConfigError, EncpipeError, UntrustedKeyError
from encpipe.keys import KEY_NAME, MasterKey
from encpipe.kms.base import AskPassphrase, Kms, KmsSettings
from encpipe.kms.signer import Signer, SigningService
from encpipe.perprocess import PerProcess

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BACKENDS: Final[Mapping[str, str]] = {
    "local": "encpipe.kms.local:LocalKms",
    "aws-kms": "encpipe.kms.aws:AwsKms",
    "azure-kv": "encpipe.kms.azure:AzureKms",
    "vault": "encpipe.kms.vault:VaultKms",
    "gcp-kms": "encpipe.kms.gcp:GcpKms",
    "pkcs11": "encpipe.kms.pkcs11:Pkcs11Kms",
}
"""URI scheme -> module:class. Third parties register under the entry point group `encpipe.kms`."""


class _Services:
    """The back ends of one process, by scheme. A forked child goes on with those that were loaded."""

    def __init__(self, loaded: Mapping[str, Kms]) -> None:
        self.loaded = dict(loaded)
        self.lock = threading.Lock()

    def inherited(self) -> _Services:
        return _Services(self.loaded)


class MasterKeys:
    """The master keys a configuration gives access to.

    A URI is used only where the configuration allows it: one of `trust.master_keys` for every key name, one
    of `keys.NAME` for that key name, a name of the local keyring for every key name. Any other raises
    `UntrustedKeyError` before anything is sent, or a back end even loaded. So who may only wrap under the
    key of one key name cannot forge what another key name protects. `extra` adds ready back ends by scheme,
    for tests and for embedding programs; what they hold still has to be trusted.
    `audit` is the audit log of the configuration, for whatever works with these keys.

    Works on in a forked child. A pickle carries the configuration, and never a key or a passphrase: the other
    process makes its own back ends. Nobody is asked for a passphrase there; where the pickle starts a process
    (`multiprocessing.Process`, `DataLoader` workers) and the local keyring is unlocked, it is handed over
    through a pipe. A back end in `extra` goes into the pickle only if its class defines `__reduce__`, and
    so says itself how it leaves its keys out; with any other, pickling raises `EncpipeError` `unsupported`.
    """

    def __init__(
        self,
        config: Config,
        *,
        ask_passphrase: AskPassphrase | None = None,
        extra: Mapping[str, Kms] | None = None,
    ) -> None:
        self.config = config
        self.audit = audit_of(config.audit)
        _check_tables(config, extra or {})
        self._ask_passphrase = ask_passphrase
        self._extra = dict(extra or {})
        self._may_vouch = {"local", *self._extra}
        self._process = PerProcess(_Services(self._extra), _Services.inherited)

    def __reduce__(self) -> tuple[Callable[..., MasterKeys], tuple[Any, ...]]:
        for scheme, kms in self._extra.items():
            if type(kms).__reduce__ is object.__reduce__:
                raise EncpipeError(
                    f"the key service {scheme!r} was given to MasterKeys ready made, and goes into no pickle",
                    hint="name its keys in the configuration (config=) instead of passing master_keys=, use "
                    "forked processes, or define __reduce__ in its class, without any key",
                    code="unsupported",
                )
        return _in_another_process, (self.config, self._extra, self._handed_over())

    def _handed_over(self) -> Any:
        local = self._process.get().loaded.get("local")
        if local is None:
            return None
        from encpipe.kms.handover import hand_over

        return hand_over(local)

    def for_key_name(self, key_name: str) -> tuple[MasterKey, ...]:
        """The master keys that the configuration gives a key name; the first wraps, all may open.

        Raises `ConfigError` when the configuration names none.
        """
        uris = self.config.keys.get(key_name)
        if not uris:
            raise ConfigError(
                f"the configuration names no master key for key name {key_name!r}",
                hint=f'add to the table "keys": {key_name} = ["local:NAME"], or pass --key {key_name}=URI',
                code="config-missing",
            )
        return tuple(self.get(uri, key_name=key_name) for uri in uris)

    def trusting(self, keys: Mapping[str, Sequence[str]]) -> MasterKeys:
        """The same key services; these URIs too are trusted for their key names, after the configured."""
        known = self.config.keys
        more = {name: (*known.get(name, ()), *uris) for name, uris in keys.items()}
        made = MasterKeys.__new__(MasterKeys)
        vars(made).update(vars(self))
        made.config = replace(self.config, keys={**known, **more})
        return made

    def under(self, config: Config) -> MasterKeys:
        """The same key services under another configuration, which back ends that were used do not see."""
        made = MasterKeys.__new__(MasterKeys)
        vars(made).update(vars(self))
        made.config, made.audit = config, audit_of(config.audit)
        return made

    def send_unlocked(self, fd: int) -> bool:
        """Write what unlocks the local keyring to a pipe, for `receive_unlocked` in another process; False
        where this process has not unlocked it."""
        local = self._process.get().loaded.get("local")
        if local is None:
            return False
        from encpipe.kms.local import LocalKms

        if not isinstance(local, LocalKms) or not local.unlocked:
            return False
        local.send_unlocked(fd)
        return True

    def receive_unlocked(self, fd: int) -> None:
        """Unlock the local keyring with what `send_unlocked` wrote. Raises `KmsError`."""
        from encpipe.kms.local import LocalKms

        local = self._service("local")
        assert isinstance(local, LocalKms)
        local.receive_unlocked(fd)

    def rank(self, uri: str, *, key_name: str) -> int:
        """Where the configuration names the URI: wrappings are tried in this order."""
        trusted = self._trusted(key_name)
        return trusted.index(uri) if uri in trusted else len(trusted)

    def get(self, uri: str, *, key_name: str) -> MasterKey:
        """The master key of a URI trusted for this key name. Raises `UntrustedKeyError` for any other."""
        scheme = uri.partition(":")[0]
        trusted = uri in self._trusted(key_name)
        if not trusted and scheme in self._may_vouch:
            trusted = self._service(scheme).trusts(uri)
        if not trusted:
            raise UntrustedKeyError(
                f"the master key {uri!r} is not trusted for key name {key_name!r} by this configuration",
                hint=_untrusted_hint(uri),
            )
        return self._service(scheme).master_key(uri)

    def signing_key(self, uri: str) -> Signer:
        """The key of this URI, to sign with: one that the configuration names for that (`signing.key`).

        Raises `ConfigError`, also where its service does not sign. No network call.
        """
        service = self._service(uri.partition(":")[0])
        if not isinstance(service, SigningService):
            raise ConfigError(
                f"{uri[:300]!r}: encpipe signs with no key of this service",
                hint="use an Ed25519 key in Vault (vault:NAME) or on a PKCS#11 token, or one in a file: "
                "encpipe keys create-signer FILE",
            )
        return service.signing_key(uri)

    def _trusted(self, key_name: str) -> tuple[str, ...]:
        return (*self.config.trust.master_keys, *self.config.keys.get(key_name, ()))

    def _service(self, scheme: str) -> Kms:
        services = self._process.get()
        with services.lock:
            if scheme not in services.loaded:
                services.loaded[scheme] = self._load(scheme)
            return services.loaded[scheme]

    def _load(self, scheme: str) -> Kms:
        settings = KmsSettings(
            table=self.config.kms.get(scheme, {}),
            keyring=self.config.keyring,
            tls=self.config.tls,
            ask_passphrase=self._ask_passphrase,
        )
        target = BACKENDS.get(scheme)
        if target is not None:
            module, _, name = target.partition(":")
            made: Kms = getattr(import_module(module), name)(settings)
            return made
        for point in _third_parties():
            if point.name == scheme:
                third_party: Kms = point.load()(settings)
                return third_party
        known = ", ".join(sorted(BACKENDS))
        raise ConfigError(f"no key service for the scheme {scheme[:40]!r}", hint=f"known schemes: {known}")


def _in_another_process(config: Config, extra: Mapping[str, Kms], handed_over: Any) -> MasterKeys:
    made = MasterKeys(config, ask_passphrase=_ask_nobody, extra=extra)
    if handed_over is not None:
        from encpipe.kms.handover import take_over

        take_over(made._service("local"), handed_over)
    return made


def _ask_nobody(what: str) -> str:
    raise ConfigError(
        f"{what} is needed, and this process got its dataset in a pickle: it has nobody to ask",
        hint="use the keyring before the process is started, so that it is handed over unlocked "
        '(multiprocessing.Process, DataLoader workers), or set keyring.unlock to "env:NAME", "file:PATH" or '
        '"key-file:PATH"',
        code="config-missing",
    )


def _untrusted_hint(uri: str) -> str:
    scheme, _, name = uri.partition(":")
    without = "or read without the columns under it (--on-missing-key skip, on_missing_key=)"
    if scheme == "local" and KEY_NAME.fullmatch(name):
        return (
            f"the local keyring lacks it: ask for an export of that key (encpipe keys export {name} FILE) "
            f"and add it with encpipe keys import, {without}"
        )
    return f'if you expect it, add it to trust.master_keys: master_keys = ["{uri}"]; {without}'


def _third_parties() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # 20 ms, and rarely needed

    return entry_points(group="encpipe.kms")


def _check_tables(config: Config, extra: Mapping[str, Kms]) -> None:
    """A table for a service that does not exist is a typing error, and its settings would not count."""
    unknown = set(config.kms) - set(BACKENDS) - set(extra)
    if unknown:
        unknown -= {point.name for point in _third_parties()}
    if unknown:
        raise ConfigError(
            f'the configuration has a table "kms.{min(unknown)}", and there is no such key service',
            hint=f"known: {', '.join(sorted(BACKENDS))}",
            code="config-unknown-key",
        )
