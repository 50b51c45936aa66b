"""The error tree. Every error says what happened, where, and what to do next; none carries key bytes.

    EncpipeError                 exit 1
    ├── ConfigError              exit 2   a setting, a policy or an option is wrong; nothing was touched
    │   ├── PolicyError                   the policy does not fit the schema
    │   ├── UntrustedKeyError             a master key the reader's config does not name
    │   └── MissingExtraError             an optional package is absent; the text is the pip command
    ├── KmsError                 exit 3   a key service said no, or nothing
    │   ├── KmsUnavailableError           outage, throttling, deadline: trying later may help
    │   ├── KeyAccessDeniedError          the service knows the key and refuses it to us
    │   ├── KeyNotFoundError              the service does not have the key
    │   └── ShreddedError                 the key was destroyed on purpose
    ├── IntegrityError           exit 4   bytes are not what their writer committed to
    │   ├── UnwrapError                   a wrapped key does not open
    │   ├── DecryptionError               sealed bytes do not open
    │   ├── PlaintextFileError            a plaintext file where a sealed one belongs
    │   ├── ManifestError                 manifest or file list is damaged, edited or replaced
    │   ├── SignatureError                a signature is missing or wrong
    │   ├── StaleDatasetError             another or an older dataset than the one pinned
    │   └── FormatError                   not this format, or a newer version of it
    └── StorageError             exit 5   the storage failed; what was there is still there
        └── ConflictError                 another writer was first

`code` is stable and machine readable: `CODES` lists every one with its meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

CODES: Final[dict[str, str]] = {
    # EncpipeError
    "internal": "encpipe met a state it does not expect; please report it",
    "interrupted": "stopped by Ctrl-C; datasets are as they were before",
    "source-unreadable": "a source file cannot be read as the format its name promises",
    "source-empty": "no source file matches, or none holds a table",
    "source-changed": "the source or a setting differs from the stopped write that would be resumed",
    "unsupported": "the data or the request is outside what the format can hold",
    # ConfigError
    "config": "the configuration cannot be used",
    "usage": "the command line does not fit the command",
    "config-unknown-key": "the configuration has a key that encpipe does not know",
    "config-missing": "no configuration, keyring or setting that this operation needs",
    "exists": "the target exists and would be overwritten",
    "policy": "the policy is not valid",
    "policy-no-match": "a policy entry matches no column of the schema",
    "policy-two-keys": "a column falls under two key names",
    "policy-partition": "a partition column is named under a column key, or is no partition column",
    "policy-column-name": "PyArrow cannot encrypt a column of this name",
    "policy-strict": "strict is on and a column is not named",
    "policy-weaker": "an overwrite would put a column of a column key under the footer key",
    "last-wrapping": "without this master key nobody could open the data any more",
    "no-wrapping": "the master key opens no key of this key name",
    "untrusted-key": "a dataset names a master key that the configuration does not trust",
    "insecure-transport": "a connection that is plain and not to loopback, or below TLS 1.2",
    "untrusted-certificate": "a server shows a certificate that no configured CA vouches for",
    "missing-extra": "an optional package is not installed",
    "memory-lock": "the system refuses to keep this process's memory out of swap",
    "keyring-permissions": "the keyring or a key file can be read by others",
    "filter": "the filter or the column selection does not fit the dataset",
    "resume-state": "a resume state belongs to another dataset, other data, columns, seed or order",
    "nulls": "a column has nulls, and the reader did not say what takes their place",
    # KmsError
    "kms": "the key service answered with an error",
    "kms-unavailable": "the key service did not answer, or is overloaded",
    "credentials": "the key service does not know who is asking: credentials are wrong or expired",
    "key-denied": "the key service refuses this key to this identity",
    "key-not-found": "the key service does not have this key",
    "key-disabled": "the key exists and is disabled or pending deletion",
    "pin-locked": "the PIN of a token is locked, or the next wrong one would lock it",
    "passphrase-wrong": "the passphrase or key file does not open the keyring",
    "shredded": "the key was destroyed on purpose",
    # IntegrityError
    "unwrap": "a wrapped key does not open: it was changed, or belongs elsewhere",
    "kek-commitment": "a wrapping opens to another key than the manifest commits to",
    "dek-commitment": "a file uses another data key than the file list commits to",
    "decryption": "sealed bytes do not open: they were changed, or belong elsewhere",
    "plaintext-file": "a plaintext file stands where an encrypted one belongs",
    "manifest": "the manifest is damaged, edited or replaced",
    "manifest-mac": "the manifest's MAC does not fit its bytes",
    "file-list": "the file list is damaged, edited or replaced",
    "journal": "the journal of a stopped write is damaged or not ours",
    "file-missing": "a file of the dataset is gone",
    "file-size": "a file of the dataset has another size than committed",
    "file-hash": "a file of the dataset has other bytes than committed",
    "file-rows": "a file of the dataset has other rows than committed",
    "file-damaged": "a file of the dataset cannot be decrypted or decoded",
    "file-foreign": "a file holds a column sealed under a key the writer did not commit to",
    "keyring-damaged": "the keyring file is damaged or edited",
    "audit-chain": "lines of an audit log were edited, removed or moved",
    "signature": "a signature is missing or wrong",
    "stale": "another or an older dataset than the one pinned",
    "format": "not an encpipe dataset, or not well formed",
    "format-newer": "written by a newer encpipe",
    # StorageError
    "storage": "the storage failed",
    "storage-full": "the storage is full",
    "not-found": "no dataset or object at this URL",
    "storage-denied": "the storage refuses access",
    "storage-unavailable": "the storage did not answer",
    "conditional-writes": "this storage cannot refuse a concurrent commit",
    "conflict": "another writer committed first",
    "locked": "another live writer owns this journal",
    "gateway-denied": "the gateway does not take this certificate for anyone it knows",
    "gateway-busy": "the gateway has as many streams as it may have, or is ending",
    "ticket": "a ticket of the gateway has expired, or is not for this gateway, identity or rule",
    "row-limit": "the gateway gives this identity no more rows in this period",
    "audit": "the audit log did not take a line, so the operation was refused",
}


def _note(hint: str) -> str:
    return f"hint: {hint}"


def _rebuild(cls: type[EncpipeError], message: str, hint: str, code: str) -> EncpipeError:
    return cls(message, hint=hint, code=code)


class EncpipeError(Exception):
    """Base of all errors of encpipe.

    `message` says what happened and where, `hint` what to do next, `code` is one of `CODES`,
    `exit_code` is what the command line exits with. A traceback shows the hint below the message, as a note.
    Crosses process borders by pickle unchanged.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self._hint = ""
        self.hint = hint
        self.code = self.default_code if code is None else code
        if self.code not in CODES:
            raise ValueError(f"error code {self.code!r} is not listed in CODES")

    @property
    def hint(self) -> str:
        """What to do next; empty where there is nothing to say."""
        return self._hint

    @hint.setter
    def hint(self, hint: str) -> None:
        notes = getattr(self, "__notes__", [])
        if _note(self._hint) in notes:
            notes.remove(_note(self._hint))
        self._hint = hint
        if hint:
            self.add_note(_note(hint))

    def __reduce__(self) -> tuple[Callable[..., EncpipeError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.message, self.hint, self.code)


class ConfigError(EncpipeError):
    """A setting, a policy or an option is wrong; nothing was touched."""

    exit_code = 2
    default_code = "config"


class PolicyError(ConfigError):
    """The policy is not valid, or does not fit the schema."""

    default_code = "policy"


class UntrustedKeyError(ConfigError):
    """A dataset names a master key that the reader's or writer's config does not trust."""

    default_code = "untrusted-key"


class MissingExtraError(ConfigError):
    """An optional package is absent. The hint is the pip command that installs it."""

    default_code = "missing-extra"


class KmsError(EncpipeError):
    """A key service said no, or nothing."""

    exit_code = 3
    default_code = "kms"


class KmsUnavailableError(KmsError):
    """Outage, throttling or a passed deadline. Trying later may help.

    `retry_after` is how many seconds the service asks to be left alone; 0 where it does not say. `of_service`
    is False where it answers, and one of its keys is what cannot be used now.
    """

    default_code = "kms-unavailable"
    retry_after: float = 0.0
    of_service: bool = True


class KeyAccessDeniedError(KmsError):
    """The service knows the key and refuses it to us."""

    default_code = "key-denied"


class KeyNotFoundError(KmsError):
    """The service does not have the key."""

    default_code = "key-not-found"


class ShreddedError(KmsError):
    """The key was destroyed on purpose. No retry and no backup of the manifest can help."""

    default_code = "shredded"


class IntegrityError(EncpipeError):
    """Bytes are not what their writer committed to."""

    exit_code = 4
    default_code = "manifest"


class UnwrapError(IntegrityError):
    """A wrapped key does not open, or opens to another key than committed."""

    default_code = "unwrap"


class DecryptionError(IntegrityError):
    """Sealed bytes do not open."""

    default_code = "decryption"


class PlaintextFileError(IntegrityError):
    """A plaintext file stands where an encrypted one belongs."""

    default_code = "plaintext-file"


class ManifestError(IntegrityError):
    """Manifest, file list or journal is damaged, edited or replaced."""

    default_code = "manifest"


class SignatureError(IntegrityError):
    """A signature is missing or wrong."""

    default_code = "signature"


class StaleDatasetError(IntegrityError):
    """Another or an older dataset than the one pinned."""

    default_code = "stale"


class FormatError(IntegrityError):
    """Not this format, or a newer version of it."""

    default_code = "format"


class StorageError(EncpipeError):
    """The storage failed. What was there is still there."""

    exit_code = 5
    default_code = "storage"


class ConflictError(StorageError):
    """Another writer was first."""

    default_code = "conflict"
