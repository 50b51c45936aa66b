"""The contract of a key service as tests. A back end subclasses `KmsContract` and gives three fixtures.

class TestMyKms(KmsContract):
    malformed_uris = ("my-kms:", "my-kms:no spaces")

    @pytest.fixture
    def kms(self): return MyKms(KmsSettings(table={"endpoint": ...}))

    @pytest.fixture
    def master_key(self, kms): return kms.master_key("my-kms:one")

    @pytest.fixture
    def other_master_key(self, kms): return kms.master_key("my-kms:two")
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import os
import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

import pytest

from encpipe.errors import (
    ConfigError,
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsError,
    KmsUnavailableError,
    UnwrapError,
)
from encpipe.keys import (
    KEY_BYTES,
    KeyContext,
    MasterKey,
    Secret,
    WrappedKey,
    is_public_key_wrap,
    new_id,
)
from encpipe.kms.base import Destroyable, Kms


class KmsContract:
    """What every key service must do. `flip_step` > 1 flips every n-th byte only, for slow services.

    `binds_context` is what its keys have to say of themselves: False for a service without AAD. `destroys`
    is True where they are `Destroyable`: then the fixture `doomed_master_key` gives one to destroy.
    `public_key_wrap` is True where a public key is all it takes to make a wrapping (RSA): it opens only with
    a trusted signature or `expect_core`, and a service that does not say so lets datasets be forged.
    """

    malformed_uris: ClassVar[tuple[str, ...]]
    binds_context: ClassVar[bool] = True
    public_key_wrap: ClassVar[bool] = False
    destroys: ClassVar[bool] = False
    flip_step: ClassVar[int] = 1

    @pytest.fixture
    def kms(self) -> Kms:
        """The service, configured."""
        raise NotImplementedError

    @pytest.fixture
    def master_key(self) -> MasterKey:
        """A master key that exists and may wrap and unwrap."""
        raise NotImplementedError

    @pytest.fixture
    def other_master_key(self) -> MasterKey:
        """Another one in the same service."""
        raise NotImplementedError

    @pytest.fixture
    def doomed_master_key(self) -> MasterKey:
        """A fresh one in the same service, which nobody else uses and encpipe may destroy."""
        raise NotImplementedError

    @pytest.fixture
    def context(self) -> KeyContext:
        return KeyContext(dataset_id=new_id(), key_name="footer", kek_id=new_id())

    @pytest.fixture
    def kek(self) -> Secret:
        return Secret.random(KEY_BYTES)

    @pytest.fixture
    def wrapped(self, master_key: MasterKey, kek: Secret, context: KeyContext) -> WrappedKey:
        return master_key.wrap(kek, aad=context)

    def test_unwraps_what_it_wrapped(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        assert master_key.unwrap(wrapped, aad=context) == kek

    def test_a_wrapping_survives_being_stored(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        stored = WrappedKey(wrapped.master_key, bytes(bytearray(wrapped.blob)), wrapped.version, "")
        assert master_key.unwrap(stored, aad=context) == kek

    def test_a_wrapping_opens_through_the_uri_it_names(
        self, kms: Kms, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        assert kms.master_key(wrapped.master_key).unwrap(wrapped, aad=context) == kek

    def test_a_wrapping_does_not_contain_the_key(self, kek: Secret, wrapped: WrappedKey) -> None:
        for spelling in _spellings(kek):
            assert spelling not in wrapped.blob
            assert spelling not in repr(wrapped).encode()

    def test_a_wrapping_tells_when_it_was_made(self, wrapped: WrappedKey) -> None:
        assert wrapped.created.endswith("Z")
        assert wrapped.created[10] == "T"

    def test_wrapping_is_randomised(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        assert master_key.wrap(kek, aad=context).blob != wrapped.blob

    @pytest.mark.parametrize("field", ["dataset_id", "key_name", "kek_id"])
    def test_another_context_is_refused(
        self, master_key: MasterKey, context: KeyContext, wrapped: WrappedKey, field: str
    ) -> None:
        other = replace(context, **{field: new_id() if field.endswith("id") else "pii"})
        with pytest.raises(UnwrapError):
            master_key.unwrap(wrapped, aad=other)

    def test_moving_a_character_between_context_fields_is_refused(
        self, master_key: MasterKey, kek: Secret
    ) -> None:
        wrapped = master_key.wrap(kek, aad=KeyContext("a" * 32, "footer", "b" * 32))
        with pytest.raises(UnwrapError):
            master_key.unwrap(wrapped, aad=KeyContext("a" * 31, "afooter", "b" * 32))

    def test_every_flipped_byte_is_refused(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        for position in range(0, len(wrapped.blob), self.flip_step):
            blob = bytearray(wrapped.blob)
            blob[position] ^= 0x01
            with _refused(kek):
                master_key.unwrap(replace(wrapped, blob=bytes(blob)), aad=context)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda blob: blob[:0], id="empty"),
            pytest.param(lambda blob: blob[:1], id="one byte"),
            pytest.param(lambda blob: blob[: len(blob) // 2], id="half"),
            pytest.param(lambda blob: blob[:-1], id="last byte missing"),
            pytest.param(lambda blob: blob[1:], id="first byte missing"),
            pytest.param(lambda blob: blob + b"\0", id="one byte more"),
            pytest.param(lambda blob: blob + blob, id="twice"),
            pytest.param(lambda blob: blob * 1000, id="oversized"),
        ],
    )
    def test_a_wrapping_of_another_length_is_refused(
        self, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey, damage: Any
    ) -> None:
        with _refused(kek):
            master_key.unwrap(replace(wrapped, blob=damage(wrapped.blob)), aad=context)

    def test_a_wrapping_of_another_master_key_is_refused(
        self, master_key: MasterKey, other_master_key: MasterKey, kek: Secret, context: KeyContext
    ) -> None:
        with _refused(kek):
            master_key.unwrap(other_master_key.wrap(kek, aad=context), aad=context)

    def test_a_wrapping_under_another_keys_name_is_refused(
        self, master_key: MasterKey, other_master_key: MasterKey, kek: Secret, context: KeyContext
    ) -> None:
        foreign = other_master_key.wrap(kek, aad=context)
        with _refused(kek):
            master_key.unwrap(replace(foreign, master_key=master_key.uri), aad=context)

    def test_several_threads_may_use_one_key(self, master_key: MasterKey, context: KeyContext) -> None:
        keks = [Secret.random(KEY_BYTES) for _ in range(16)]

        def round_trip(kek: Secret) -> bool:
            return master_key.unwrap(master_key.wrap(kek, aad=context), aad=context) == kek

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(round_trip, keks))

    def test_naming_a_key_does_no_io(
        self, kms: Kms, master_key: MasterKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = master_key.uri
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", _no_io)
            patch.setattr(os, "open", _no_io)
            patch.setattr(builtins, "open", _no_io)
            key = kms.master_key(uri)
            assert key.uri == uri
            assert key.binds_context is self.binds_context
            assert is_public_key_wrap(key) is self.public_key_wrap

    def test_a_malformed_uri_is_a_config_error(self, kms: Kms) -> None:
        for uri in self.malformed_uris:
            with pytest.raises(ConfigError):
                kms.master_key(uri)

    def test_a_foreign_uri_is_not_trusted(self, kms: Kms) -> None:
        assert not kms.trusts("no-such-service:key")

    def test_whether_encpipe_can_destroy_a_key_is_declared(self, master_key: MasterKey) -> None:
        assert isinstance(master_key, Destroyable) is self.destroys

    def test_a_destroyed_key_opens_nothing_any_more(
        self, request: pytest.FixtureRequest, master_key: MasterKey, kek: Secret, context: KeyContext
    ) -> None:
        if not self.destroys:
            pytest.skip("encpipe cannot destroy keys of this service")
        doomed: Any = request.getfixturevalue("doomed_master_key")
        wrapped, other = doomed.wrap(kek, aad=context), master_key.wrap(kek, aad=context)
        doomed.check_destroyable()
        assert doomed.unwrap(wrapped, aad=context) == kek
        done = doomed.destroy()
        assert done.master_key == doomed.uri
        with pytest.raises(KeyAccessDeniedError if done.until else KeyNotFoundError):
            doomed.unwrap(wrapped, aad=context)
        with pytest.raises((KeyAccessDeniedError, KeyNotFoundError)):  # who may not make keys is denied
            doomed.wrap(kek, aad=context)
        if done.until:
            assert doomed.destroy() == done
        else:
            for once_more in (doomed.destroy, doomed.check_destroyable):
                with pytest.raises(KeyNotFoundError):
                    once_more()
        assert master_key.unwrap(other, aad=context) == kek

    def test_reprs_and_pickles_leak_nothing(
        self, kms: Kms, master_key: MasterKey, kek: Secret, context: KeyContext, wrapped: WrappedKey
    ) -> None:
        master_key.unwrap(wrapped, aad=context)
        shown = [repr(kms), str(kms), repr(master_key), str(master_key)]
        for thing in (kms, master_key):
            with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
                shown.append(pickle.dumps(thing).decode("latin-1"))
        for spelling in _spellings(kek):
            assert all(spelling.decode("latin-1") not in text for text in shown)


@contextlib.contextmanager
def _refused(kek: Secret) -> Iterator[None]:
    """The block raises a refusal of our tree, no outage, chained to no SDK error, without key bytes."""
    with pytest.raises(EncpipeError) as caught:
        yield
    error = caught.value
    assert isinstance(error, UnwrapError | KmsError)
    assert not isinstance(error, KmsUnavailableError)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    for spelling in _spellings(kek):
        assert spelling.decode("latin-1") not in f"{error.message} {error.hint}"


def _spellings(kek: Secret) -> list[bytes]:
    raw = kek.reveal()
    return [raw, raw.hex().encode(), base64.b64encode(raw)[:42], base64.urlsafe_b64encode(raw)[:42]]


def _no_io(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this must not open a file or a connection")
