"""Small files that only their owner may read: keyrings, key files, passphrase files.

Reading refuses what others may read or own, and what is no regular file (`keyring-permissions`).
Writing is atomic and durable: temporary file of mode 0600 in the same folder, fsync, rename or link, fsync of
the folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from encpipe.errors import ConfigError, ConflictError, StorageError

LOCK_WAIT_SECONDS: Final = 30.0
"""How long a change waits for another one, which takes milliseconds."""
_POLL_SECONDS: Final = 0.01
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in the file's place must not block us
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def read(path: Path, *, what: str, limit: int) -> bytes:
    """The bytes of a private file, at most `limit` + 1 of them.

    Raises `ConfigError`: `config-missing` when there is none, `keyring-permissions` when group or others have
    any permission on it, another user owns it, or it is no regular file; `StorageError` when the disk fails.
    """
    try:
        fd = os.open(path, _READ)
        with os.fdopen(fd, "rb") as file:
            _check_private(os.fstat(fd), path, what)
            return file.read(limit + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"{what} {str(path)!r} is not there", hint="check the path", code="config-missing"
        ) from None
    except OSError as error:
        raise _mapped(error, path, what) from None


def _check_private(status: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        why, hint = "is not a regular file", "give the path of a file"
    elif status.st_uid != os.geteuid():
        why, hint = f"belongs to user {status.st_uid}, not to us", f"make a copy of your own of {path}"
    elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        why, hint = f"has mode {stat.S_IMODE(status.st_mode):04o}: others may use it", f"chmod 600 {path}"
    else:
        return
    raise ConfigError(f"{what} {str(path)!r} {why}", hint=hint, code="keyring-permissions")


def write_new(path: Path, data: bytes, *, what: str) -> None:
    """Write a file that must not be there yet, with its folder. Raises `ConfigError` `exists`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _temporary(path, data) as temp:
            os.link(temp, path, follow_symlinks=False)
    except FileExistsError:
        raise ConfigError(
            f"{what} {str(path)!r} exists and is not overwritten",
            hint="take another path, or move the file away",
            code="exists",
        ) from None
    except OSError as error:
        raise _mapped(error, path, what) from None


def replace(path: Path, data: bytes, *, what: str) -> None:
    """Put `data` in place of the file; a reader sees the old or the new bytes, never a mixture."""
    try:
        with _temporary(path, data) as temp:
            temp.replace(path)
    except OSError as error:
        raise _mapped(error, path, what) from None


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[Path]:
    """A durable file beside `path`, to be given its name in the block; the folder is synced after it."""
    temp = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    fd = os.open(temp, _NEW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, 0o600)  # the umask may have taken even the owner's permission
            file.write(data)
            file.flush()
            os.fsync(fd)
        yield temp
    finally:
        temp.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock of `path` (`<path>.lock`, never deleted). Raises `ConflictError` `locked` after a while.

    flock belongs to the open file: threads exclude each other like processes, and it ends with its process.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _mapped(error, lock, what) from None
    try:
        _wait(fd, lock, what)
        yield
    finally:
        os.close(fd)


def _wait(fd: int, lock: Path, what: str) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"{what} stayed locked for {LOCK_WAIT_SECONDS:.0f} s",
                    hint=f"another process hangs while it holds {lock}: find it with `lslocks`",
                    code="locked",
                ) from None
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            raise _mapped(error, lock, what) from None
        else:
            return


def _mapped(error: OSError, path: Path, what: str) -> StorageError:
    message = f"{what} {str(path)!r}: {os.strerror(error.errno or 0)}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "check owner and mode of the file and its folder"
        return StorageError(message, hint=hint, code="storage-denied")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(message, hint="free some space and try again", code="storage-full")
    return StorageError(message, hint="check the path and the disk")
