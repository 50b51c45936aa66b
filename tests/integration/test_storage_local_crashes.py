"""A kill or a full disk never leaves half an object under its name, and never a lock."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from encpipe.config import Config
from encpipe.storage import Storage, open_storage, posix
from encpipe.testing.storage_contract import LIMIT, MANIFEST, OWNER, expect

OLD, NEW = b"old state", b"new state" * 50_000


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "dataset"), config=Config())


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked child; how it ended, as `os.waitstatus_to_exitcode` says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child touches none
        pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - the child ends here, whatever happened
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(call: str, nth: int) -> Callable[..., Any]:
    """Instead of its n-th call of `os.<call>`, the process is killed."""
    original, count = getattr(os, call), iter(range(1, 100))

    def patched(*args: Any, **kwargs: Any) -> Any:
        return die() if next(count) == nth else original(*args, **kwargs)

    return patched


def commit(storage: Storage, data: bytes) -> None:
    storage.commit(MANIFEST, data, check=lambda _: None, is_ours=lambda _: False)


def stream(storage: Storage, then: Callable[[], object] = lambda: None) -> None:
    with storage.create_file("data/x.parquet") as file:
        file.write(NEW)
        then()


def objects(storage: Storage) -> dict[str, bytes]:
    """What has a name of its own, without temp files and the lock; temp files lie beside their target."""
    found = {}
    for entry in storage.list():
        name = entry.path.rpartition("/")[2]
        if name.startswith(posix.TEMP_PREFIX):
            assert entry.path.startswith(("data/", "_encpipe/"))
        elif name != "lock":
            found[entry.path] = storage.read(entry.path, limit=LIMIT)
    return found


STEPS = [("fsync", 1), ("link", 1), ("unlink", 1)]


@pytest.mark.parametrize(("call", "nth"), [*STEPS, ("fsync", 2), ("fsync", 3)])
def test_a_killed_stream_leaves_the_whole_object_or_none(storage: Storage, call: str, nth: int) -> None:
    storage.create("data/other", b"x")  # the folders are there, so that the steps are those of the object

    def action() -> None:
        setattr(os, call, dying_at(call, nth))
        stream(storage)

    ended = in_child(action)
    assert ended == (-signal.SIGKILL if (call, nth) != ("fsync", 3) else 0), "the steps have changed"
    there = objects(storage)
    assert there.pop("data/other") == b"x"
    if call == "unlink" or nth > 1:
        assert there == {"data/x.parquet": NEW}
    else:
        assert there == {}
        stream(storage)
        assert objects(storage)["data/x.parquet"] == NEW


def test_a_stream_killed_while_it_is_written_leaves_a_temp_file_that_can_be_deleted(storage: Storage) -> None:
    assert in_child(lambda: stream(storage, die)) == -signal.SIGKILL
    (left,) = storage.list()
    assert left.path.startswith(f"data/{posix.TEMP_PREFIX}")
    storage.delete(left.path)
    assert list(storage.list()) == []


@pytest.mark.parametrize(
    ("call", "nth", "after"), [("fsync", 1, OLD), ("replace", 1, OLD), ("fsync", 2, NEW)]
)
def test_a_killed_commit_leaves_the_old_or_the_new_state_and_no_lock(
    storage: Storage, call: str, nth: int, after: bytes
) -> None:
    commit(storage, OLD)

    def action() -> None:
        setattr(os, call, dying_at(call, nth))
        commit(storage, NEW)

    assert in_child(action) == -signal.SIGKILL
    assert objects(storage) == {MANIFEST: after}
    commit(storage, b"next")
    assert objects(storage) == {MANIFEST: b"next"}


def test_ownership_ends_with_a_killed_process(storage: Storage) -> None:
    def hold_and_die() -> None:
        with storage.hold(OWNER):
            die()

    assert in_child(hold_and_die) == -signal.SIGKILL
    with storage.hold(OWNER):
        pass


def test_another_process_is_no_owner(storage: Storage) -> None:
    def take() -> None:
        with storage.hold(OWNER):
            pass

    with storage.hold(OWNER):
        assert in_child(take) == 1
    take()


def test_a_child_forked_amid_a_commit_keeps_no_lock(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix, "LOCK_WAIT_SECONDS", 2.0)
    read, write = os.pipe()
    children = []

    def check(_: bytes | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            children.append(os.fork())
        if children == [0]:
            os.close(write)
            os.read(read, 1)  # lives on, until the parent has seen that the lock is free
            os._exit(0)

    storage.commit(MANIFEST, OLD, check=check, is_ours=lambda _: False)
    try:
        commit(storage, NEW)
    finally:
        os.close(write)
        os.waitpid(children[0], 0)
        os.close(read)
    assert objects(storage) == {MANIFEST: NEW}


def test_a_lock_on_a_file_that_is_gone_does_not_count(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lock = tmp_path / "dataset" / OWNER, fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.undo()
        place.unlink()  # the last owner lets go between our open and our lock
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with storage.hold(OWNER):
        assert place.exists()
        with expect("locked"), storage.hold(OWNER):
            pytest.fail("two owners")


def full_disk_cases(storage: Storage) -> None:
    """Every way to write says `storage-full`, and leaves what was there."""
    big = bytes(2 << 20)
    ways: tuple[Callable[[], object], ...] = (
        lambda: storage.create("data/x", big),
        lambda: commit(storage, big),
        lambda: write_in_pieces(storage, big),
    )
    for way in ways:
        with expect("storage-full") as full:
            way()
        assert "resumes" in full.value.hint
        assert objects(storage) == {MANIFEST: OLD}
    commit(storage, b"small")
    assert objects(storage) == {MANIFEST: b"small"}


def write_in_pieces(storage: Storage, big: bytes) -> None:
    with storage.create_file("data/y") as file:
        for start in range(0, len(big), 1000):
            file.write(big[start : start + 1000])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "encpipe-test", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        reason = "mounting a tmpfs needs root"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_told_and_leaves_what_was_there(tiny_disk: Path) -> None:
    storage = open_storage(str(tiny_disk / "dataset"), config=Config())
    commit(storage, OLD)
    full_disk_cases(storage)


def test_a_file_size_limit_is_a_full_disk(storage: Storage) -> None:
    commit(storage, OLD)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        full_disk_cases(storage)

    assert in_child(limited) == 0
    assert objects(storage) == {MANIFEST: b"small"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_only_at_the_end(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: int) -> None:
        raise OSError(number, "full")

    monkeypatch.setattr(os, "fsync", full)
    with expect("storage-full"):
        stream(storage)
    monkeypatch.undo()
    assert objects(storage) == {}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_takes_no_files_is_denied(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "open", refuse)
    for way in (lambda: storage.create("a", b""), lambda: commit(storage, b"")):
        with expect("storage-denied"):
            way()


def test_without_hard_links_nothing_is_replaced_either(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    storage.create("a", b"first")
    with expect("exists"):
        stream(storage, lambda: storage.create("data/x.parquet", b"theirs"))
    assert objects(storage) == {"a": b"first", "data/x.parquet": b"theirs"}
