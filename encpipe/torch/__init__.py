"""Encrypted datasets as PyTorch input, decrypted in memory only.

    from encpipe.torch import Loader

    loader = Loader("s3://bucket/flights", 4096, stack={"x": ["hour", "distance"]}, shuffle=True, seed=7)
    for batch in loader:
        batch["x"], batch["arr_delay"]

`Loader` reads with threads of the training process. `IterableDataset` and `MapDataset` are for PyTorch's own
`DataLoader`, with or without worker processes. Importing this without PyTorch raises `MissingExtraError`.
"""

from __future__ import annotations

from encpipe.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401 - imported here so that its absence has one clear answer
except ModuleNotFoundError:
    raise MissingExtraError(
        "encpipe.torch needs PyTorch, which is not installed", hint="pip install 'encpipe[torch]'"
    ) from None

from encpipe.torch.conversion import Batch, Conversion, Nulls
from encpipe.torch.dataset import IterableDataset, resume_state
from encpipe.torch.loader import Loader
from encpipe.torch.mapped import MapDataset, Rows
from encpipe.torch.source import RowGroupSource
from encpipe.torch.state import merge_states
from encpipe.torch.stats import Stats

__all__ = [
    "Batch",
    "Conversion",
    "IterableDataset",
    "Loader",
    "MapDataset",
    "Nulls",
    "RowGroupSource",
    "Rows",
    "Stats",
    "merge_states",
    "resume_state",
]
