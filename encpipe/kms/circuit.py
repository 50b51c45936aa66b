"""A key service that is out is left alone for a while: nobody waits for it again and again.

After `OUTAGES` calls in a row without an answer every further call fails at once, for `PAUSE_SECONDS` or as
long as the service asks for. Then one call tries, while the others still fail; its outcome decides. Any
answer counts as one: a refusal, too, and an outage that concerns a single key.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Final

from encpipe.errors import EncpipeError, KmsUnavailableError
from encpipe.perprocess import PerProcess

OUTAGES: Final = 3
PAUSE_SECONDS: Final = 10.0
MAX_PAUSE_SECONDS: Final = 300.0


class _Circuit:
    """What this process knows of one service. The next call is due at `again`, on the monotonic clock."""

    def __init__(self, outages: int = 0, again: float = 0.0, last: str = "") -> None:
        self.lock = threading.Lock()
        self.outages, self.again, self.last = outages, again, last
        self.is_trying = False

    def enter(self, service: str) -> None:
        with self.lock:
            if self.outages < OUTAGES:
                return
            left = self.again - time.monotonic()
            if left > 0 or self.is_trying:
                raise _left_alone(service, max(left, 0.0), self.outages, self.last)
            self.is_trying = True

    def leave(self, error: BaseException | None) -> None:
        with self.lock:
            self.is_trying = False
            if isinstance(error, KmsUnavailableError) and error.of_service:
                self.outages, self.last = self.outages + 1, error.message
                pause = min(max(PAUSE_SECONDS, error.retry_after), MAX_PAUSE_SECONDS)
                self.again = time.monotonic() + pause
            elif error is None or isinstance(error, EncpipeError):
                self.outages = 0  # what else ends a call, Ctrl-C say, tells nothing of the service


class _Circuits:
    """Those of one process. A forked child goes on with what the parent knew."""

    def __init__(self, known: Mapping[str, _Circuit]) -> None:
        self.known = dict(known)

    def inherited(self) -> _Circuits:
        before = list(self.known.items())
        return _Circuits({service: _Circuit(c.outages, c.again, c.last) for service, c in before})

    def of(self, service: str) -> _Circuit:
        return self.known.setdefault(service, _Circuit())  # atomic


CIRCUITS: Final = PerProcess(_Circuits({}), _Circuits.inherited)
"""By what messages call the service, its address included. Per process, whichever configuration asks."""


@contextlib.contextmanager
def asking(service: str) -> Iterator[None]:
    """The block is one call to the service. Raises `KmsUnavailableError` instead while it is left alone."""
    circuit = CIRCUITS.get().of(service)
    circuit.enter(service)
    try:
        yield
    except BaseException as error:
        circuit.leave(error)
        raise
    circuit.leave(None)


def _left_alone(service: str, seconds: float, outages: int, last: str) -> KmsUnavailableError:
    error = KmsUnavailableError(
        f"{service} is not asked for another {seconds:.0f} s: {outages} calls in a row failed. "
        f"The last: {last}",
        hint="wrapped keys are safe; go on later, it is asked again then without any doing of yours",
    )
    error.retry_after = seconds
    return error
