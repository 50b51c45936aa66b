"""What a shred did, as a report to be kept: JSON, signed where the configuration names a signing key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from encpipe import signing, strictjson
from encpipe.access import AnyPath, resolve_config
from encpipe.aead import Label
from encpipe.config import Config
from encpipe.errors import ConfigError, EncpipeError, ManifestError, SignatureError, StorageError
from encpipe.lifecycle.keysline import Leftover
from encpipe.signing import SigningKey
from encpipe.strictjson import Fields

FORMAT: Final = "encpipe/1 shred-report"
MAX_REPORT_BYTES: Final = 64 << 20

Verdict = Literal["destroyed", "removed", "incomplete", ""]
"""`destroyed`: no wrapping is left, and what they were wrapped by is gone: no copy of one opens any more.
`removed`: no wrapping is found any more. `incomplete`: see `remaining`. Empty for a dry run."""


NOTE_OPEN: Final = "processes that have the dataset open keep its keys in memory until they close it"
NOTE_COPIES: Final = (
    "backups, replicas, snapshots, pickled handles and copies that others made are out of reach: who has one "
    "from before, and the right to use its master key, still opens it"
)
NOT_TRIED: Final = "not tried in a fresh process"
"""How the note begins that says why there was no such try."""
NOTE_MISSING: Final = (
    "was not there when it was to be destroyed: if no run before this one did that, it was looked for in the "
    "wrong keyring or service, and still opens copies"
)


@dataclass(frozen=True)
class Tried:
    """One try of a fresh process to open what was shredded. `code` is the error it met, empty for none."""

    what: str
    code: str

    @property
    def opened(self) -> bool:
        """Whether it got what it should not."""
        return not self.code


@dataclass(frozen=True)
class RetiredMaster:
    """A master key that was to be destroyed. `rewrapped` are the datasets that moved to `to`.

    `until` is when its bytes are gone, empty where they are; `beyond` names copies that the service does not
    reach; `failed` says why it was not destroyed. `missing`: it was not there (any more), and this run does
    not know whether it is destroyed or was looked for in the wrong place.
    """

    uri: str
    to: str
    rewrapped: tuple[str, ...]
    until: str = ""
    beyond: str = ""
    failed: str = ""
    missing: bool = False

    @property
    def is_gone(self) -> bool:
        """Whether this run saw it destroyed, and nobody has it any more."""
        return not self.until and not self.failed and not self.missing


@dataclass(frozen=True)
class ShredReport:
    """What was shredded, what that was wrapped by, which copies went, and what is left.

    `scope` is `dataset`, `key-names` or `partitions`; `removed` are places below the dataset (with
    `dry_run`, what would go); `remaining` are wrappings that are still there, or places that could not be
    looked at; `tried` is what a fresh process tried. `signer` and `signature` are empty where nothing signs.
    """

    url: str
    dataset_id: str
    generation: int
    revision: int
    scope: str
    key_names: tuple[str, ...]
    keks: tuple[str, ...]
    master_keys: tuple[str, ...]
    removed: tuple[str, ...]
    remaining: tuple[Leftover, ...]
    retired: tuple[RetiredMaster, ...]
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]
    verdict: Verdict
    dry_run: bool
    created: str
    partitions: tuple[Mapping[str, str | None], ...] = ()
    signer: str = ""
    signature: str = ""

    @property
    def untried(self) -> bool:
        """Whether a fresh process should have tried to open it, and none could."""
        return any(note.startswith(NOT_TRIED) for note in self.notes)

    def as_json(self) -> dict[str, Any]:
        """For `--json` and `--report`."""
        return {"format": FORMAT, **asdict(self)}

    def signed(self, key: SigningKey | None) -> ShredReport:
        """The same with the signature of `key`, over all of `as_json` but the signature itself.

        What was shredded is shredded: where signing fails the report is unsigned, and a note says why.
        """
        if key is None:
            return self
        try:
            named = replace(self, signer=key.signer, signature="")
            signature = key.sign_bytes(Label.SHRED_REPORT, _signed_bytes(named.as_json()))
        except EncpipeError as error:
            return replace(self, notes=(*self.notes, f"not signed: {error.message}"))
        return replace(named, signature=signature)

    def save(self, path: AnyPath) -> None:
        """Write it to a new file. Raises `ConfigError` `exists`, `StorageError`."""
        with new_file(path) as file:
            file.save(self)


class NewFile:
    """A file made for a report before there is one, so that what stands against it shows in time."""

    def __init__(self, path: AnyPath, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._saved = False

    def save(self, report: ShredReport) -> None:
        """Write the report, durably. Raises `StorageError`."""
        try:
            self._file.write(strictjson.dumps(report.as_json()) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise not_written(self._path, error) from None
        self._saved = True

    def close(self) -> None:
        """Close it; one without a report goes."""
        with contextlib.suppress(OSError):  # what was saved is on the disk, and the rest is none
            self._file.close()
        if not self._saved:
            with contextlib.suppress(OSError):
                Path(self._path).unlink()


@contextlib.contextmanager
def new_file(path: AnyPath) -> Iterator[NewFile]:
    """A new file for one report. Raises `ConfigError` `exists`, `StorageError`."""
    try:
        file = NewFile(path, Path(path).open("xb"))  # noqa: SIM115 - it is closed below
    except FileExistsError:
        raise exists(path) from None
    except OSError as error:
        raise not_written(path, error) from None
    with contextlib.closing(file):
        yield file


def not_written(path: AnyPath, error: OSError) -> StorageError:
    """The error for a report file that cannot be written."""
    return StorageError(
        f"the report {os.fspath(path)!r} cannot be written: {error.strerror}",
        hint="name a new file in a folder that is there, on a disk with room",
    )


def exists(path: AnyPath) -> ConfigError:
    """The error for a report file that is there already."""
    return ConfigError(
        f"the report {os.fspath(path)!r} is there already", hint="name a new file", code="exists"
    )


def verify_shred_report(
    path: AnyPath, *, signers: Sequence[str] | None = None, config: Config | AnyPath | None = None
) -> Mapping[str, Any]:
    """The report in a file, as JSON, if one of `signers` signed it.

    They default to the configuration's `trust.signers`, else to the signer of its signing key. Raises
    `SignatureError` for a report that is unsigned, edited, or signed by somebody else, `ConfigError` where no
    signer is named or the file is not there, and `ManifestError` `format` for no report.
    """
    trusted = _trusted(config) if signers is None else tuple(signers)
    if not trusted:
        raise ConfigError(
            "nothing says whose signature to ask for",
            hint="add trust.signers to the configuration, or pass signers=",
            code="config-missing",
        )
    raw = strictjson.loads(_read(path), what="a shred report", code="format")
    fields = Fields(raw, what="a shred report", code="format")
    if fields.text("format") != FORMAT:
        raise ManifestError("this is no shred report of a known version", code="format")
    signer, signature = fields.text("signer"), fields.text("signature")
    if not signature:
        raise SignatureError(
            "the report is not signed: whoever had the file may have written it",
            hint="a shred signs its report where the configuration has a table signing",
        )
    if signer not in trusted:
        raise SignatureError(
            f"the report is signed by {signer[:60]!r}, whom this configuration does not trust",
            hint="if that is one of yours, add it to trust.signers",
        )
    signing.check_bytes_by(signer, Label.SHRED_REPORT, _signed_bytes(raw), signature)
    return raw


def _trusted(config: Config | AnyPath | None) -> tuple[str, ...]:
    settings = resolve_config(config)
    return settings.trust.signers or signing.writer_signing(settings).signers


def _signed_bytes(report: Mapping[str, Any]) -> bytes:
    return strictjson.dumps({name: value for name, value in report.items() if name != "signature"})


def _read(path: AnyPath) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the report {os.fspath(path)!r} cannot be read: {error.strerror}", code="config-missing"
        ) from None
    if len(data) > MAX_REPORT_BYTES:
        raise ManifestError(f"a shred report is at most {MAX_REPORT_BYTES} bytes long", code="format")
    return data
