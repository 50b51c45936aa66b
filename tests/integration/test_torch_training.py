"""Training input straight from ciphertext: real datasets, `Loader`, the stock DataLoader."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import encpipe
from encpipe.config import Config
from encpipe.kms.registry import MasterKeys
from encpipe.testing import InMemoryKms
from encpipe.torch import Conversion, IterableDataset, Loader
from encpipe.torch.feed import OpenOptions

ROWS = 1000
CONFIG = Config(keys={"footer": ("memory:main",), "pii": ("memory:pii",)})


Reader = Loader | IterableDataset


class Place:
    """A dataset of two files in row groups of 300 rows, and the table it was made of."""

    def __init__(self, folder: Path) -> None:
        self.reader: type[Reader] = Loader
        self.kms = InMemoryKms(["main", "pii"])
        self.url = str(folder / "sealed")
        self.table = pa.table(
            {
                "n": pa.array(range(ROWS), pa.int32()),
                "x": pa.array([None if n % 7 == 0 else n / 2 for n in range(ROWS)]),
                "day": pa.array(range(ROWS), pa.date32()),
                "pair": pa.array([[n, n + 1] for n in range(ROWS)], pa.list_(pa.float32(), 2)),
                "name": pa.array([f"s{n}" for n in range(ROWS)]),
                "list": pa.array([[n] for n in range(ROWS)]),
                "kind": pa.array(["u", "v"] * (ROWS // 2)).dictionary_encode(),
            }
        )
        plain = folder / "plain"
        plain.mkdir()
        for number, start in enumerate((0, 450)):
            part = self.table.slice(start, 450 if start == 0 else None)
            pq.write_table(part, plain / f"{number}.parquet", row_group_size=300)
        encpipe.write_dataset(
            plain, self.url, policy=encpipe.Policy(columns={"pii": ("name",)}), **self.access()
        )

    def access(self) -> dict[str, Any]:
        return {"config": CONFIG, "master_keys": MasterKeys(CONFIG, extra={"memory": self.kms})}

    def dataset(self, *args: Any, **kwargs: Any) -> Reader:
        return self.reader(self.url, *args, **self.access(), **kwargs)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("torch"))


@pytest.fixture(params=[Loader, IterableDataset], ids=["loader", "dataset"])
def place(made: Place, request: pytest.FixtureRequest) -> Place:
    """The dataset, as read by one of the two."""
    made.reader = request.param
    return made


def joined(batches: Iterable[dict[str, Any]], name: str) -> list[Any]:
    return [value for batch in batches for value in (batch[name] if name == "name" else batch[name].tolist())]


def test_batches_are_exact_across_row_groups_and_files(place: Place) -> None:
    batches = list(place.dataset(columns=["n", "pair", "day", "name", "kind"], batch_size=128))
    assert [len(batch["n"]) for batch in batches] == [128] * 7 + [104]
    assert joined(iter(batches), "n") == list(range(ROWS))
    assert joined(iter(batches), "pair") == place.table["pair"].to_pylist()
    assert joined(iter(batches), "name") == place.table["name"].to_pylist()
    assert batches[3]["kind"][:2] == ["u", "v"]
    assert batches[0]["pair"].shape == (128, 2)
    assert batches[0]["day"].dtype == torch.int64


def test_a_batch_may_be_larger_than_the_dataset(place: Place) -> None:
    (batch,) = place.dataset(columns=["n"], batch_size=10 * ROWS)
    assert len(batch["n"]) == ROWS


def test_every_pass_yields_the_same(place: Place) -> None:
    data = place.dataset(columns=["n"], batch_size=64)
    assert joined(iter(data), "n") == joined(iter(data), "n")


def test_a_pass_that_is_broken_off_leaves_the_next_one_whole(place: Place) -> None:
    data = place.dataset(columns=["n"], batch_size=10)
    next(iter(data))
    assert joined(iter(data), "n") == list(range(ROWS))


def test_the_stock_dataloader_takes_it(made: Place) -> None:
    data = IterableDataset(made.url, 256, ["n", "x"], nulls="mask", **made.access())
    assert joined(DataLoader(data, batch_size=None), "n") == list(range(ROWS))


def test_nulls_become_a_mask_or_a_number_or_an_error(place: Place) -> None:
    assert joined(place.dataset(columns=["x"], nulls="mask"), "x_mask") == [n % 7 != 0 for n in range(ROWS)]
    assert joined(place.dataset(columns=["x"], nulls=-1), "x")[:3] == [-1, 0.5, 1.0]
    with pytest.raises(encpipe.ConfigError, match="column 'x' has nulls"):
        list(place.dataset(columns=["x"]))


def test_a_filter_drops_rows_before_they_are_batched(place: Place) -> None:
    data = place.dataset(
        columns=["n"], batch_size=100, filter=pc.field("x").is_valid() & (pc.field("n") >= 500)
    )
    found = joined(iter(data), "n")
    assert found == [n for n in range(500, ROWS) if n % 7]


def test_a_key_is_asked_for_only_if_a_column_needs_it(place: Place) -> None:
    with encpipe.open_dataset(place.url, **place.access()) as dataset:
        list(place.reader(dataset, columns=["n"]))
        assert dataset.kms_calls == 1
        list(place.reader(dataset, columns=["name"]))
        assert dataset.kms_calls == 2


def test_the_options_are_those_of_open_dataset(place: Place) -> None:
    parameters = list(inspect.signature(encpipe.open_dataset).parameters)
    assert list(get_type_hints(OpenOptions)) == parameters[1:]
    with pytest.raises(encpipe.StaleDatasetError):
        place.dataset(min_generation=9)


def test_an_open_dataset_takes_no_options(place: Place) -> None:
    with (
        encpipe.open_dataset(place.url, **place.access()) as dataset,
        pytest.raises(encpipe.ConfigError, match="'min_generation' goes with a URL"),
    ):
        place.reader(dataset, min_generation=1)


def test_a_column_that_no_tensor_can_hold_is_refused_when_it_is_made(place: Place) -> None:
    with pytest.raises(encpipe.EncpipeError, match="column 'list'") as caught:
        place.dataset(columns=["list"], conversion=Conversion(lists="error"))
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_a_batch_size_is_a_number_of_rows(place: Place, size: Any) -> None:
    with pytest.raises(encpipe.ConfigError, match="batch_size is"):
        place.dataset(columns=["n"], batch_size=size)


@pytest.mark.parametrize("reader", [Loader, IterableDataset])
def test_a_mistyped_argument_is_named_with_its_like(reader: type[Reader]) -> None:
    with pytest.raises(TypeError, match=rf"{reader.__name__}\(.*'min_genration'.*'min_generation'"):
        reader("people", min_genration=1)


def test_a_loader_goes_into_no_pickle(made: Place) -> None:
    with pytest.raises(encpipe.EncpipeError) as caught:
        pickle.dumps(Loader(made.url, **made.access()))
    assert caught.value.code == "unsupported"
    assert "IterableDataset" in caught.value.hint


def test_a_key_service_that_was_handed_in_goes_to_forked_workers_only(made: Place) -> None:
    data = IterableDataset(made.url, columns=["n"], **made.access())
    forked = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert joined(forked, "n") == list(range(ROWS))
    spawned = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(encpipe.EncpipeError, match="key service") as caught:
        iter(spawned)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("option", ["threads", "prefetch", "batch_size", "lanes", "window", "seed"])
def test_settings_are_whole_numbers(place: Place, option: str) -> None:
    with pytest.raises(encpipe.ConfigError, match=option):
        place.dataset(columns=["n"], **{option: -1})


def test_both_know_the_same_settings() -> None:
    of_loader, of_dataset = (
        dict(inspect.signature(reader).parameters) for reader in (Loader, IterableDataset)
    )
    for only in ("pin_memory", "device", "progress"):
        of_loader.pop(only)
    of_loader.pop("url_or_dataset"), of_loader.pop("transform")
    of_dataset.pop("url_or_dataset"), of_dataset.pop("transform")
    assert [str(p) for p in of_loader.values()] == [str(p) for p in of_dataset.values()]


def test_the_same_model_from_ciphertext_and_from_plaintext_has_the_same_losses(place: Place) -> None:
    def train(batches: Iterable[dict[str, Any]]) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
        losses = []
        for batch in batches:
            loss = torch.nn.functional.mse_loss(model(batch["pair"]).squeeze(1), batch["n"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    plain = [
        {name: torch.tensor(part[name].to_pylist()) for name in ("n", "pair")}
        for part in (place.table.slice(start, 100) for start in range(0, ROWS, 100))
    ]
    assert train(iter(place.dataset(columns=["n", "pair"], batch_size=100))) == train(iter(plain))


@pytest.mark.parametrize("reader", [Loader, IterableDataset])
def test_one_flipped_byte_ends_the_training(tmp_path: Path, reader: type[Reader]) -> None:
    place = Place(tmp_path)
    place.reader = reader
    data = place.dataset(columns=["n"])
    (first, *_) = sorted((tmp_path / "sealed" / "data").iterdir())
    content = bytearray(first.read_bytes())
    content[100] ^= 1  # in the first page of the first column
    first.write_bytes(content)
    with pytest.raises(encpipe.IntegrityError):
        list(data)


def test_without_torch_the_error_is_the_pip_command() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import encpipe\n"
        "try: import encpipe.torch\n"
        "except encpipe.MissingExtraError as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "pip install 'encpipe[torch]'\n"
