"""Columns that a model is asked for while rows are prepared, such as what a teacher predicts.

Shapes: B rows, L tokens of the longest, N tokens that trained ones are predicted from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from arctic_training.column_files import TokenWriter
from arctic_training.loss import IGNORE_INDEX
from arctic_training.token_rows import TokenRows
from arctic_training.token_tables import joined_in_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

    from arctic_training.token_data import TokenDataFactory

Ask = Callable[["torch.Tensor", "torch.Tensor"], Mapping[str, "torch.Tensor"]]
TOKENS_AT_A_TIME = 8192
"""Tokens of rows, with their padding, that a model reads together."""


def with_asked_columns(rows: TokenRows, factory: TokenDataFactory, ask: Ask) -> TokenRows:
    """Rows with further columns, in which each token that a trained one is predicted from has what a model says there,
    and all others 0.

    Rows longer than ``max_length`` are asked about up to there. Rows have to be single documents.

    Args:
        rows: encoded rows of one source.
        factory: which prepares them; columns are put where it may put files.
        ask: from ids and a mask of those tokens, both (B, L), on the device, to numbers by the name of the column, each
            of shape (N,) in the order of the mask. Called under ``torch.no_grad()``.
    """
    import torch

    if not len(rows):
        return rows
    directory = factory.preparation.next_directory()
    writer = TokenWriter(directory) if directory is not None else None
    made: list[TokenRows] = []
    for first, last in _groups(rows.lengths):
        with torch.no_grad():
            asked = _asked(rows, first, last, factory, ask)
        begin, end = int(rows.offsets[first]), int(rows.offsets[last])
        columns = {name: values[begin:end] for name, values in rows.columns.items()} | asked
        if writer is not None:
            writer.append(columns, rows.lengths[first:last], rows.trained[first:last])
        else:
            made.append(TokenRows(columns, rows.lengths[first:last], rows.trained[first:last]))
    if writer is not None:
        return writer.close()
    joined = joined_in_memory(made)
    joined.parts = [len(joined)]
    return joined


def _groups(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbouring rows that together, padded to the longest, have no more than some tokens."""
    first, longest = 0, 0
    for number, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if number > first and longest * (number + 1 - first) > TOKENS_AT_A_TIME:
            yield first, number
            first, longest = number, length
    yield first, len(lengths)


def _asked(rows: TokenRows, first: int, last: int, factory: TokenDataFactory, ask: Ask) -> dict[str, np.ndarray]:
    """The columns of some rows; they are padded on the right, where nothing before looks."""
    import numpy as np
    import torch

    lengths = rows.lengths[first:last]
    longest = min(int(lengths.max()), factory.max_length)
    ids_BL: np.ndarray = np.zeros((last - first, longest), np.int64)
    places_BL: np.ndarray = np.zeros((last - first, longest), np.bool_)
    for number in range(first, last):
        row = rows[number]
        ids, labels = row["input_ids"][:longest], row["labels"][:longest]
        ids_BL[number - first, : len(ids)] = ids
        places_BL[number - first, : len(ids) - 1] = labels[1:] != IGNORE_INDEX
    asked = ask(torch.from_numpy(ids_BL).to(factory.device), torch.from_numpy(places_BL).to(factory.device))
    numbers_N, places_N = places_BL.nonzero()
    at = (np.cumsum(lengths) - lengths)[numbers_N] + places_N
    columns: dict[str, np.ndarray] = {}
    for name, values_N in asked.items():
        values = values_N.cpu().numpy()
        columns[name] = np.zeros(int(lengths.sum()), values.dtype)
        columns[name][at] = values
    return columns
