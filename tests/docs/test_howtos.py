"""The programs of docs/howto run as they are shown, each page in a folder of its own with a small dataset.

The blocks of a page that are Python are one program, in their order; one that begins with the name of a file
becomes that file instead. `recorded` runs such a file and notes which rows it was given.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import encpipe
from encpipe.config import Config, KeyringConfig
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.unlock import create_key_file

HOWTO = Path(__file__).parents[2] / "docs" / "howto"
PAGES = sorted(HOWTO.glob("*.md"))
ROWS = 3000


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (HOWTO / f"{page}.md").read_text(), re.M | re.S)


def program(page: str) -> str:
    return "\n".join(block for block in blocks(page) if not re.match(r"# \w+\.py\n", block))


def save_files(page: str, folder: Path) -> None:
    for block in blocks(page):
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block)


def flights() -> pa.Table:
    """Rows like those of `make demo`; `flight` is the row's number."""
    random = np.random.default_rng(1)
    numbers = {
        name: random.integers(low, high, ROWS)
        for name, low, high in (("month", 1, 13), ("day", 1, 29), ("hour", 0, 24), ("minute", 0, 60))
    }
    delays = random.normal(10, 30, ROWS).round()
    return pa.table(
        {
            **numbers,
            "dep_delay": pa.array(delays, pa.float64()),
            "arr_delay": pa.array([None if n % 50 == 0 else delay - 3 for n, delay in enumerate(delays)]),
            "distance": pa.array(random.integers(80, 5000, ROWS).astype(float)),
            "carrier": random.choice(["UA", "B6", "DL"], ROWS),
            "tailnum": [f"N{n}" for n in range(ROWS)],
            "flight": np.arange(ROWS),
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A current folder with `flights`, and a home with the keyring that opens it."""
    home = tmp_path / "home"
    for inner in ("config", "data"):
        (home / inner / "encpipe").mkdir(parents=True)
    create_key_file(home / "key")
    keyring = KeyringConfig(home / "data" / "encpipe" / "keyring.json", f"key-file:{home / 'key'}")
    KeyringFile.from_config(keyring).create("default", "pii")
    lines = (
        f'[keyring]\npath = "{keyring.path}"\nunlock = "{keyring.unlock}"',
        '[keys]\nfooter = ["local:default"]\npii = ["local:pii"]',
    )
    (home / "config" / "encpipe" / "config.toml").write_text("\n".join(lines))
    config = Config(keyring=keyring, keys={"footer": ("local:default",), "pii": ("local:pii",)})
    here = tmp_path / "here"
    here.mkdir()
    for number, start in enumerate(range(0, ROWS, 1000)):
        pq.write_table(flights().slice(start, 1000), home / f"{number}.parquet", row_group_size=100)
    policy = encpipe.Policy(columns={"pii": ["tailnum"]})
    encpipe.write_dataset(str(home / "*.parquet"), here / "flights", policy=policy, config=config)
    return here


def run(folder: Path, *command: str, **more: str) -> str:
    """What a command prints; it must end well."""
    home = folder.parent / "home"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCPIPE_", "XDG_"))}
    kept |= {"HOME": str(home), "XDG_CONFIG_HOME": f"{home}/config", "XDG_DATA_HOME": f"{home}/data"}
    kept |= {"OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(
        command, cwd=folder, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", ["train", "shuffle", "resume", "random-access"])
def test_the_program_of_a_page_does_what_it_says(folder: Path, page: str) -> None:
    printed = run(folder, sys.executable, "-c", program(page))
    if page == "train":
        figures = re.findall(r"^(\d+) rows, [\d,]+ a second, waited [\d.]+ s$", printed, re.M)
        trained_on = flights().filter(pc.field("arr_delay").is_valid() & (pc.field("month") != 12))
        assert figures == [str(len(trained_on))] * 2


RECORD = """
import json, os, sys, torch
from encpipe.torch import Loader

epochs, stop, out = [], int(sys.argv[1]), sys.argv[2]
begin = Loader.__iter__

def noting(self):
    epoch, batches = self.epoch, []
    epochs.append((epoch, batches))
    for batch in begin(self):
        batches.append(batch["flight"].tolist())
        yield batch
        if len(batches) == stop:
            raise KeyboardInterrupt  # the step is done

Loader.__iter__ = noting

def parameters(model):
    return [value.tolist() for value in model.parameters()]

def note(model):
    with open(f"{out}-{os.environ.get('LOCAL_RANK', 0)}.json", "w") as file:
        json.dump({"epochs": epochs, "parameters": parameters(model)}, file)
"""

RUN_DDP = """
import train_ddp
models = []
wrapped = train_ddp.DistributedDataParallel

def kept(module):
    models.append(wrapped(module))
    return models[0]

train_ddp.DistributedDataParallel = kept
try:
    train_ddp.main()
except KeyboardInterrupt:
    torch.distributed.destroy_process_group()
note(models[0])
"""


def noted(folder: Path, name: str, rank: int = 0) -> Any:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def rows(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def test_two_ranks_train_together_and_one_goes_on_with_what_they_left(folder: Path) -> None:
    save_files("ddp", folder)
    (folder / "recorded.py").write_text(RECORD + RUN_DDP)
    (command,) = re.findall(r"^torchrun .*$", (HOWTO / "ddp.md").read_text(), re.M)
    torchrun = [sys.executable, "-m", "torch.distributed.run", *command.split()[1:-1]]
    run(folder, *torchrun, "recorded.py", "10", "two")
    ranks = [noted(folder, "two", rank) for rank in range(2)]
    (first,), (second,) = (rank["epochs"] for rank in ranks)
    assert [len(batch) for batch in first[1]] == [len(batch) for batch in second[1]] == [64] * 10
    given = rows(first[1] + second[1])
    assert len(set(given)) == len(given)
    assert ranks[0]["parameters"] == ranks[1]["parameters"]

    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    run(folder, sys.executable, "recorded.py", "0", "one", **alone)
    (rest, following) = noted(folder, "one")["epochs"]
    assert [rest[0], following[0]] == [0, 1]
    assert sorted(given + rows(rest[1])) == sorted(rows(following[1])) == list(range(ROWS))


def test_lightning_goes_on_within_an_epoch(folder: Path) -> None:
    (folder / "recorded.py").write_text(RECORD + program("lightning") + "\nnote(Model())\n")
    run(folder, sys.executable, "recorded.py", "0", "epochs")
    (first, rest, following) = noted(folder, "epochs")["epochs"]
    assert [first[0], rest[0], following[0]] == [0, 0, 1]
    assert len(first[1]) == 25
    assert sorted(rows(first[1] + rest[1])) == sorted(rows(following[1])) == list(range(ROWS))


def test_lightning_shards_among_ranks_with_its_sampler_setting_as_it_is(folder: Path) -> None:
    text = program("lightning").replace('accelerator="cpu"', 'accelerator="cpu", devices=2, strategy="ddp"')
    text = re.sub(
        r"^trainer\(max_steps=.*\n", "trainer(max_epochs=1).fit(Model(), Flights())\n", text, flags=re.M
    )
    text = re.sub(r"^trainer\(max_epochs=2.*\n", "", text, flags=re.M)
    (folder / "recorded.py").write_text(RECORD + text + "\nnote(Model())\n")
    run(folder, sys.executable, "recorded.py", "0", "ranks")
    (first,), (second,) = (noted(folder, "ranks", rank)["epochs"] for rank in range(2))
    assert len(first[1]) == len(second[1])
    assert sorted(rows(first[1] + second[1])) == list(range(ROWS))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_about_one_screen(page: Path) -> None:
    """What makes it longer is a reason to say less."""
    assert len(page.read_text().splitlines()) <= 110
