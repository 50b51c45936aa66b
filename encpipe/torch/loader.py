"""The loader of the training process: threads read, decrypt and decode, and the process trains."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Unpack

import pyarrow as pa
import torch

from encpipe import guard as guarding
from encpipe.access import AnyPath
from encpipe.dataset import Dataset, Filter
from encpipe.errors import ConfigError, EncpipeError
from encpipe.guard import Guard
from encpipe.torch.bar import shown
from encpipe.torch.conversion import Batch, Conversion, Converter, Nulls
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
from encpipe.torch.source import RowGroupSource, ScanSource, column_names
from encpipe.torch.state import MOST_EPOCH, LoaderState, parse_state
from encpipe.torch.stats import Stats
from encpipe.torch.values import Values


class Loader:
    """The rows of an encrypted dataset as dicts of tensors, decrypted in memory only.

        loader = Loader("s3://bucket/scans", batch_size=4096, stack={"x": ["a", "b"]}, shuffle=True, seed=7)
        for epoch in range(10):
            for batch in loader:
                step(batch["x"], batch["label"])

    What to read: `url_or_dataset` is a URL, opened with `options` (those of `open_dataset`), or an open
    `Dataset`, which stays its owner's to close. `columns` and `filter` are as in `Dataset.scan`; with a
    filter the rows are counted first, which reads its columns once.

    What comes: batches of `batch_size` rows, exact across row groups and files; the last is shorter, or left
    out with `drop_last`. `encpipe.torch.conversion` says what each type becomes and what `nulls` (a rule,
    or a rule for each column by name), `conversion` and `stack` do. Tensors may be written to. `transform` is
    called in the training thread with each batch, and what it returns is given. `pin_memory` and `device`
    move tensors, many batches at a time.

    The order (`encpipe.torch.order`, docs/howto/shuffle.md): that of the dataset, or with `shuffle` a
    function of the core digest, `seed`, epoch, `lanes` and `window` alone: the same with any number of
    threads, and ranks together take what one would. Every iteration begins the next epoch, the first is 0;
    `set_epoch` sets another. `rank` and `world_size` default to those of `torch.distributed` or `torchrun`;
    `world_size` divides `lanes`. All ranks get equally many batches: `uneven="drop"` leaves a few rows out,
    `"pad"` gives a rank's last row again.

    Resume: `state_dict` says where the epoch stands, the same on every rank; `load_state_dict` goes on with
    exactly the rows that are left, with any number of threads or ranks.

    What it takes: `threads` reader threads (default: one for each core); in memory are one block of each lane
    and `prefetch` more (default: `threads` + 2; `encpipe.torch.engine`). `guard` keeps keys and rows out of
    core dumps (`encpipe.guard`) until `close`. `progress` shows a bar on a terminal.

    Raises what `open_dataset` and `Dataset.scan` raise, `ConfigError` for settings that make no sense, while
    iterating `IntegrityError`, `KmsError`, `StorageError` or `ConfigError` `nulls`, and `ValueError` after
    `close`; `TypeError` for an unknown argument.
    """

    def __init__(
        self,
        url_or_dataset: AnyPath | Dataset | RowGroupSource,
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
        transform: Callable[[Batch], Any] | None = None,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
        progress: bool = False,
        guard: Guard = Guard(),  # noqa: B008 - frozen, and shows the defaults
        **options: Unpack[OpenOptions],
    ) -> None:
        self._threads = check_count("threads", pa.cpu_count() if threads is None else threads, 1)
        prefetch, columns = check_prefetch(prefetch, self._threads), column_names(columns)
        check_transform(transform)
        self._prefetch, self._transform, self._progress = prefetch, transform, progress
        self._move = _mover(pin_memory, device)
        with ExitStack() as stack_of_closers:
            stack_of_closers.enter_context(guarding.hold(guard))
            stack_of_closers.callback(MEMORY.release)
            self._opened: Opened | None = None
            source: RowGroupSource
            if isinstance(url_or_dataset, RowGroupSource):
                source = url_or_dataset
            else:
                self._opened = Opened(url_or_dataset, options, of=Loader)
                stack_of_closers.callback(self._opened.close)
                source = ScanSource(self._opened.dataset, columns, filter, self._threads)

            def feed(source: RowGroupSource) -> Feed:
                return Feed(
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

            self._make_feed, self._columns, self._filter = feed, columns, filter
            self._feed = feed(source)
            self.close = weakref.finalize(self, stack_of_closers.pop_all().close)
            """Release what was opened here, and the guard; there are no more batches then."""
        self._epoch = 0
        self._state: LoaderState | None = None
        self._session: Session | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration begins or goes on with."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin this epoch.

        Right after `load_state_dict`, with the epoch of that state, it changes nothing.
        """
        epoch = check_count("epoch", epoch, 0, MOST_EPOCH)
        self._session = None
        if self._state is not None and self._state.epoch == epoch:
            return
        self._epoch, self._state = epoch, None

    def __len__(self) -> int:
        """How many batches a whole epoch has, on this and every rank."""
        return self._feed.session(self._epoch).batches

    def __iter__(self) -> Generator[Any, None, None]:
        self._check_open()
        session = self._feed.session(self._epoch, self._state)
        self._session, self._state = session, None
        self._epoch += 1
        return self._run(session)

    def _run(self, session: Session) -> Generator[Any, None, None]:
        found = session.run(
            threads=self._threads, prefetch=self._prefetch, move=self._move, transform=self._transform
        )
        if self._progress:
            found = shown(found, session)
        try:
            for batch in found:
                yield batch
                self._check_open()
        finally:
            found.close()

    def _check_open(self) -> None:
        """Raise `ValueError` after `close`, as Python's files do: no rows are read without the guard."""
        if not self.close.alive:
            raise ValueError("this loader is closed")

    def state_dict(self) -> dict[str, Any]:
        """Where this stands after the last batch that was given: plain, versioned, without data or keys.

        The same on every rank when all have taken equally many batches. Seal it with your checkpoint: whoever
        can change it can make you train on some rows twice and on others never.
        """
        session = self._session or self._feed.session(self._epoch, self._state)
        return session.state().to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken: exactly the rows that were left then, then the next epochs.

        Costs the same wherever that is: at most the current block of each lane is read once more. A state of
        an earlier generation opens that generation again, if this loader was given a URL.

        Raises `ConfigError` `resume-state` for a state of another dataset, other data, columns, filter, seed
        or order, and what `open_dataset` raises when its generation is gone.
        """
        parsed = parse_state(state)
        opened, theirs = self._opened, parsed.binding
        comparable = replace(
            self._feed.binding,
            core_digest=theirs.core_digest,
            columns=theirs.columns,
            missing_keys=theirs.missing_keys,
        )
        parsed.check(comparable)  # what no generation changes, before another one is opened
        if opened is not None and opened.at(parsed):
            source = ScanSource(opened.dataset, self._columns, self._filter, self._threads)
            self._feed = self._make_feed(source)
        parsed.check(self._feed.binding)
        epoch, left = parsed.epoch + parsed.finished, None if parsed.finished else parsed
        self._feed.session(epoch, left)  # refuses what cannot be gone on with, and nothing has changed then
        self._epoch, self._state, self._session = epoch, left, None

    def stats(self) -> Stats:
        """Figures of the epoch under way, or of the last one."""
        session = self._session or self._feed.session(self._epoch, self._state)
        return session.meter.stats()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refused: a loader has threads and keys, which go into no pickle."""
        raise EncpipeError(
            "encpipe.torch.Loader stays in its process: it reads with threads",
            hint="for worker processes give a DataLoader an encpipe.torch.IterableDataset",
            code="unsupported",
        )


def _mover(pin_memory: bool, device: torch.device | str | None) -> Callable[[Values], Values] | None:
    """What brings tensors to where they are wanted, if anything has to."""
    if pin_memory and not torch.accelerator.is_available():
        warnings.warn("pin_memory has no effect: there is no accelerator", stacklevel=3)
        pin_memory = False
    if not pin_memory and device is None:
        return None
    if device is not None:
        device = _device(device)

    def move(values: Values) -> Values:
        return {name: _moved(value, pin_memory, device) for name, value in values.items()}

    return move


def _device(given: torch.device | str) -> torch.device:
    """Raises `ConfigError` for a device that is not there."""
    try:
        found = torch.device(given)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:  # depending on the device
        why = str(error).partition("\n")[0][:200]
        raise ConfigError(f"device is {given!r}, which PyTorch does not have here: {why}") from None
    return found


def _moved(value: Any, pin_memory: bool, device: torch.device | str | None) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if pin_memory:
        value = value.pin_memory()
    return value if device is None else value.to(device, non_blocking=pin_memory)
