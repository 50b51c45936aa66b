"""The unlocked local keyring goes to a process that is being started: through a pipe, never in a pickle."""

from __future__ import annotations

import os
from typing import Any

from encpipe.kms.base import Kms
from encpipe.kms.local import LocalKms


def hand_over(kms: Kms) -> Any:
    """The read end of a pipe that holds what unlocks the keyring, as `take_over` wants it; to be pickled with
    what starts the process. None where no process is being started, or nothing is unlocked.

    One pipe for each process. The parent's read end is closed with multiprocessing's own pipes to it.
    """
    from multiprocessing.context import get_spawning_popen
    from multiprocessing.reduction import DupFd
    from multiprocessing.util import Finalize

    popen = get_spawning_popen()
    if popen is None or not isinstance(kms, LocalKms) or not kms.unlocked:
        return None
    reader, writer = os.pipe()
    Finalize(popen, os.close, (reader,))
    try:
        kms.send_unlocked(writer)
    finally:
        os.close(writer)
    return DupFd(reader)


def take_over(kms: Kms, sent: Any) -> None:
    """Unlock `kms` in the started process with what `hand_over` gave. Raises `KmsError`."""
    assert isinstance(kms, LocalKms)
    reader = sent.detach()
    try:
        kms.receive_unlocked(reader)
    finally:
        os.close(reader)
