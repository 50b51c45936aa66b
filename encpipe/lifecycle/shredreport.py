"""What a shred did, as a report to be kept: JSON, signed where the configuration names a signing key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from encpipe import signing, strictjson
from encpipe.access import AnyPath, resolve_config
from encpipe.aead import Label
from encpipe.config import Config
from encpipe.errors import ConfigError, ManifestError, SignatureError, StorageError
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

    def as_json(self) -> dict[str, Any]:
        """For `--json` and `--report`."""
        return {"format": FORMAT, **asdict(self)}

    def signed(self, key: SigningKey | None) -> ShredReport:
        """The same with the signature of `key`, over all of `as_json` but the signature itself."""
        if key is None:
            return self
        named = replace(self, signer=key.signer, signature="")
        return replace(named, signature=key.sign_bytes(Label.SHRED_REPORT, _signed_bytes(named.as_json())))

    def save(self, path: AnyPath) -> None:
        """Write it to a new file. Raises `ConfigError` `exists`, `StorageError`."""
        try:
            with Path(path).open("xb") as file:
                file.write(strictjson.dumps(self.as_json()) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise exists(path) from None
        except OSError as error:
            raise StorageError(f"the report {os.fspath(path)!r} was not written: {error.strerror}") from None


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
