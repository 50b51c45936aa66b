"""A dataset for PyTorch's own `DataLoader`, and torchdata's, with or without worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Unpack

import pyarrow as pa
import torch
from torch.utils import data

from encpipe import guard as guarding
from encpipe.access import AnyPath
from encpipe.dataset import Dataset, Filter
from encpipe.errors import ConfigError
from encpipe.guard import Guard
from encpipe.torch.conversion import Conversion, Converter, Nulls
from encpipe.torch.feed import Feed, Opened, OpenOptions, Session, check_count
from encpipe.torch.loader import PREFETCH
from encpipe.torch.order import LANES, WINDOW, Shape
from encpipe.torch.share import Uneven
from encpipe.torch.source import ScanSource
from encpipe.torch.state import LoaderState, find_states, merge_states, parse_state

_MOST_WORKERS: Final = 1024


class IterableDataset(data.IterableDataset):  # type: ignore[misc] # mypy does not follow torch here: slow
    """The rows of an encrypted dataset for `torch.utils.data.DataLoader`, as batches.

        data = IterableDataset("s3://bucket/scans", batch_size=4096, shuffle=True)
        for epoch in range(10):
            data.set_epoch(epoch)
            for batch in DataLoader(data, batch_size=None, num_workers=2):
                step(batch)

    The arguments are those of `Loader`, which see. Pass `batch_size=None` to the `DataLoader`, since batches
    are made here: otherwise it stacks them once more.

    Worker processes (fork, spawn or forkserver) each own whole lanes of the order and unwrap a key once per
    key name. A pickle of this carries URL and wrapped keys, never a key. Rows then cross process borders in
    `/dev/shm`, in clear; without workers they do not, and `Loader` is many times faster.

    `set_epoch` reaches the workers. Without it each iteration is the next epoch, as long as the number of
    workers stays. `state_dict` and `load_state_dict` are what torchdata's `StatefulDataLoader` asks for;
    `resume_state` makes what it keeps into a state for another number of workers, or for `Loader`.

    Raises what `Loader` raises.
    """

    def __init__(
        self,
        url_or_dataset: AnyPath | Dataset,
        batch_size: int = 1024,
        columns: Sequence[str] | None = None,
        *,
        stack: Mapping[str, Sequence[str]] | None = None,
        filter: Filter | None = None,
        nulls: Nulls = "error",
        conversion: Conversion = Conversion(),  # noqa: B008 - frozen, and shows the defaults
        shuffle: bool = False,
        seed: int = 0,
        lanes: int = LANES,
        window: int = WINDOW,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Uneven = "drop",
        prefetch: int = PREFETCH,
        threads: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        guard: Guard = Guard(),  # noqa: B008 - frozen, and shows the defaults
        **options: Unpack[OpenOptions],
    ) -> None:
        if threads is not None:
            check_count("threads", threads, 1)
        check_count("prefetch", prefetch, 0)
        self._threads, self._prefetch, self._transform, self._guard = threads, prefetch, transform, guard
        self._opened = Opened(url_or_dataset, options, of="IterableDataset")
        self._epochs = _Epochs()
        self._state: LoaderState | None = None
        self._session: Session | None = None
        self._pid = os.getpid()
        try:
            source = ScanSource(self._opened.dataset, columns, filter, self._reading_threads())
            self._feed = Feed(
                source,
                Converter(source.schema, nulls, stack=stack, conversion=conversion),
                Shape(shuffle, seed, lanes, window),
                filter=filter,
                batch_size=batch_size,
                drop_last=drop_last,
                uneven=uneven,
                rank=rank,
                world_size=world_size,
            )
        except BaseException:
            self.close()
            raise
        self._columns, self._filter = columns, filter

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin this epoch, in every worker."""
        check_count("epoch", epoch, 0)
        self._epochs.set(epoch)
        self._state = self._session = None

    def __iter__(self) -> Generator[Any, None, None]:
        worker, workers = _worker()
        self._settle_in()
        epoch, state = self._epochs.begin(worker, workers, strict=self._feed.shape.shuffle), self._state
        if state is not None:
            epoch, self._state = state.epoch, None
        session = self._session = self._feed.session(epoch, state, worker=worker, workers=workers)
        return self._run(session)

    def _run(self, session: Session) -> Generator[Any, None, None]:
        with guarding.hold(self._guard):
            found = session.run(threads=self._reading_threads(), prefetch=self._prefetch)
            try:
                for batch in found:
                    yield batch if self._transform is None else self._transform(batch)
            finally:
                found.close()

    def _reading_threads(self) -> int:
        """As asked for; else one for each core, or a single one where worker processes share the cores."""
        if self._threads is not None:
            return self._threads
        return int(pa.cpu_count()) if data.get_worker_info() is None else 1

    def _settle_in(self) -> None:
        """In a forked process: leave alone what the parent has open."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._feed.source = self._feed.source.reopened()  # type: ignore[attr-defined] # made here

    def state_dict(self) -> dict[str, Any]:
        """Where this stands: in a worker process, that worker. See `Loader.state_dict`."""
        if self._session is not None:
            return self._session.state().to_dict()
        worker, workers = _worker()
        epoch = self._state.epoch if self._state is not None else self._epochs.next(worker)
        session = self._feed.session(epoch, self._state, worker=worker, workers=workers)
        return session.state().to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, as `Loader` does; but of a finished epoch nothing comes."""
        parsed = parse_state(state)
        if self._opened.at(parsed):
            threads = self._reading_threads()
            self._feed.source = ScanSource(self._opened.dataset, self._columns, self._filter, threads)
        parsed.check(self._feed.binding)
        self._epochs.set(parsed.epoch)
        self._state, self._session = parsed, None

    def close(self) -> None:
        """Release what was opened here. A `Dataset` that was given stays open."""
        self._opened.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pid = os.getpid()


def resume_state(state: object) -> dict[str, Any]:
    """One state out of what a `StatefulDataLoader` over an `IterableDataset` keeps for its workers.

    For `Loader.load_state_dict`, or `IterableDataset.load_state_dict` before it is given to a loader with any
    number of workers. Raises `ConfigError` `resume-state` where there is none.
    """
    return merge_states(find_states(state))


class _Epochs:
    """The epoch that each worker begins next, in memory that worker processes share."""

    def __init__(self) -> None:
        # first epoch, number of workers, then how many epochs each worker has begun
        self._shared = torch.zeros(2 + _MOST_WORKERS, dtype=torch.int64).share_memory_()

    def set(self, epoch: int) -> None:
        self._shared.zero_()
        self._shared[0] = epoch

    def next(self, worker: int) -> int:
        return int(self._shared[0] + self._shared[2 + worker])

    def begin(self, worker: int, workers: int, *, strict: bool) -> int:
        before = int(self._shared[1])
        if strict and before not in (0, workers):
            raise ConfigError(
                f"there were {before} workers and now there are {workers}: which epoch comes is not known",
                hint="call set_epoch before each epoch",
            )
        self._shared[1] = workers
        epoch = self.next(worker)
        self._shared[2 + worker] += 1
        return epoch


def _worker() -> tuple[int, int]:
    """Which worker process this is, of how many; outside of one, the only one."""
    info = data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
