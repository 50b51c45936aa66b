"""What every storage back end must do, as a pytest class. A back end's tests subclass it:

class TestMyStorage(StorageContract):
    @pytest.fixture
    def make_storage(self) -> Callable[[], Storage]:
        place = f"mine://{uuid.uuid4().hex}"
        return lambda: open_storage(place, config=Config())
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from encpipe.errors import StorageError
from encpipe.storage import Storage
from encpipe.testing._storage_commits import LIMIT, MANIFEST, OWNER, CommitContract, expect

__all__ = ["LIMIT", "MANIFEST", "OWNER", "StorageContract", "expect"]

CLOCK_SLACK = timedelta(minutes=5)
ODD_FOLDERS = (
    "a=x%20y",
    "a=x y",
    "a=50%",
    "a=%2F",
    "a=1+1",
    "a=b=c",
    "a=ünïcödé",
    "a=日本語",
    "a=🙂",
    "a=#?&;:@$,!'()*[]~",
    'a="quoted"',
    "a=...",
    "a=" + "x" * 253,
)
ESCAPES = ("/etc/passwd", "../x", "a/../../x", "a/..", "..", ".", "a/./b", "a//b", "a/", "", "a\0b", "/")


class StorageContract(CommitContract):
    """Needs the fixture `make_storage`; each test gets a place of its own."""

    # objects

    def test_what_is_created_is_there_for_everyone(
        self, storage: Storage, make_storage: Callable[[], Storage]
    ) -> None:
        storage.create("a/b", b"bytes")
        for seen in (storage, make_storage()):
            assert seen.read("a/b", limit=LIMIT) == b"bytes"
            assert seen.size("a/b") == 5

    def test_an_empty_object_is_an_object(self, storage: Storage) -> None:
        storage.create("empty", b"")
        with storage.create_file("data/empty"):
            pass
        assert storage.read("empty", limit=0) == b""
        assert [storage.size(path) for path in self.paths(storage)] == [0, 0]

    def test_create_refuses_what_exists_and_leaves_it(self, storage: Storage) -> None:
        storage.create("a/b", b"first")
        for data in (b"second", b"first"):
            with expect("exists"):
                storage.create("a/b", data)
        assert storage.read("a/b", limit=LIMIT) == b"first"

    def test_of_many_creating_one_object_one_succeeds(self, make_storage: Callable[[], Storage]) -> None:
        def attempt(number: int) -> bytes | None:
            data = b"%d" % number
            try:
                make_storage().create("a/b", data)
            except StorageError as error:
                return None if error.code == "exists" else b"another error"
            return data

        with ThreadPoolExecutor(8) as pool:
            winners = [data for data in pool.map(attempt, range(8)) if data is not None]
        assert [make_storage().read("a/b", limit=LIMIT)] == winners

    def test_reading_stops_at_the_limit(self, storage: Storage) -> None:
        storage.create("a", b"12345")
        assert storage.read("a", limit=5) == b"12345"
        with expect("storage"):
            storage.read("a", limit=4)

    def test_the_first_bytes(self, storage: Storage) -> None:
        for path, data in (("big", os.urandom(3 << 20)), ("small", b"ab"), ("empty", b"")):
            storage.create(path, data)
            assert storage.first_bytes(path, 4) == data[:4]

    def test_what_is_absent_is_not_found(self, storage: Storage) -> None:
        storage.create("folder/object", b"x")
        reads: tuple[Callable[[str], object], ...] = (
            lambda path: storage.read(path, limit=LIMIT),
            storage.size,
            storage.open_input,
            lambda path: storage.first_bytes(path, 4),
        )
        for read in reads:
            for path in ("nothing", "no/folder/here", "folder/object/below"):
                with expect("not-found"):
                    read(path)

    def test_a_folder_is_no_object(self, storage: Storage) -> None:
        storage.create("folder/object", b"x")
        with pytest.raises(StorageError):
            storage.read("folder", limit=LIMIT)

    def test_delete_is_idempotent_and_leaves_the_rest(self, storage: Storage) -> None:
        storage.create("a/b", b"x")
        storage.create("a/c", b"y")
        for _ in range(2):
            storage.delete("a/b")
        storage.delete("never/was")
        assert self.paths(storage) == ["a/c"]
        storage.create("a/b", b"again")
        assert storage.read("a/b", limit=LIMIT) == b"again"

    # streams

    def test_a_stream_becomes_an_object_when_its_block_ends(self, storage: Storage) -> None:
        with storage.create_file("data/x.parquet") as stream:
            stream.write(b"one ")
            assert "data/x.parquet" not in self.paths(storage)
            stream.write(memoryview(bytearray(b"two")))
        assert storage.read("data/x.parquet", limit=LIMIT) == b"one two"

    def test_a_stream_closed_early_becomes_the_object_all_the_same(self, storage: Storage) -> None:
        with storage.create_file("data/x.parquet") as stream:
            stream.write(b"whole")
            stream.close()
        assert storage.read("data/x.parquet", limit=LIMIT) == b"whole"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
    @pytest.mark.parametrize("size", [3, 40 << 20])
    def test_an_error_in_a_stream_leaves_nothing_and_passes_through(
        self, storage: Storage, error: type[BaseException], size: int
    ) -> None:
        def write() -> None:
            with storage.create_file("data/x.parquet") as stream:
                stream.write(bytes(size))
                raise error("from the block")

        with pytest.raises(error, match="from the block"):
            write()
        assert self.paths(storage) == []

    def test_a_stream_does_not_replace_what_exists(self, storage: Storage) -> None:
        storage.create("data/x", b"first")
        with expect("exists"), storage.create_file("data/x") as stream:
            stream.write(b"second")
        assert storage.read("data/x", limit=LIMIT) == b"first"
        assert self.paths(storage) == ["data/x"]

    def test_a_big_object_arrives_whole(self, storage: Storage) -> None:
        block = os.urandom(1 << 20)
        pieces = [block[: 1 + (7919 * n) % len(block)] for n in range(90)]
        with storage.create_file("data/big") as stream:
            for piece in pieces:
                assert stream.write(piece) == len(piece)
        whole = b"".join(pieces)
        assert storage.size("data/big") == len(whole)
        assert storage.read("data/big", limit=len(whole)) == whole

    # random access

    def test_random_access_from_several_threads(self, storage: Storage) -> None:
        data = os.urandom(3 << 20)
        storage.create("data/x", data)

        def read(seed: int) -> bool:
            with storage.open_input("data/x") as file:
                assert file.size() == len(data)
                spans = [((seed * 7 + n * 104_729) % len(data), 1 + n * 999) for n in range(20)]
                file.seek(seed)
                return file.read(10) == data[seed : seed + 10] and all(
                    file.read_at(length, start) == data[start : start + length] for start, length in spans
                )

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(8)))

    def test_arrow_reads_the_same_bytes(self, storage: Storage) -> None:
        storage.create("a=x%20y/x", b"arrow")
        try:
            filesystem, path = storage.arrow_path("a=x%20y/x")
        except StorageError as error:
            if error.code != "unsupported":
                raise
            pytest.skip("this storage has no file system for Arrow")
        with filesystem.open_input_file(path) as file:
            assert file.read() == b"arrow"

    # listing

    def test_listing_is_in_path_order_and_by_folder(self, storage: Storage) -> None:
        paths = ["a-b", "a/b", "a/c/d", "a0", "b", "data/x", "a=é/x", "a=z/x"]
        for path in paths:
            storage.create(path, path.encode())
        assert self.paths(storage) == sorted(paths)
        assert self.paths(storage, "a/") == ["a/b", "a/c/d"]
        assert self.paths(storage, "a/c/") == ["a/c/d"]
        assert self.paths(storage, "none/") == []
        with pytest.raises(StorageError):
            self.paths(storage, "a")

    def test_listing_tells_size_and_time(self, storage: Storage) -> None:
        storage.create("a", b"12345")
        (found,) = storage.list()
        assert found.size == 5
        assert found.modified.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - found.modified) < CLOCK_SLACK

    def test_its_clock_is_that_of_its_objects(self, storage: Storage) -> None:
        assert abs(datetime.now(UTC) - storage.now()) < CLOCK_SLACK
        storage.create("_encpipe/a", b"")
        (found,) = storage.list()
        now = storage.now()
        assert now.utcoffset() == timedelta(0)
        assert timedelta(seconds=-2) < now - found.modified < CLOCK_SLACK
        assert self.paths(storage) == ["_encpipe/a"]

    def test_what_was_finished_or_broken_off_is_no_unfinished_upload(self, storage: Storage) -> None:
        with contextlib.suppress(ValueError), storage.create_file("data/x") as stream:
            stream.write(bytes(40 << 20))
            raise ValueError
        with storage.create_file("data/y") as stream:
            stream.write(bytes(40 << 20))
        assert list(storage.unfinished_uploads()) == []

    def test_nothing_is_listed_where_nothing_was_written(self, storage: Storage) -> None:
        assert self.paths(storage) == []

    # paths

    def test_odd_characters_are_kept(self, storage: Storage) -> None:
        paths = [f"{folder}/0123.parquet" for folder in ODD_FOLDERS]
        for path in paths:
            with storage.create_file(path) as stream:
                stream.write(path.encode())
        assert self.paths(storage) == sorted(paths)
        for path in paths:
            assert storage.read(path, limit=LIMIT) == path.encode(), path
            with storage.open_input(path) as file:
                assert file.read() == path.encode(), path
            storage.delete(path)
        assert self.paths(storage) == []

    def test_characters_that_some_storage_changes_are_refused(self, storage: Storage) -> None:
        for name in ("back\\slash", "tab\t", "line\n", "delete\x7f", "half\ud800"):
            self.refuses_to_make(storage, f"a={name}/0123.parquet")

    def refuses_to_make(self, storage: Storage, path: str) -> None:
        """No way to make an object takes this path."""
        uses: tuple[Callable[[], object], ...] = (
            lambda: storage.create(path, b""),
            lambda: storage.create_file(path).__enter__(),
            lambda: storage.commit(path, b"", check=lambda _: None, is_ours=lambda _: False),
            lambda: storage.hold(path).__enter__(),
        )
        for use in uses:
            with pytest.raises(StorageError):
                use()

    def test_a_path_that_leaves_the_dataset_is_refused(self, storage: Storage) -> None:
        uses: tuple[Callable[[str], object], ...] = (
            lambda path: storage.read(path, limit=LIMIT),
            storage.size,
            storage.open_input,
            storage.arrow_path,
            storage.delete,
            storage.is_held,
        )
        for path in ESCAPES:
            self.refuses_to_make(storage, path)
            for use in uses:
                with pytest.raises(StorageError):
                    use(path)
        for prefix in ("/", "../", "a/../", "a//", "./", "a\0/", "a", "/a/"):
            with pytest.raises(StorageError):
                list(storage.list(prefix))
