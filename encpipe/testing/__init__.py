"""What tests of code that uses encpipe need: fakes, faults, and contract suites for back ends.

`KmsContract`, `SigningContract` and `StorageContract` need pytest and are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from encpipe.testing.faultproxy import Fault, FaultProxy
from encpipe.testing.faultykms import FaultyKms
from encpipe.testing.memory import InMemoryKms

if TYPE_CHECKING:
    from encpipe.testing.kmscontract import KmsContract
    from encpipe.testing.signingcontract import SigningContract
    from encpipe.testing.storage_contract import StorageContract

__all__ = [
    "Fault",
    "FaultProxy",
    "FaultyKms",
    "InMemoryKms",
    "KmsContract",
    "SigningContract",
    "StorageContract",
]


def __getattr__(name: str) -> Any:
    if name == "KmsContract":
        from encpipe.testing.kmscontract import KmsContract

        return KmsContract
    if name == "SigningContract":
        from encpipe.testing.signingcontract import SigningContract

        return SigningContract
    if name == "StorageContract":
        from encpipe.testing.storage_contract import StorageContract

        return StorageContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
