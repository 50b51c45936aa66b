"""Encrypted datasets as PyTorch input, decrypted in the training process.

    from torch.utils.data import DataLoader
    from encpipe.torch import IterableDataset

    data = IterableDataset("s3://bucket/flights", columns=["distance", "arr_delay"], nulls="mask")
    for batch in DataLoader(data, batch_size=None):
        batch["distance"], batch["arr_delay"], batch["arr_delay_mask"]

Importing this without PyTorch raises `MissingExtraError`.
"""

from __future__ import annotations

from encpipe.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401 - imported here so that its absence has one clear answer
except ModuleNotFoundError:
    raise MissingExtraError(
        "encpipe.torch needs PyTorch, which is not installed", hint="pip install 'encpipe[torch]'"
    ) from None

from encpipe.torch.dataset import IterableDataset
from encpipe.torch.tensors import Batch, Nulls

__all__ = ["Batch", "IterableDataset", "Nulls"]
