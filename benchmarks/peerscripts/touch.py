"""What is done with every batch, whoever made it: each value is looked at. Imported by peers and by ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def touch(batch: Mapping[str, Any]) -> int:
    """Sum every tensor, take the length of every str or bytes. Returns the batch's rows."""
    for column in batch.values():
        if isinstance(column, torch.Tensor):
            column.sum()
        else:
            sum(map(len, column))
    return len(next(iter(batch.values())))


def total(column: Any) -> float:
    """The same, exactly enough to compare what two loaders gave."""
    if isinstance(column, torch.Tensor):
        return float(column.to(torch.float64).sum())
    return float(sum(map(len, column)))
