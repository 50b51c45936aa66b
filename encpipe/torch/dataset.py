"""A dataset for PyTorch's own `DataLoader`, and torchdata's, with or without worker processes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any, Unpack

import pyarrow as pa
from torch.utils import data

from encpipe import guard as guarding
from encpipe.access import AnyPath
from encpipe.dataset import Dataset, Filter
from encpipe.errors import ConfigError
from encpipe.guard import Guard
from encpipe.torch.conversion import Conversion, Converter, Nulls
from encpipe.torch.epochs import Epochs
from encpipe.torch.feed import (
    Feed,
    Opened,
    OpenOptions,
    Session,
    check_count,
    check_prefetch,
    check_transform,
)
from encpipe.torch.memory import MEMORY
from encpipe.torch.order import LANES, WINDOW, Shape
from encpipe.torch.share import Uneven
from encpipe.torch.source import ScanSource, column_names
from encpipe.torch.state import MOST_EPOCH, LoaderState, find_states, merge_states, parse_state


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

    `set_epoch` reaches the workers; without it each iteration is the next epoch. `state_dict` and
    `load_state_dict` are what torchdata's `StatefulDataLoader` asks for; `resume_state` makes what it keeps
    into a state for another number of workers, or for `Loader`.

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
        prefetch: int | None = None,
        threads: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        guard: Guard = Guard(),  # noqa: B008 - frozen, and shows the defaults
        **options: Unpack[OpenOptions],
    ) -> None:
        if threads is not None:
            threads = check_count("threads", threads, 1)
        check_prefetch(prefetch, 1)
        columns = column_names(columns)
        check_transform(transform)
        self._threads, self._prefetch, self._transform, self._guard = threads, prefetch, transform, guard
        self._columns, self._filter = columns, filter
        self._epochs = Epochs()
        self._state: LoaderState | None = None
        self._loaded_by = 0
        self._session: Session | None = None
        self._opened = Opened(url_or_dataset, options, of=IterableDataset)
        self._hold_on()
        try:
            source = self._source()
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

    def _source(self) -> ScanSource:
        source = ScanSource(self._opened.dataset, self._columns, self._filter, self._reading_threads())
        if self._filter is not None:
            _ = source.rows  # counted here once, and not by every worker
        return source

    def _hold_on(self) -> None:
        """Keep the guard and what is open here, in this process, until `close`."""
        self._pid = os.getpid()
        with ExitStack() as closers:
            closers.callback(MEMORY.release)
            closers.callback(self._opened.close)
            closers.enter_context(guarding.hold(self._guard))
            self.close = weakref.finalize(self, closers.pop_all().close)
            """Release what was opened here. A `Dataset` that was given stays open."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin this epoch, in every worker.

        Right after `load_state_dict`, with the epoch of that state, it changes nothing.
        """
        epoch = check_count("epoch", epoch, 0, MOST_EPOCH)
        self._epochs.set(epoch)
        self._session = None
        if self._state is not None and self._state.epoch != epoch:
            self._state = None

    def __iter__(self) -> Generator[Any, None, None]:
        if not self.close.alive:
            raise ValueError("this dataset is closed")
        if self._pid != os.getpid():  # forked: what the parent has open is the parent's
            self._hold_on()
            self._feed.source = self._feed.source.reopened()  # type: ignore[attr-defined] # made here
        worker, workers = _worker()
        state, self._state = self._state, None
        loaded_here = state is not None and self._loaded_by == os.getpid()
        epoch = self._epochs.begin(state.epoch if state is not None and loaded_here else None)
        if state is not None and state.epoch != epoch:
            state = None  # loaded before, in the process that made this one, and gone on with since
        session = self._session = self._feed.session(epoch, state, worker=worker, workers=workers)
        return self._run(session)

    def _run(self, session: Session) -> Generator[Any, None, None]:
        threads = self._reading_threads()
        prefetch = check_prefetch(self._prefetch, threads)
        found = session.run(threads=threads, prefetch=prefetch, transform=self._transform)
        with closing(found):
            yield from found

    def _reading_threads(self) -> int:
        """As asked for; else one for each core, or a single one where worker processes share the cores."""
        if self._threads is not None:
            return self._threads
        return int(pa.cpu_count()) if data.get_worker_info() is None else 1

    def state_dict(self) -> dict[str, Any]:
        """Where this stands: in a worker process, that worker. See `Loader.state_dict`.

        Raises `ConfigError` `resume-state` where only worker processes know.
        """
        if data.get_worker_info() is None and self._epochs.afar:
            raise ConfigError(
                "the rows are given by worker processes, and only they know where they stand",
                hint="ask a StatefulDataLoader (torchdata) for its state_dict, or train with a Loader",
                code="resume-state",
            )
        if self._session is not None:
            return self._session.state().to_dict()
        worker, workers = _worker()
        epoch = self._state.epoch if self._state is not None else self._epochs.next
        return self._feed.session(epoch, self._state, worker=worker, workers=workers).state().to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, as `Loader` does; but of an epoch that is over nothing comes.

        A state of an earlier generation opens that again, but not in a worker process, where a
        `StatefulDataLoader` calls this: the processes of later epochs would not know.
        """
        parsed = parse_state(state)
        in_worker = data.get_worker_info() is not None
        if not in_worker and self._opened.at(parsed):
            self._feed.source = self._source()
        parsed.check(self._feed.binding)
        self._session, self._state, self._loaded_by = None, parsed, os.getpid()
        if not in_worker:
            self._epochs.set(parsed.epoch)
            self._feed.session(parsed.epoch, parsed)  # refuses here what cannot be gone on with

    def __enter__(self) -> IterableDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "close"} | {"_session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold_on()


def resume_state(state: object) -> dict[str, Any]:
    """One state out of what a `StatefulDataLoader` over an `IterableDataset` keeps for its workers.

    For `Loader.load_state_dict`, or `IterableDataset.load_state_dict` before it is given to a loader with any
    number of workers. Raises `ConfigError` `resume-state` where there is none, and where batches were given
    since its last snapshot (`snapshot_every_n_steps` other than 1).
    """
    if isinstance(state, Mapping) and state.get("_steps_since_snapshot"):
        raise ConfigError(
            f"{state['_steps_since_snapshot']} batches were given after the last snapshot in this state",
            hint="StatefulDataLoader(..., snapshot_every_n_steps=1)",
            code="resume-state",
        )
    return merge_states(find_states(state))


def _worker() -> tuple[int, int]:
    """Which worker process this is, of how many; outside of one, the only one."""
    info = data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
