"""What `Loader` and `IterableDataset` share: from options to the batches and states of an epoch."""

from __future__ import annotations

import hashlib
import inspect
import operator
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypedDict, cast

import torch

from encpipe.access import AnyPath
from encpipe.config import Config
from encpipe.configtable import did_you_mean
from encpipe.dataset import Dataset, Filter, Integrity
from encpipe.errors import ConfigError, EncpipeError
from encpipe.kms.registry import MasterKeys
from encpipe.opening import open_dataset
from encpipe.projection import OnMissingKey
from encpipe.torch.conversion import Batch, Converter
from encpipe.torch.engine import Plan, batches
from encpipe.torch.order import Order, Shape
from encpipe.torch.share import LaneShare, Place, RangeShare, Uneven, check_place, one_worker_only
from encpipe.torch.source import RowGroupSource
from encpipe.torch.state import Binding, LoaderState
from encpipe.torch.stats import Meter
from encpipe.torch.values import Values


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
    integrity: Integrity


class Opened:
    """A dataset that was given open, or is opened here by its URL and then closed here."""

    def __init__(self, given: AnyPath | Dataset, options: OpenOptions, *, of: type) -> None:
        unknown = set(options) - OpenOptions.__annotations__.keys()
        if unknown:
            known = {*OpenOptions.__annotations__, *inspect.signature(of).parameters} - {"options"}
            close = did_you_mean(min(unknown), known)
            raise TypeError(f"{of.__name__}() got an unexpected keyword argument {min(unknown)!r}: {close}")
        self.owned = not isinstance(given, Dataset)
        self._options = options
        if isinstance(given, Dataset):
            if options:
                raise ConfigError(
                    f"{min(options)!r} goes with a URL, and this dataset is open already",
                    hint="give it to open_dataset instead",
                )
            self.dataset = given
        else:
            self._url = given
            self.dataset = open_dataset(given, **options)

    def at(self, state: LoaderState) -> bool:
        """Make sure that this is the generation of `state`; True when another one had to be opened.

        Only a dataset that was opened here is opened anew. Raises what `open_dataset` raises, in particular
        when `gc` has removed that generation.
        """
        binding = state.binding
        same = binding.core_digest == self.dataset.core_digest
        if same or not self.owned or binding.dataset_id != self.dataset.dataset_id:
            return False
        pinned = {"generation": state.generation, "expect_core": binding.core_digest}
        options = cast(OpenOptions, {**self._options, **pinned})
        former, self.dataset = self.dataset, open_dataset(self._url, **options)
        former.close()
        return True

    def close(self) -> None:
        """Release what was opened here. A `Dataset` that was given stays open."""
        if self.owned:
            self.dataset.close()


