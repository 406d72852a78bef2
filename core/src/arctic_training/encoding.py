"""Turns the rows of a source into tokens, in several processes and a bounded amount of memory.

A data factory brings an ``Encoder``; what comes back is in the order of the rows, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from arctic_training.births import started
from arctic_training.errors import BadRow, DataError
from arctic_training.orphans import end_with_parent
from arctic_training.signals import leave_signals_alone

if TYPE_CHECKING:
    import numpy as np

BATCH_ROWS = 1000
"""Rows that are encoded together."""
BATCHES_AHEAD = 2
"""Batches that each process may be ahead of what is written, so that memory does not grow with the data."""
OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python looks for garbage in cycles after so many new objects of a worker: a batch makes more than its usual 700 of
them every few rows, and hardly any in cycles."""


@attrs.frozen(eq=False)
class EncodedRows:
    """What an encoder makes of a batch of rows: N rows of T tokens together.

    Attributes:
        columns: ``input_ids``, ``labels`` and perhaps others by name, flat arrays of T numbers.
        lengths: tokens of each of the N rows.
        refused: rows that cannot be used, in their order. A row is refused, dropped or made into at least one row.
        counts: what else is to be counted, by the names of ``Preparation``: ``rows dropped, WHY`` of rows left out as
            the recipe asks, other names of what was done to rows that are used.
    """

    columns: Mapping[str, np.ndarray]
    lengths: np.ndarray
    refused: list[BadRow] = attrs.field(factory=list)
    counts: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def num_left_out(self) -> int:
        """Rows that were read and made into nothing: refused or dropped."""
        dropped = sum(number for name, number in self.counts.items() if name.startswith("rows dropped"))
        return len(self.refused) + dropped


class Encoder(Protocol):
    """Encodes a batch of rows. It is sent to worker processes, and says what is wrong with single rows in ``refused``
    instead of raising."""

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """Encode rows; ``places`` tells where each comes from, for messages."""
        ...


def encode_batches(dataset: Any, encode: Encoder, num_proc: int) -> Iterator[tuple[int, EncodedRows]]:
    """Encode all rows of a sequence, batch after batch in their order.

    Args:
        dataset: rows; where they have ``where(number)``, it tells their places.
        encode: the encoder.
        num_proc: processes to use at most.

    Yields:
        How many rows were read for it, and what they were made into. Rows that cannot even be read are among the
        refused.

    Raises:
        DataError: a process ended before it was done.
    """
    batches = [range(start, min(start + BATCH_ROWS, len(dataset))) for start in range(0, len(dataset), BATCH_ROWS)]
    processes = min(num_proc, len(batches))
    with WorkerPool(processes if processes > 1 else 0, _encode_numbers, (dataset, encode)) as pool:
        running: deque[tuple[int, Any]] = deque()
        waiting = iter(batches)
        while True:
            most = max(1, processes * BATCHES_AHEAD) if pool.processes else 1
            while len(running) < most and (numbers := next(waiting, None)) is not None:
                running.append((len(numbers), pool.submit(numbers)))
            if not running:
                return
            count, encoded = running.popleft()
            yield count, encoded.result()


def encode_numbers(dataset: Any, encode: Encoder, numbers: Sequence[int]) -> EncodedRows:
    """Encode the rows of these numbers; those that cannot be read are refused like those that cannot be encoded."""
    rows, read, unreadable = [], [], {}
    for number in numbers:
        try:
            rows.append(dataset[number])
        except BadRow as error:
            unreadable[number] = error
        else:
            read.append(number)
    places = Places(dataset, read)
    encoded = encode(rows, places)
    if not unreadable:
        return encoded
    order: dict[str | None, int] = {error.where: number for number, error in unreadable.items()}
    order |= dict(zip(places, read, strict=True))
    in_order = sorted([*unreadable.values(), *encoded.refused], key=lambda error: order.get(error.where, numbers[-1]))
    return attrs.evolve(encoded, refused=in_order)


class Places(Sequence[str]):
    """Where rows come from, told when it is asked for: of the rows of a batch few are refused.

    Args:
        dataset: holds the rows.
        numbers: of the rows in it.
    """

    def __init__(self, dataset: Any, numbers: Sequence[int]) -> None:
        self.dataset = dataset
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Places(self.dataset, self.numbers[index])
        return place_of(self.dataset, self.numbers[index])


def place_of(dataset: Any, number: int) -> str:
    """Where a row comes from, for messages: as its source tells it, with the number, from 0, that it had there."""
    row = f"row {dataset.numbers[number] if hasattr(dataset, 'numbers') else number}"
    place = dataset.where(number) if hasattr(dataset, "where") else row
    return place if row in place else f"{place} ({row})"


def _encode_numbers(work: tuple[Any, Encoder], numbers: range) -> EncodedRows:
    return encode_numbers(*work, numbers)


class WorkerPool:
    """Processes that call one function with one thing that all share, received once, and one that differs.

    Args:
        processes: how many; 0 calls the function in this process, when its result is asked for.
        function: called as ``function(shared, task)``.
        shared: what every call needs; forked processes have it already, where the system cannot fork it is sent.
    """

    def __init__(self, processes: int, function: Callable[[Any, Any], Any], shared: Any) -> None:
        self.processes = processes
        self.function = function
        self.shared = shared
        self._stack = contextlib.ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self.processes:
            self._stack.enter_context(_single_threaded_tokenizers())
            can_fork = sys.platform == "linux"
            self._pool = started(self._forked, self.processes, _end_workers) if can_fork else self._executor(None)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def _forked(self, born: Callable[[], None]) -> ProcessPoolExecutor:
        pool = self._executor("fork", born)
        pool.submit(int)  # the first task forks all processes
        return pool

    def _executor(self, method: str | None, born: Callable[[], None] | None = None) -> ProcessPoolExecutor:
        received = (self.function, self.shared, os.getpid(), born)
        return ProcessPoolExecutor(self.processes, multiprocessing.get_context(method), _Worker.receive, received)

    def submit(self, task: Any) -> Result:
        """Begin a call; ``result()`` waits for what it returns.

        Raises:
            DataError: by ``result()``: the process ended before it was done.
        """
        if self._pool is None:
            return Result(functools.partial(self.function, self.shared, task))
        try:
            return Result(self._pool.submit(_Worker.run, task).result)
        except BrokenProcessPool as error:
            raise _killed() from error


class Result:
    """What a call will have returned."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        self._wait = wait

    def result(self) -> Any:
        """Wait for it.

        Raises:
            DataError: its process ended before it was done.
        """
        try:
            return self._wait()
        except BrokenProcessPool as error:
            raise _killed() from error


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """End all processes of a pool, also those that were not born."""
    for process in list(pool._processes.values()):
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)


def _killed() -> DataError:
    return DataError(
        "a process that prepared rows was killed, often for want of memory",
        remedy="give data.num_proc (data.dl_num_workers of a stream) a smaller number",
    )


class _Worker:
    """What a process works on, received once when it starts."""

    function: Any
    shared: Any

    @classmethod
    def receive(
        cls, function: Callable[[Any, Any], Any], shared: Any, parent: int, born: Callable[[], None] | None
    ) -> None:
        cls.function, cls.shared = staticmethod(function), shared
        leave_signals_alone()
        if born is not None:
            born()
        end_with_parent(parent)  # a killed run leaves no worker behind
        gc.freeze()  # what the parent made stays, and stays shared
        gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)

    @classmethod
    def run(cls, task: Any) -> Any:
        return cls.function(cls.shared, task)


@contextlib.contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Threads of the tokenizers library do not survive a fork; each process uses its own core anyway."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
