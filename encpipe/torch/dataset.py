"""A dataset as PyTorch's iterable dataset, read and decrypted by threads of the training process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypedDict, Unpack

from torch.utils import data

from encpipe.access import AnyPath
from encpipe.config import Config
from encpipe.configtable import did_you_mean
from encpipe.dataset import Dataset, Filter, open_dataset
from encpipe.errors import ConfigError, EncpipeError
from encpipe.kms.registry import MasterKeys
from encpipe.projection import OnMissingKey
from encpipe.torch.batching import exact_batches
from encpipe.torch.tensors import Batch, Converter, Nulls


class OpenOptions(TypedDict, total=False):
    """The keyword arguments of `open_dataset`, which see."""

    config: Config | AnyPath | None
    keyring: AnyPath | None
    master_keys: MasterKeys | None
    storage_options: Mapping[str, Any] | None
    on_missing_key: OnMissingKey
    expect_dataset: str | None
    min_generation: int | None
    min_revision: int | None
    expect_core: str | None
    pin_store: AnyPath | None
    expect_key_names: Sequence[str]
    generation: int | None
    max_key_age: float | None
    key_grace: float


class IterableDataset(data.IterableDataset):  # type: ignore[misc] # mypy does not follow torch here: slow
    """The rows of an encrypted dataset, in its order, as dicts of tensors of `batch_size` rows each.

    `url_or_dataset` is a URL, opened with `options` (those of `open_dataset`) when this is made, or an open
    `Dataset`, which stays its owner's to close. `columns` and `filter` are as in `Dataset.scan`. Batches are
    exact across row groups and files; the last one is shorter. `encpipe.torch.tensors` says what each type
    becomes and what `nulls` does. May be iterated any number of times, and yields the same each time.

    In a `DataLoader` pass `batch_size=None`, since batches are made here: otherwise it stacks them once more,
    into tensors with one dimension too many, and fails where the last one is shorter. Shuffling comes later.
    Rows are decrypted by threads in this process; worker processes (`num_workers`) are refused for now with
    `EncpipeError` `unsupported`.

    Raises what `open_dataset` and `Dataset.scan` raise, what `Converter` does when it is made or used, and
    `TypeError` for an unknown keyword argument.
    """

    def __init__(
        self,
        url_or_dataset: AnyPath | Dataset,
        columns: Sequence[str] | None = None,
        *,
        batch_size: int = 1024,
        nulls: Nulls = "error",
        filter: Filter | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}: it is a number of rows, at least 1")
        _check_names(options)
        self._owned: Dataset | None = None
        if isinstance(url_or_dataset, Dataset):
            if options:
                raise ConfigError(
                    f"{min(options)!r} goes with a URL, and this dataset is open already",
                    hint="give it to open_dataset instead",
                )
            dataset = url_or_dataset
        else:
            dataset = self._owned = open_dataset(url_or_dataset, **options)
        try:
            self._scan = dataset.scan(columns, filter)
            self._converter = Converter(self._scan.schema, nulls)
        except BaseException:
            self.close()
            raise
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        if data.get_worker_info() is not None:
            self._refuse_processes()
        return map(self._converter.convert, exact_batches(self._scan.tables(), self._batch_size))

    def close(self) -> None:
        """Release what was opened here. A `Dataset` that was given stays open."""
        if self._owned is not None:
            self._owned.close()

    def __reduce__(self) -> NoReturn:
        """Refused: an open dataset holds keys, and keys go into no pickle."""
        self._refuse_processes()

    def _refuse_processes(self) -> NoReturn:
        raise EncpipeError(
            # the advice is in the message, since torch shows that of a worker's error and nothing else
            "encpipe.torch.IterableDataset cannot be used in worker processes: pass num_workers=0",
            hint="pass num_workers=0 to the DataLoader: decryption runs in threads of this process already",
            code="unsupported",
        )


def _check_names(options: Mapping[str, object]) -> None:
    unknown = set(options) - OpenOptions.__annotations__.keys()
    if unknown:
        own = {"columns", "batch_size", "nulls", "filter"}
        close = did_you_mean(min(unknown), own | OpenOptions.__annotations__.keys())
        raise TypeError(f"IterableDataset() got an unexpected keyword argument {min(unknown)!r}: {close}")
