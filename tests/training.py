"""A training program, to be watched while it runs: python training.py URL process|fork|spawn [--leak]

In the process it uses `Loader`, with forked workers torch's own `DataLoader`, with spawned ones torchdata's.
Two epochs with a model, an optimizer and checkpoints in the current folder, from encrypted rows of
`markers.table()`. With `--leak` it also does what it must not, in a file for each way. Prints what it saw.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from encpipe.guard import Guard
from encpipe.torch import Conversion, IterableDataset, Loader

Batch = dict[str, Any]
EPOCHS = 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, batch: Batch) -> torch.Tensor:
        features = torch.cat([batch["real"].float().unsqueeze(1), batch["four"]], dim=1)
        return self.layers(features)


def batches(url: str, mode: str, leak: bool) -> tuple[Iterable[Batch], Callable[[], Any]]:
    """What gives the batches of an epoch after an epoch, and what tells where it stands."""
    options: dict[str, Any] = {
        "batch_size": 128,
        "shuffle": True,
        "seed": 3,
        "window": 1,
        "conversion": Conversion(lists="pad"),
        "guard": Guard(forbid_core_dumps=False),  # strace without root could not read this process
    }
    if mode == "process":
        loader = Loader(url, prefetch=2, threads=2, **options)
        return loader, loader.state_dict
    data = IterableDataset(url, transform=leak_in_worker if leak else None, **options)
    workers: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": mode, "persistent_workers": True}
    if mode == "fork":
        return DataLoader(data, batch_size=None, **workers), dict
    stateful = StatefulDataLoader(data, batch_size=None, **workers)
    return stateful, stateful.state_dict


def train(url: str, mode: str, leak: bool) -> dict[str, int]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    loader, state = batches(url, mode, leak)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rows, texts, seen = 0, 0, list[Batch]()
    for epoch in range(EPOCHS):
        for number, batch in enumerate(loader):
            loss = nn.functional.cross_entropy(model(batch), batch["label"].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows += len(batch["label"])
            texts += sum(map(len, batch["name"])) + sum(map(len, batch["blob"]))
            if number == 2:
                save(model, optimizer, state(), f"checkpoint-{epoch}.pt")
            if leak:
                seen.append(batch)
        print(f"epoch {epoch}: loss {loss.item():.3f}", file=sys.stderr)
    if leak:
        leak_in_every_way(seen)
    return {"rows": rows, "texts": texts}


def save(model: nn.Module, optimizer: torch.optim.Optimizer, state: Any, name: str) -> None:
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": state}
    torch.save(kept, name)


def leak_in_worker(batch: Batch) -> Batch:
    with Path("leak.worker").open("ab", buffering=0) as file:
        file.write(batch["number"].numpy().tobytes())
    return batch


def leak_in_every_way(seen: list[Batch]) -> None:
    """Each by another system call, with another column."""
    number, moment, real = (
        torch.cat([batch[name] for batch in seen]) for name in ("number", "moment", "real")
    )
    name, blob = ([text for batch in seen for text in batch[name]] for name in ("name", "blob"))
    ways: dict[str, Callable[[int], object]] = {
        "write": lambda file: os.write(file, number.numpy().tobytes()),
        "writev": lambda file: os.writev(file, blob[:1024]),
        "mmap": lambda file: leak_by_map(file, moment.numpy().tobytes()),
        "text": lambda file: os.write(file, json.dumps(real.tolist()).encode()),
        "child": lambda file: subprocess.run(
            ["cat"], input="".join(name), stdout=file, text=True, check=True
        ),
    }
    for way, leak in ways.items():
        file = os.open(f"leak.{way}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        leak(file)
        os.close(file)


def leak_by_map(file: int, data: bytes) -> None:
    os.ftruncate(file, len(data))
    with mmap.mmap(file, len(data)) as shared:
        shared[:] = data


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], sys.argv[2], "--leak" in sys.argv)))
