"""What tests of code that uses encpipe need: fakes, faults, and contract suites for back ends.

`KmsContract` needs pytest and is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from encpipe.testing.faultproxy import Fault, FaultProxy
from encpipe.testing.memory import FaultyKms, InMemoryKms

if TYPE_CHECKING:
    from encpipe.testing.kmscontract import KmsContract

__all__ = ["Fault", "FaultProxy", "FaultyKms", "InMemoryKms", "KmsContract"]


def __getattr__(name: str) -> Any:
    if name == "KmsContract":
        from encpipe.testing.kmscontract import KmsContract

        return KmsContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
