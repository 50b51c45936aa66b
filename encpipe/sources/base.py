"""What every source gives: files, each of which becomes exactly one encrypted file, and their rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol

import pyarrow as pa

from encpipe.errors import EncpipeError


class SourceReader(AbstractContextManager["SourceReader"]):
    """The rows of one source file, in the order of the file. For one thread at a time; closed by `with`.

    `schema` is that of the data columns, without partition columns, and the same for all files of a source.
    `codec` is how the encrypted file is to be compressed, by PyArrow's name, where that is no setting of the
    write.
    """

    schema: pa.Schema
    codec: str | None = None

    @abstractmethod
    def tables(self) -> Iterator[pa.Table]:
        """The rows as tables of exactly `schema`, each to become one row group; none is empty.

        Gives out one table at a time and keeps none; drop yours before asking for the next, or two are in
        memory at once. Raises `EncpipeError` `source-unreadable`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file. Twice is no error."""

    def __enter__(self) -> SourceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Opener(Protocol):
    """Makes the reader of one file."""

    def __call__(self, *, threads: bool) -> SourceReader: ...


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; becomes exactly one encrypted file.

    `name` is unique within the source; `partition` maps partition column to value as text, None for null;
    `size` is in bytes, 0 if unknown. `fingerprint` is the hex SHA-256 over name, size and modification time
    (or ETag), which tells a resumed write that the file is the same; "" if it cannot be reopened.
    """

    name: str
    partition: Mapping[str, str | None]
    fingerprint: str
    size: int
    opener: Opener = field(repr=False, compare=False)

    def open(self, *, threads: bool = True) -> SourceReader:
        """A reader of the rows; `threads=False` decodes in the calling thread (several files at once).

        Raises `EncpipeError` `source-unreadable` or `unsupported`. A stream opens once only.
        """
        return self.opener(threads=threads)


@dataclass(frozen=True)
class Source:
    """Everything one write reads.

    `schema` holds the data columns of all files, with schema and field metadata of the first; `partitions`
    the partition columns with their types. `resumable` says that every file has a fingerprint.
    """

    schema: pa.Schema
    partitions: pa.Schema
    files: tuple[SourceFile, ...]
    resumable: bool


def unreadable(name: str, why: object, *, after_row: int | None = None, hint: str = "") -> EncpipeError:
    """The error for a file that is not what its name promises, with the first line of `why`."""
    lines = str(why).strip().splitlines()
    reason = lines[0].partition(" Detail: ")[0][:500] if lines else type(why).__name__
    if after_row is not None:
        reason += f" (after row {after_row})"
    return EncpipeError(f"source file {name!r} cannot be read: {reason}", hint=hint, code="source-unreadable")


def unsupported(message: str, *, hint: str = "") -> EncpipeError:
    """The error for a source that is readable and outside what a dataset can hold."""
    return EncpipeError(message, hint=hint, code="unsupported")


TO_UTF8: Final = "convert the file: iconv -f latin1 -t utf-8 (or from whatever encoding it has)"
"""What to do with text that is not UTF-8."""

READ_ERRORS: tuple[type[Exception], ...] = (pa.ArrowException, OSError, ValueError, EOFError)
"""What reading damaged input raises: PyArrow's errors, the system's, a decompressor's."""
FAILURES: tuple[type[Exception], ...] = (EncpipeError, *READ_ERRORS)
"""The same, before or after they were made ours."""
