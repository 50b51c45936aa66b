"""A `Secret` does not leave by accident."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import traceback

import pytest

from encpipe.keyring import NewKek
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey, new_id
from encpipe.testing import InMemoryKms

KEY = bytes(range(32))
SPELLINGS = (KEY.hex(), repr(KEY), "\x00\x01\x02", "AAECAwQF")


@pytest.mark.parametrize("show", [repr, str, format, "{:>80}".format, "%s".__mod__, "{0!r}".format])
def test_no_way_of_printing_shows_it(show) -> None:  # type: ignore[no-untyped-def]  # six unlike callables
    shown = show(Secret(KEY))
    assert "redacted" in shown
    assert not any(spelling in shown for spelling in SPELLINGS)


def test_a_traceback_with_locals_does_not_show_it() -> None:
    def fail(key: Secret) -> None:
        raise RuntimeError("broken")

    try:
        fail(Secret(KEY))
    except RuntimeError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "redacted" in shown
    assert KEY.hex() not in shown


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps({"key": [Secret(KEY)]}, protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, Secret.__getstate__, Secret.__reduce__])
def test_it_is_not_copied(duplicate) -> None:  # type: ignore[no-untyped-def]  # four unlike callables
    with pytest.raises(TypeError, match="never pickled or copied"):
        duplicate(Secret(KEY))


def test_what_holds_it_is_not_turned_into_a_dict() -> None:
    with pytest.raises(TypeError, match="never pickled or copied"):
        dataclasses.asdict(NewKek(Secret(KEY), ()))


def test_it_is_no_dictionary_key() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret(KEY))


def test_equal_bytes_are_equal_secrets_and_nothing_else_is() -> None:
    assert Secret(KEY) == Secret(bytearray(KEY))
    assert Secret(KEY) != Secret(KEY[:-1] + b"\0")
    assert Secret(KEY) != Secret(KEY[:-1])
    assert Secret(KEY) != KEY


def test_wiping_overwrites_the_bytes() -> None:
    secret = Secret(KEY)
    held = memoryview(secret._key)
    with pytest.raises(BufferError):  # the array cannot shrink while a view looks at it, but is zero by then
        secret.wipe()
    assert bytes(held) == bytes(32)
    held.release()
    secret.wipe()
    assert len(secret) == 0
    assert secret.reveal() == b""


def test_collection_wipes() -> None:
    secret = Secret(KEY)
    inner = secret._key
    del secret
    gc.collect()
    assert bytes(inner) == b""


def test_it_does_not_share_the_callers_buffer() -> None:
    buffer = bytearray(KEY)
    secret = Secret(buffer)
    buffer[0] ^= 1
    assert secret.reveal() == KEY


def test_no_key_no_secret() -> None:
    with pytest.raises(TypeError):
        Secret("text")  # type: ignore[arg-type]  # the mistake is the test


def test_random_secrets_and_ids_differ() -> None:
    assert len(Secret.random()) == 32
    assert len(Secret.random(16)) == 16
    assert Secret.random() != Secret.random()
    assert len({new_id() for _ in range(100)}) == 100
    assert len(bytes.fromhex(new_id())) == 16


def test_the_context_names_dataset_key_name_and_kek() -> None:
    assert KeyContext("d", "pii", "k").pairs() == {
        "encpipe:wrap": "1",
        "encpipe:dataset-id": "d",
        "encpipe:key-name": "pii",
        "encpipe:kek-id": "k",
    }


def test_a_wrapping_shows_no_key_and_a_service_is_a_master_key() -> None:
    master = InMemoryKms(["a"]).master_key("memory:a")
    assert isinstance(master, MasterKey)
    wrapped = master.wrap(Secret(KEY), aad=KeyContext("0" * 32, "footer", "1" * 32))
    assert isinstance(wrapped, WrappedKey)
    assert KEY not in wrapped.blob
