"""Master keys on a PKCS#11 token: an HSM, a smart card, SoftHSM.

    pkcs11:token=LABEL;object=LABEL        (RFC 7512; also serial= of the token, id= of the key)

The key is AES, 256 bits, CKA_SENSITIVE and not CKA_EXTRACTABLE (any other is refused): it never leaves its
token. It needs CKA_ENCRYPT to wrap (writers, re-wrap, grant) and CKA_DECRYPT to unwrap (readers and
writers); with `mechanism = "aes-key-wrap"` CKA_WRAP and CKA_UNWRAP instead. The token's user is logged in
with a PIN.

The table `kms.pkcs11` of the configuration holds `module` (the token's library), `pin` (`prompt`,
`env:NAME` or `file:PATH`), `mechanism` (`aes-gcm`, or `aes-key-wrap` for tokens without it) and `deadline`
in seconds. What a dataset names is only looked up: module and PIN never come from a URI.

PKCS#11 has no key versions: `version` is empty, and a new key has a new label or id.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from encpipe.errors import EncpipeError, UnwrapError
from encpipe.keys import KEY_BYTES, KeyContext, MasterKey, Secret, WrappedKey, utc_now
from encpipe.kms.base import Destroyed, KmsSettings
from encpipe.kms.deadline import call_within
from encpipe.kms.pkcs11_pin import PinSource
from encpipe.kms.pkcs11_settings import HEADS, KeyPlace, Mechanism, Pkcs11Table
from encpipe.kms.sdk import import_extra
from encpipe.kms.signer import PublicKey, Signer

if TYPE_CHECKING:
    from pkcs11.types import SecretKey, Session

Done = TypeVar("Done")

_MECHANISM_OF_HEAD: Final = {head: mechanism for mechanism, head in HEADS.items()}


@dataclass(frozen=True)
class Pkcs11Key:
    """One key on a token. Nothing of it is looked up before the first wrap or unwrap."""

    uri: str
    place: KeyPlace = field(repr=False)
    _service: Pkcs11Kms = field(repr=False)

    @property
    def binds_context(self) -> bool:
        """True for `aes-gcm`. Without AAD (`aes-key-wrap`) the context is wrapped too, and compared."""
        return self._service.table.mechanism == "aes-gcm"

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        """The KEK under the configured mechanism; `master_key` is the URI itself."""
        if len(kek) != KEY_BYTES:
            raise ValueError(f"a KEK has {KEY_BYTES} bytes")
        by = _import("encpipe.kms.pkcs11_wrapping")
        wrap = by.wrap_gcm if self.binds_context else by.wrap_key_wrap

        def work(session: Session, key: SecretKey) -> bytes:
            made: bytes = wrap(session, key, kek, aad, uri=self.uri)
            return made

        blob = self._service.call("wrap", self, self._service.table.mechanism, work)
        return WrappedKey(self.uri, blob, version="", created=utc_now())

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        """The KEK of a wrapping by this key, whichever of the two mechanisms made it."""
        mechanism = _MECHANISM_OF_HEAD.get(wrapped.blob[:1])
        if mechanism is None or wrapped.master_key != self.uri:
            raise UnwrapError(
                f"a wrapping by {wrapped.master_key[:200]!r} cannot open under {self.uri}",
                hint="it was changed, or belongs to another master key",
            )
        by = _import("encpipe.kms.pkcs11_wrapping")
        unwrap = by.open_gcm if mechanism == "aes-gcm" else by.open_key_wrap

        def work(session: Session, key: SecretKey) -> Secret:
            kek: Secret = unwrap(session, key, wrapped.blob, aad, uri=self.uri)
            return kek

        kek = self._service.call("unwrap", self, mechanism, work)
        if len(kek) != KEY_BYTES:
            raise UnwrapError(
                f"{self.uri} opened a wrapping to something else than a KEK",
                hint="someone else used the same master key and context to wrap it: restore the manifest",
            )
        return kek

    def check_destroyable(self) -> None:
        """Raise `ConfigError` for a key whose CKA_DESTROYABLE is false; `KmsError`."""
        by = _import("encpipe.kms.pkcs11_module")
        self._administer(lambda _, key: by.check_destroyable(key, self.place))

    def destroy(self) -> Destroyed:
        """Destroy the key object (C_DestroyObject), at once and for good. Raises as `check_destroyable` does.

        The PIN is all that it needs, and a token that can be written.
        """
        by = _import("encpipe.kms.pkcs11_module")
        self._administer(lambda session, key: by.destroy(session, key, self.place))
        return Destroyed(self.uri, beyond="backups and clones of the token")

    def _administer(self, work: Callable[[Session, SecretKey], None]) -> None:
        self._service.call("destroy", self, self._service.table.mechanism, work)


@dataclass(frozen=True)
class Pkcs11Signer:
    """One Ed25519 key on a token (`pkcs11_signing`). Nothing of it is looked up before the first call."""

    uri: str
    place: KeyPlace = field(repr=False)
    _service: Pkcs11Kms = field(repr=False)

    def public_keys(self) -> tuple[PublicKey, ...]:
        """The public key object beside it. PKCS#11 has no key versions: `version` is empty."""
        by = _import("encpipe.kms.pkcs11_signing")

        def work(_: Session, key: Any) -> bytes:
            raw: bytes = by.read_public(key, uri=self.uri)
            return raw

        raw = self._service.call("sign", self, "eddsa", work, find=by.find_public)
        return (PublicKey("", raw),)

    def sign(self, message: bytes, *, version: str) -> bytes:  # noqa: ARG002  # the protocol's signature
        """C_Sign with CKM_EDDSA. Raises `ConfigError` also for a key that could leave its token."""
        by = _import("encpipe.kms.pkcs11_signing")

        def work(_: Session, key: Any) -> bytes:
            signature: bytes = by.sign(key, message, uri=self.uri)
            return signature

        return self._service.call("sign", self, "eddsa", work, find=by.find_private)