class Feed:
    """The rows of a source in the order of `shape`, as batches for one rank."""

    def __init__(
        self,
        source: RowGroupSource,
        converter: Converter,
        shape: Shape,
        *,
        filter: Filter | None,
        batch_size: int,
        drop_last: bool,
        uneven: Uneven,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        batch_size = check_count("batch_size", batch_size, 1)
        lanes = check_count("lanes", shape.lanes, 1)
        window = check_count("window", shape.window, 1)
        shape = Shape(bool(shape.shuffle), check_count("seed", shape.seed, 0), lanes, window)
        rank, world_size = find_rank(rank, world_size)
        self.rank, self.world_size = check_count("rank", rank, 0), check_count("world_size", world_size, 1)
        check_place(self.rank, self.world_size, uneven, shape.lanes if shape.shuffle else None)
        self.source, self.converter, self.shape = source, converter, shape
        self.batch_size, self.drop_last, self.uneven = batch_size, drop_last, uneven
        self._filter = None if filter is None else filter_text(filter)

    @property
    def binding(self) -> Binding:
        """What resume states are bound to."""
        return Binding(
            dataset_id=self.source.dataset_id,
            core_digest=self.source.core_digest,
            columns=tuple(self.source.schema.names),
            filter=self._filter,
            missing_keys=self.source.missing_keys,
            shuffle=self.shape.shuffle,
            seed=self.shape.seed,
            lanes=self.shape.lanes if self.shape.shuffle else 0,
            window=self.shape.window if self.shape.shuffle else 0,
            uneven=self.uneven,
        )

    def session(
        self, epoch: int, state: LoaderState | None = None, *, worker: int = 0, workers: int = 1
    ) -> Session:
        """An epoch from its beginning, or what `state` leaves of it, for a worker process of this rank."""
        return Session(self, epoch, state, Place(self.rank, self.world_size, worker, workers))


class Session:
    """One run through an epoch, or what a resume state left of it."""

    def __init__(self, feed: Feed, epoch: int, state: LoaderState | None, place: Place) -> None:
        self._feed, self.epoch = feed, epoch
        source = feed.source
        left, exact = (state.left, state.exact) if state is not None else (None, ())
        self._order: Order | None = None
        self._share: LaneShare | RangeShare
        if feed.shape.shuffle:
            order = self._order = Order(source.core_digest, source.rows, source.sizes, feed.shape, epoch)
            self._share = LaneShare(place, order.lengths, order.run, left, feed.uneven, exact=exact)
        else:
            self._share = RangeShare(place, sum(source.rows), left, feed.uneven, exact=exact)
        if state is not None and not set(self._share.exact) <= set(exact) and len(exact) < len(state.left):
            raise one_worker_only()
        self._over = state is not None and state.finished
        self.batches = 0 if self._over else self._share.batches(feed.batch_size, drop_last=feed.drop_last)
        """How many batches there are in all."""
        self.given = 0
        self.meter = Meter(epoch)

    def run(
        self,
        *,
        threads: int,
        prefetch: int,
        move: Callable[[Values], Values] | None = None,
        transform: Callable[[Batch], Any] | None = None,
    ) -> Generator[Any, None, None]:
        """The batches, or what `transform` makes of each.

        One counts as given as soon as it is handed out, and not where `transform` raises or is interrupted.
        Raises `EncpipeError` `unsupported` when a forked child goes on with it.
        """
        feed = self._feed
        plan = Plan(
            feed.source,
            feed.converter,
            self._share,
            self._order,
            feed.batch_size,
            self.batches,
            threads,
            prefetch,
            move,
        )
        self.meter.begin()
        here = os.getpid()
        left = self._share.rows
        with closing(batches(plan, self.meter)) as found:
            for batch in found:
                made = batch if transform is None else transform(batch)
                self.given += 1
                rows = min(feed.batch_size, left)
                left -= rows
                self.meter.gave(rows)
                yield made
                if os.getpid() != here:
                    raise EncpipeError(
                        "this iterator reads with threads, which stayed in the process that was forked",
                        hint="iterate over the loader anew in the child",
                        code="unsupported",
                    )

    def state(self) -> LoaderState:
        """Where the epoch stands after the batches that were given."""
        return LoaderState(
            binding=self._feed.binding,
            generation=self._feed.source.generation,
            epoch=self.epoch,
            left=self._share.after(min(self.given * self._feed.batch_size, self._share.rows)),
            exact=self._share.exact,
            finished=self.given >= self.batches,
        )


def check_prefetch(given: int | None, threads: int) -> int:
    """How many blocks to load ahead of need: what was given, else enough to keep all threads busy."""
    return threads + 2 if given is None else check_count("prefetch", given, 0)


def check_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` (NumPy's integers too) as a whole number from `least` to `most`. Raises `ConfigError`."""
    try:
        count = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = -1
    if count < least:
        raise ConfigError(f"{name} is {value!r}: it is a whole number, at least {least}")
    if most is not None and count > most:
        raise ConfigError(f"{name} is {value!r}: it is at most {most}")
    return count


def check_transform(transform: object) -> None:
    """Raise `ConfigError` unless it can be called, or is None."""
    if transform is not None and not callable(transform):
        raise ConfigError(f"transform is {transform!r}: it is a function of a batch")


def filter_text(given: Filter) -> str:
    """The filter as resume states name it: equal for equal filters, in any process.

    PyArrow leaves out what is in the middle of a long list: a digest of the whole then goes with it.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found = given if isinstance(given, pc.Expression) else pq.filters_to_expression(_in_order(given))
    text = str(found)
    if "..." not in text:
        return text
    _, (whole,) = found.__reduce__()
    return f"{text} SHA-256 {hashlib.sha256(whole).hexdigest()}"


def _in_order(given: Any) -> Any:
    """The same with lists for sets, whose order changes from process to process."""
    if isinstance(given, set | frozenset):
        return sorted(given, key=repr)
    return type(given)(map(_in_order, given)) if isinstance(given, list | tuple) else given


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """What was given, else what `torch.distributed` or its launcher says (`RANK`, `WORLD_SIZE`), else one."""
    if (rank is None) != (world_size is None):
        raise ConfigError("rank and world_size go together", hint="pass both, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    texts = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if all(text.isdecimal() for text in texts):
        return int(texts[0]), int(texts[1])
    return 0, 1
