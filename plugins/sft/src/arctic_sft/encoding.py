"""Encodes all chats of a source, in several processes when there are many: rendering templates is work for one core."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from arctic_sft.rows import COLUMNS, TokenRows
from arctic_training.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from arctic_sft.chat import ChatEncoder

    Encoded = tuple[dict[str, np.ndarray], np.ndarray]

BATCH_ROWS = 1000
"""Chats that are rendered and tokenised together."""


def encode_rows(dataset: Any, encode: ChatEncoder, num_proc: int) -> TokenRows:
    """Ids and labels of all chats of a sequence of rows, in their order.

    Args:
        dataset: rows with ``messages`` and perhaps ``tools``.
        encode: the encoder.
        num_proc: processes to use at most; one for every thousand rows is the most that helps.

    Raises:
        DataError: a chat cannot be rendered or masked; names its row. Or a process ended before it was done.
    """
    batches = [range(start, min(start + BATCH_ROWS, len(dataset))) for start in range(0, len(dataset), BATCH_ROWS)]
    processes = min(num_proc, len(batches))
    if processes <= 1:
        return TokenRows.joined([_encoded(dataset, encode, numbers) for numbers in batches])
    # Forked processes have the rows already; where the system cannot fork they are sent.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with (
        _single_threaded_tokenizers(),
        ProcessPoolExecutor(processes, context, _Worker.receive, (dataset, encode)) as pool,
    ):
        try:
            return TokenRows.joined(list(pool.map(_Worker.run, batches)))
        except BrokenProcessPool as error:
            raise DataError(
                "a process that tokenised chats was killed, often for want of memory",
                remedy="give data.num_proc a smaller number",
            ) from error


class _Worker:
    """What a process works on, received once when it starts."""

    dataset: Any
    encode: Any

    @classmethod
    def receive(cls, dataset: Any, encode: ChatEncoder) -> None:
        cls.dataset, cls.encode = dataset, encode

    @classmethod
    def run(cls, numbers: range) -> Encoded:
        return _encoded(cls.dataset, cls.encode, numbers)


def _encoded(dataset: Any, encode: ChatEncoder, numbers: Sequence[int]) -> Encoded:
    import numpy as np

    columns = encode([dataset[number] for number in numbers], [place_of(dataset, number) for number in numbers])
    lengths = np.array([len(ids) for ids in columns["input_ids"]], np.int64)
    return {name: np.concatenate([np.array(row, np.int32) for row in columns[name]]) for name in COLUMNS}, lengths


def place_of(dataset: Any, number: int) -> str:
    """Where a row comes from, for errors: as its source tells it, with the number, from 0, that it had there."""
    row = f"row {dataset.numbers[number] if hasattr(dataset, 'numbers') else number}"
    place = dataset.where(number) if hasattr(dataset, "where") else row
    return place if row in place else f"{place} ({row})"


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
