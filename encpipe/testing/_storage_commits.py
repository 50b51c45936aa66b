"""What storage tests share, and the half of the contract about commits and ownership."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from encpipe.errors import ConflictError, StorageError
from encpipe.storage import Storage

MANIFEST = "_encpipe/manifest.json"
OWNER = "_encpipe/pending/writer/owner"
LIMIT = 1 << 20


def expect(code: str) -> contextlib.AbstractContextManager[pytest.ExceptionInfo[StorageError]]:
    """The block raises `StorageError` with this code."""
    return pytest.raises(StorageError, check=lambda error: error.code == code)


class CommitContract:
    """Needs the fixture `make_storage`; each test gets a place of its own."""

    @pytest.fixture
    def make_storage(self) -> Callable[[], Storage]:
        """Makes storages that all lie at one fresh place. To be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, make_storage: Callable[[], Storage]) -> Iterator[Storage]:
        with contextlib.closing(make_storage()) as storage:
            yield storage

    def paths(self, storage: Storage, prefix: str = "") -> list[str]:
        """What `list` reports, without the lock of a local disk."""
        return [found.path for found in storage.list(prefix) if found.path != "_encpipe/lock"]

    # commits

    def commit(self, storage: Storage, data: bytes, *, seen: bytes | None) -> None:
        """Commit `data` if the object is still what was `seen`."""

        def check(current: bytes | None) -> None:
            if current != seen:
                raise ConflictError("someone else was here")

        storage.commit(MANIFEST, data, check=check, is_ours=lambda current: current == data)

    def test_a_commit_sees_what_it_replaces(self, storage: Storage) -> None:
        self.commit(storage, b"first", seen=None)
        self.commit(storage, b"second", seen=b"first")
        assert storage.read(MANIFEST, limit=LIMIT) == b"second"
        assert self.paths(storage) == [MANIFEST]

    def test_a_check_that_raises_leaves_everything(self, storage: Storage) -> None:
        self.commit(storage, b"first", seen=None)
        for seen in (None, b"other"):
            with pytest.raises(ConflictError, match="someone else"):
                self.commit(storage, b"second", seen=seen)
        for error in (ValueError, KeyboardInterrupt, OSError):

            def check(_: bytes | None, error: type[BaseException] = error) -> None:
                raise error("from the check")

            with pytest.raises(error, match="from the check"):
                storage.commit(MANIFEST, b"second", check=check, is_ours=lambda _: False)
        assert storage.read(MANIFEST, limit=LIMIT) == b"first"
        assert self.paths(storage) == [MANIFEST]

    @pytest.mark.parametrize("first", [None, b"first"])
    def test_of_two_commits_that_saw_the_same_one_wins(
        self, make_storage: Callable[[], Storage], first: bytes | None
    ) -> None:
        if first is not None:
            self.commit(make_storage(), first, seen=None)
        start = threading.Barrier(6)

        def attempt(number: int) -> bytes | None:
            data, storage = b"%d" % number, make_storage()
            start.wait()
            try:
                self.commit(storage, data, seen=first)
            except ConflictError:
                return None
            return data

        with ThreadPoolExecutor(6) as pool:
            winners = [data for data in pool.map(attempt, range(6)) if data is not None]
        assert [make_storage().read(MANIFEST, limit=LIMIT)] == winners

    def test_readers_never_see_half_a_commit(self, make_storage: Callable[[], Storage]) -> None:
        states = [bytes([n]) * 200_000 for n in range(12)]
        self.commit(make_storage(), states[0], seen=None)
        done = threading.Event()

        def read() -> bool:
            storage, whole = make_storage(), True
            while not done.is_set():
                whole = whole and storage.read(MANIFEST, limit=LIMIT) in states
            return whole

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            writer = make_storage()
            for before, after in itertools.pairwise(states):
                self.commit(writer, after, seen=before)
            done.set()
            assert all(reader.result() for reader in readers)

    # ownership

    def test_a_second_owner_is_refused_until_the_first_is_gone(
        self, make_storage: Callable[[], Storage]
    ) -> None:
        first, second = make_storage(), make_storage()
        with first.hold(OWNER):
            for other in (first, second):
                with expect("locked"), other.hold(OWNER):
                    pytest.fail("two owners")
            with second.hold(f"{OWNER}2"):
                pass
        with second.hold(OWNER), expect("locked"), first.hold(OWNER):
            pytest.fail("two owners")

    def test_who_looks_whether_there_is_an_owner_changes_nothing(
        self, make_storage: Callable[[], Storage]
    ) -> None:
        first, second = make_storage(), make_storage()
        assert not second.is_held(OWNER)
        assert self.paths(second) == []
        with first.hold(OWNER):
            for _ in range(2):
                assert all(storage.is_held(OWNER) for storage in (first, second))
        assert not second.is_held(OWNER)
        assert self.paths(second) == []

    def test_ownership_ends_with_an_error_and_leaves_nothing(self, storage: Storage) -> None:
        def fail() -> None:
            with storage.hold(OWNER):
                raise ValueError("from the block")

        for _ in range(2):
            with pytest.raises(ValueError, match="from the block"):
                fail()
        assert self.paths(storage) == []

    def test_an_owner_may_delete_what_it_holds(self, storage: Storage) -> None:
        with storage.hold(OWNER):
            storage.delete(OWNER)
        with storage.hold(OWNER):
            pass

    def test_of_many_owners_one_wins(self, make_storage: Callable[[], Storage]) -> None:
        start, end = threading.Barrier(6), threading.Barrier(6)

        def attempt(_: int) -> bool:
            storage = make_storage()
            start.wait()
            try:
                with storage.hold(OWNER):
                    end.wait()
            except ConflictError:
                end.wait()
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(attempt, range(6))) == 1
