"""The PKCS#11 modules of this process: loaded once, used by one thread at a time, logged in once per token.

- python-pkcs11 initialises a module for one thread only, and lets go of the GIL in each call. So a module has
  one lock here, and every call is made under it.
- A login belongs to the process, not to a session. There is one for each token, for all configurations; where
  the program itself is logged in to the token, that login is used.
- A PIN that was refused is never tried again in this process: tokens lock.
- A forked child initialises the module anew and logs in itself. A fork waits for a call that is under way,
  so that the child finds no half-done state.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass, TokenFlag
from pkcs11.types import SecretKey, Session, Token

from encpipe.errors import ConfigError, KmsUnavailableError
from encpipe.keys import KEY_BYTES, Secret
from encpipe.kms import pkcs11_errors as errors
from encpipe.kms.pkcs11_settings import KeyPlace
from encpipe.perprocess import PerProcess

Answer = TypeVar("Answer")
Action = Callable[[Session, Any], Answer]
Find = Callable[[Session, KeyPlace], Any]

FORK_WAIT_SECONDS: Final = 2.0
"""How long a fork waits for a call that is under way; longer ones hang."""

_TokenName = tuple[str, str | None]


@dataclass(frozen=True)
class _Login:
    pin: Secret
    session: Session


class Module:
    """One PKCS#11 library in this process."""

    def __init__(
        self, path: str, *, loaded: Any = None, refused: Mapping[_TokenName, Secret] | None = None
    ) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._library = loaded
        self._is_parents = loaded is not None
        self._logins: dict[_TokenName, _Login] = {}
        self._refused = dict(refused or {})

    def inherited(self) -> Module:
        """For a forked child: nothing is initialised or logged in there; refused PINs are still refused."""
        return Module(self.path, loaded=self._library, refused=self._refused)

    def use(
        self,
        place: KeyPlace,
        pin: Secret,
        action: Action[Answer],
        *,
        seconds: float,
        find: Find | None = None,
    ) -> Answer:
        """What `action` returns, called with a session and the key, which is a master key unless `find` looks
        for another one.

        A session from before is opened anew once if the token no longer knows it. Raises the SDK's errors,
        `ConfigError` for a key that could leave the token, `KmsError` for a PIN that is not tried, and
        `KmsUnavailableError` when other calls kept the module busy for `seconds`.
        """
        if not self.lock.acquire(timeout=seconds):
            raise KmsUnavailableError(
                f"the PKCS#11 module {self.path} was busy with other calls for {seconds:g} s",
                hint="is the token stuck? its own log may tell",
            )
        try:
            found = _find if find is None else find
            login = self._logins.get((place.token, place.serial))
            if login is not None and login.pin == pin:
                with contextlib.suppress(*errors.STALE):
                    return action(login.session, found(login.session, place))
            session = self._log_in(place, pin)
            return action(session, found(session, place))
        finally:
            self.lock.release()

    def _log_in(self, place: KeyPlace, pin: Secret) -> Session:
        name = (place.token, place.serial)
        before = self._logins.pop(name, None)
        if before is not None:
            with contextlib.suppress(pkcs11.PKCS11Error):  # it may be gone already
                before.session.close()
        token = self._token(place)
        if self._refused.get(name) == pin:
            raise errors.refused_before(place.token)
        _check_tries(token)
        try:
            session = token.open(user_pin=pin.reveal().decode())
        except pkcs11.UserAlreadyLoggedIn:
            session = token.open()
        except errors.WRONG_PIN:
            self._refused[name] = pin
            raise
        self._logins[name] = _Login(pin, session)
        return session

    def _token(self, place: KeyPlace) -> Token:
        if self._library is None:
            self._library = pkcs11.lib(self.path)
        if self._is_parents:
            with contextlib.suppress(pkcs11.PKCS11Error):  # a module that noticed the fork has nothing to end
                self._library.finalize()
            self._library.initialize()
            self._is_parents = False
        serial = None if place.serial is None else place.serial.encode()
        tokens: list[Token] = []
        for slot in self._library.get_slots():
            with contextlib.suppress(
                pkcs11.PKCS11Error
            ):  # an empty or broken slot is no reason to miss another
                tokens.append(slot.get_token())
        found = [t for t in tokens if t.label == place.token and serial in (None, t.serial)]
        if len(found) > 1:
            raise pkcs11.MultipleTokensReturned
        if not found:
            raise pkcs11.NoSuchToken
        return found[0]


def _check_tries(token: Token) -> None:
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        raise errors.locked(token.label)
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise errors.last_try(token.label)


def _find(session: Session, place: KeyPlace) -> SecretKey:
    wanted: dict[Attribute, Any] = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.LABEL: place.object,
    }
    if place.id is not None:
        wanted[Attribute.ID] = place.id
    keys = list(session.get_objects(wanted))
    if not keys:
        raise pkcs11.NoSuchKey
    if len(keys) > 1:
        raise pkcs11.MultipleObjectsReturned
    key = keys[0]
    assert isinstance(key, SecretKey)
    _check_key(key, place)
    return key


def _check_key(key: SecretKey, place: KeyPlace) -> None:
    found = key.get_attributes([Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.VALUE_LEN])
    if not found.get(Attribute.SENSITIVE, False) or found.get(Attribute.EXTRACTABLE, True):
        raise ConfigError(
            f"the key {place.uri} can be read out of its token",
            hint="use one with CKA_SENSITIVE true and CKA_EXTRACTABLE false",
        )
    if found.get(Attribute.VALUE_LEN, KEY_BYTES) != KEY_BYTES:
        raise ConfigError(f"the key {place.uri} has not 256 bits", hint="make an AES key of 256 bits")


def check_destroyable(key: SecretKey, place: KeyPlace) -> None:
    """Raise `ConfigError` for a key that its token keeps for good, and the SDK's errors."""
    if not key.get_attributes([Attribute.DESTROYABLE]).get(Attribute.DESTROYABLE, True):
        raise ConfigError(
            f"the key {place.uri} may not be destroyed: its CKA_DESTROYABLE is false",
            hint="the token's own tools may be able to, or initialise the token anew",
        )


def destroy(session: Session, key: SecretKey, place: KeyPlace) -> None:
    """Destroy the key. Raises as `check_destroyable` does."""
    check_destroyable(key, place)
    with session.token.open(rw=True) as writing:  # the login is the process's, so it counts here too
        _find(writing, place).destroy()


_MODULES: Final = PerProcess[dict[str, Module]](
    {}, lambda modules: {path: module.inherited() for path, module in list(modules.items())}
)
_FORKING: Final = threading.local()


def module(path: str) -> Module:
    """This process's module of a path. Does not load it yet."""
    return _MODULES.get().setdefault(path, Module(path))


def _before_fork() -> None:
    locks = [module.lock for module in list(_MODULES.get().values())]
    _FORKING.held = [lock for lock in locks if lock.acquire(timeout=FORK_WAIT_SECONDS)]


def _after_fork_in_parent() -> None:
    for lock in _FORKING.held:
        lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