class Pkcs11Kms:
    """The key service of `pkcs11:` URIs. Loads the module on first use; safe to use from several threads.

    Each call ends within `deadline` seconds, whatever the module is stuck in, and is tried again within
    them where that can help.
    A forked child logs in anew. Raises `ConfigError` for a wrong table, before anything is loaded.
    """

    def __init__(self, settings: KmsSettings) -> None:
        self.table = Pkcs11Table.parse(settings.table)
        self._pin = PinSource(self.table.pin, settings.ask_passphrase)

    def master_key(self, uri: str) -> MasterKey:
        """The key of this URI. Raises `ConfigError` for a malformed URI; loads nothing."""
        return Pkcs11Key(uri, KeyPlace.parse(uri), self)

    def signing_key(self, uri: str) -> Signer:
        """The key of this URI to sign with (`pkcs11_signing`). Raises as `master_key` does; loads nothing."""
        return Pkcs11Signer(uri, KeyPlace.parse(uri), self)

    def trusts(self, uri: str) -> bool:  # noqa: ARG002  # the contract's signature
        """False: only the configuration says which keys are trusted."""
        return False

    def call(
        self,
        action: str,
        key: Pkcs11Key | Pkcs11Signer,
        mechanism: Mechanism | Literal["eddsa"],
        work: Callable[[Session, Any], Done],
        *,
        find: Callable[[Session, KeyPlace], Any] | None = None,
    ) -> Done:
        """What `work` returns, called with a session and the key; with deadline and the error tree.

        `find` looks for another object than the master key.
        """
        place, table = key.place, self.table
        modules = _import("encpipe.kms.pkcs11_module")
        errors = _import("encpipe.kms.pkcs11_errors")
        request = errors.Request(action, key.uri, place.token, table.module, mechanism)
        pin = self._pin.read(place.token)  # a person who types it is not under the deadline

        def attempt() -> Done | EncpipeError:
            try:
                module = modules.module(table.module)
                done: Done = module.use(place, pin, work, seconds=table.deadline, find=find)
            except Exception as error:  # noqa: BLE001  # mapped whole: no SDK error may leave
                failed: EncpipeError = errors.from_sdk(error, request).with_traceback(None)
                passes = errors.may_pass(error)
            else:
                return done
            if passes:
                raise failed  # outside the handler: the SDK's error is not even the context
            return failed  # what stays as it is for some seconds is not tried again

        answer = call_within(table.deadline, f"the token {place.token!r}", attempt)
        if isinstance(answer, EncpipeError):
            if answer.code == "credentials":
                self._pin.forget(place.token)
            raise answer
        return answer


_import = functools.partial(import_extra, extra="pkcs11", service="PKCS#11")
