"""Whether a fresh process opens what was shredded: it has no key in its memory, as a new reader has none."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from encpipe import strictjson
from encpipe.access import Access
from encpipe.config import AuditConfig
from encpipe.core import KekRecord
from encpipe.errors import EncpipeError, ManifestError
from encpipe.keys import WrappedKey
from encpipe.lifecycle.shredreport import Tried
from encpipe.manifest import wrappings_json

CHILD: Final = "encpipe.lifecycle.shredchild"
TIMEOUT_SECONDS: Final = 300.0
"""A fresh process that has not answered by then is ended."""


@dataclass(frozen=True)
class Trial:
    """What was tried; `why_not` says why nothing was."""

    tried: tuple[Tried, ...] = ()
    why_not: str = ""


def try_afresh(
    access: Access,
    dataset_id: str,
    keks: Mapping[str, KekRecord],
    wrappings: Mapping[str, tuple[WrappedKey, ...]],
    names: Mapping[str, str],
    partition_keks: Mapping[str, str] | None = None,
) -> Trial:
    """Have a new process try each of `keks` (none: the dataset), and each of `wrappings` by its master key.

    `names` has the key name of each KEK. With `partition_keks` (id -> key name) it looks for just these, in
    the file list of every generation. It finds credentials as this process did. What unlocks the keyring,
    storage options and settings of services go through pipes: not in its arguments, nor in files. Never
    raises: what it could not do is in `why_not`.
    """
    asked = {
        "dataset_id": dataset_id,
        "keks": {kek_id: record.key_name for kek_id, record in keks.items()},
        "wrappings": wrappings_json(wrappings),
        "names": {kek_id: names[kek_id] for kek_id in wrappings},
        "partition_keks": partition_keks,
    }
    try:
        answers = strictjson.loads(_run(access, asked), what="its answer")["tried"]
    except ManifestError:
        return Trial(why_not="the process ended without an answer")
    except (EncpipeError, pickle.PicklingError) as error:
        return Trial(why_not=error.message if isinstance(error, EncpipeError) else str(error))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Trial(why_not=f"the process ended with {type(error).__name__}")
    return Trial(tuple(Tried(what, code) for what, code in answers))


def _run(access: Access, asked: dict[str, Any]) -> bytes:
    with ExitStack() as held:
        reader, writer = os.pipe()
        held.callback(os.close, reader)
        try:
            unlocked = access.master_keys.send_unlocked(writer)
        finally:
            os.close(writer)
        done = subprocess.run(  # noqa: S603 - this interpreter, and a module of ours
            [sys.executable, "-P", "-m", CHILD],  # -P: not what lies in the working directory
            input=_message(access, {**asked, "keyring": reader if unlocked else None}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a traceback may show more than codes
            pass_fds=(reader,) if unlocked else (),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(os.path.isabs, sys.path))},
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    return done.stdout


def _message(access: Access, asked: dict[str, Any]) -> bytes:
    """One line of JSON with all that may be secret, and a pickle of the rest.

    The audit log goes on in a file only: who listens to a logger of this process is not there.
    """
    keys = access.master_keys
    audit = keys.config.audit
    to_file = audit.sink is not None and audit.sink.startswith("file:")
    config = replace(keys.config, kms={}, storage={}, audit=audit if to_file else AuditConfig())
    settings = {
        "options": dict(access.options),
        "kms": {name: dict(table) for name, table in keys.config.kms.items()},
        "storage": {name: dict(table) for name, table in access.config.storage.items()},
    }
    line = json.dumps({**asked, **settings}, default=os.fspath)
    return line.encode() + b"\n" + pickle.dumps((access.place, keys.under(config)))
