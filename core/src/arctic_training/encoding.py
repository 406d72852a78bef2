"""Turns the rows of a source into tokens, in several processes and a bounded amount of memory.

A data factory brings an ``Encoder``; what comes back is in the order of the rows, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from arctic_training.errors import BadRow, DataError

if TYPE_CHECKING:
    import numpy as np

BATCH_ROWS = 1000
"""Rows that are encoded together."""
BATCHES_AHEAD = 2
"""Batches that each process may be ahead of what is written, so that memory does not grow with the data."""


@attrs.frozen(eq=False)
class EncodedRows:
    """What an encoder makes of a batch of rows: N rows of T tokens together.

    Attributes:
        columns: ``input_ids``, ``labels`` and perhaps others by name, flat arrays of T numbers.
        lengths: tokens of each of the N rows.
        refused: rows that cannot be used, in their order. A row is either refused or made into at least one row.
    """

    columns: Mapping[str, np.ndarray]
    lengths: np.ndarray
    refused: list[BadRow] = attrs.field(factory=list)


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
    if processes <= 1:
        for numbers in batches:
            yield len(numbers), encode_numbers(dataset, encode, numbers)
        return
    # Forked processes have the rows already; where the system cannot fork they are sent.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with (
        _single_threaded_tokenizers(),
        ProcessPoolExecutor(processes, context, _Worker.receive, (dataset, encode)) as pool,
    ):
        running: deque[tuple[int, Future[EncodedRows]]] = deque()
        waiting = iter(batches)
        try:
            while True:
                while len(running) < processes * BATCHES_AHEAD and (numbers := next(waiting, None)) is not None:
                    running.append((len(numbers), pool.submit(_Worker.run, numbers)))
                if not running:
                    return
                count, future = running.popleft()
                yield count, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that prepared rows was killed, often for want of memory",
                remedy="give data.num_proc a smaller number",
            ) from error
        finally:
            for _, future in running:
                future.cancel()


def encode_numbers(dataset: Any, encode: Encoder, numbers: Sequence[int]) -> EncodedRows:
    """Encode the rows of these numbers; those that cannot be read are refused like those that cannot be encoded."""
    rows, places, unreadable = [], [], []
    for number in numbers:
        try:
            rows.append(dataset[number])
        except BadRow as error:
            unreadable.append(error)
        else:
            places.append(place_of(dataset, number))
    encoded = encode(rows, places)
    return attrs.evolve(encoded, refused=[*unreadable, *encoded.refused]) if unreadable else encoded


def place_of(dataset: Any, number: int) -> str:
    """Where a row comes from, for messages: as its source tells it, with the number, from 0, that it had there."""
    row = f"row {dataset.numbers[number] if hasattr(dataset, 'numbers') else number}"
    place = dataset.where(number) if hasattr(dataset, "where") else row
    return place if row in place else f"{place} ({row})"


class _Worker:
    """What a process works on, received once when it starts."""

    dataset: Any
    encode: Any

    @classmethod
    def receive(cls, dataset: Any, encode: Encoder) -> None:
        cls.dataset, cls.encode = dataset, encode

    @classmethod
    def run(cls, numbers: range) -> EncodedRows:
        return encode_numbers(cls.dataset, cls.encode, numbers)


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
