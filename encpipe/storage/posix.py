"""Files on a local disk, made durable: temp file, fsync, publish without replacing, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from encpipe.errors import ConflictError, StorageError
from encpipe.storage.paths import in_doubt

TEMP_PREFIX: Final = ".tmp-"
"""What a stopped write leaves behind starts with this; `list` reports it, `gc` removes it."""
LOCK_WAIT_SECONDS: Final = 60.0
"""How long a commit waits for another one. A commit holds the lock for milliseconds."""
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.001, 0.05
_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK})
_BUFFER_BYTES: Final = 256 << 10
_ATTEMPTS: Final = 100
"""How often a folder that someone else keeps pruning is made again."""

_held_fds: set[int] = set()


def _forget_locks_in_child() -> None:
    """A forked child must not keep its parent's locks alive. Closing a copy does not unlock."""
    for fd in _held_fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held_fds.clear()


os.register_at_fork(after_in_child=_forget_locks_in_child)


def mapped(error: OSError, path: str, url: str) -> StorageError:
    """The error of our tree for what the operating system said about `path` in `url`."""
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    message = f"{path!r} in {url}: {reason}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return StorageError(message, hint="check the path", code="not-found")
        case errno.EEXIST:
            return StorageError(message, code="exists")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            hint = "free some space or raise the quota, then run the same command again: it resumes"
            return StorageError(message, hint=hint, code="storage-full")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StorageError(message, hint="check owner and mode of the folder", code="storage-denied")
        case errno.ESTALE | errno.ETIMEDOUT | errno.EIO | errno.ENODEV | errno.ENOTCONN:
            return StorageError(message, hint="check the disk or its server", code="storage-unavailable")
        case _:
            return StorageError(message)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(folder: Path) -> None:
    """Make `folder` and what is above it, each durable. Modes follow the umask."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with contextlib.suppress(FileExistsError):
            new.mkdir()
        fsync_folder(new.parent)


def prune_folders(folder: Path, root: Path) -> None:
    """Remove `folder` and those above it while they are empty and below `root`."""
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone, or not ours: an empty folder is no object, so nobody minds
            return
        folder = folder.parent


def open_in_folder(path: Path, flags: int) -> int:
    """`os.open` that makes the folder, again if a concurrent `prune_folders` takes it away."""
    for attempt in range(_ATTEMPTS):
        try:
            return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise
            with contextlib.suppress(FileNotFoundError):
                make_folders(path.parent)
    raise AssertionError("unreachable")


class Stream(io.BufferedWriter):
    """A buffered writer whose errors are `StorageError`."""

    def __init__(self, fd: int, path: str, url: str) -> None:
        super().__init__(io.FileIO(fd, "w", closefd=False), _BUFFER_BYTES)
        self._path, self._url = path, url

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise mapped(error, self._path, self._url) from None

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise mapped(error, self._path, self._url) from None


class TempFile:
    """A file beside `target` under a name of its own, until `publish` or `replace` gives it the target's.

    Leaving the `with` block removes whatever still has the temporary name. What fails after the name was
    given is `StorageError` `storage-unavailable`: the name is there, and may not outlast a power failure.
    """

    def __init__(self, target: Path, path: str, url: str) -> None:
        self._target, self._path, self._url = target, path, url
        self._named = False
        self._temp = target.with_name(f"{TEMP_PREFIX}{secrets.token_hex(16)}")
        self._fd = open_in_folder(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self.stream = Stream(self._fd, path, url)

    def __enter__(self) -> TempFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(StorageError):  # what is left in the buffer goes nowhere
            self.stream.close()
        try:
            os.close(self._fd)
            with contextlib.suppress(FileNotFoundError):
                self._temp.unlink()
        except OSError:
            if not self._named:  # else the file is whole and durable: a temp file is left, at most
                raise

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        if not self.stream.closed:
            self.stream.flush()
        os.fsync(self._fd)

    def publish(self, lock: Path) -> None:
        """Give the file its name; raises `FileExistsError` when there is one of that name.

        Where the file system has no hard links, a lock that every writer of the dataset takes stands in.
        """
        self.sync()
        try:
            os.link(self._temp, self._target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with locked(lock):
                if os.path.lexists(self._target):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                self._temp.rename(self._target)
        self._make_name_durable()

    def replace(self) -> None:
        """Give the file its name, in place of what had it."""
        self.sync()
        self._temp.replace(self._target)
        self._make_name_durable()

    def _make_name_durable(self) -> None:
        self._named = True
        try:
            fsync_folder(self._target.parent)
        except OSError as error:
            raise in_doubt(mapped(error, self._path, self._url)) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, waiting for it. Raises `ConflictError` `locked` after `LOCK_WAIT_SECONDS`."""
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    pause = _FIRST_POLL_SECONDS
    while (fd := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise ConflictError(
                f"{str(path)!r} stayed locked for {LOCK_WAIT_SECONDS:.0f} s",
                hint="another writer hangs in its commit: find it with `lslocks`",
                code="locked",
            )
        time.sleep(pause)
        pause = min(2 * pause, _LAST_POLL_SECONDS)
    try:
        yield
    finally:
        unlock(fd)


def try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock at `path`, or None when another process or thread has it.

    flock belongs to the open file, so two threads exclude each other like two processes. The lock counts only
    while the path still names the locked file: someone may have deleted it between open and lock.
    """
    for _ in range(_ATTEMPTS):
        fd = open_in_folder(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.lstat()):
                _held_fds.add(fd)
                return fd
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return None
        except BaseException:
            os.close(fd)
            raise
        else:
            os.close(fd)
    return None


def unlock(fd: int) -> None:
    """Release what `try_lock` got; nothing in a forked child, which never had it."""
    if fd in _held_fds:
        _held_fds.discard(fd)
        os.close(fd)


def remove_and_unlock(path: Path, fd: int) -> None:
    """Delete the lock's file, while it is still ours, and release it."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if fd in _held_fds and os.path.samestat(os.fstat(fd), path.lstat()):
                path.unlink()
    finally:
        unlock(fd)


def is_locked(path: Path) -> bool:
    """Whether someone has the lock at `path`. Makes no file, and has the lock only while it looks."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def clock(folder: Path) -> float:
    """Seconds since the epoch, by the clock of the file system that `folder` lies on.

    This machine's where no file can be made in it: then nothing in it can be removed either.
    """
    try:
        with tempfile.TemporaryFile(prefix=TEMP_PREFIX, dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
