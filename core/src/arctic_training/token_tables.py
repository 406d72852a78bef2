"""Rows of any sequence of mappings as token rows: lists of dicts, and ``datasets`` without going through Python
numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_training.errors import BadRow, DataError
from arctic_training.token_rows import COLUMNS, POSITIONS, TokenRows

if TYPE_CHECKING:
    import numpy as np

PROBED_ROWS = 20
"""Rows of which one has to hold a column, so that a source of another shape is told before anything is encoded."""


def token_rows_of(dataset: Any) -> TokenRows:
    """Token rows of a sequence of rows that hold ``input_ids`` and ``labels``, and perhaps ``position_ids``.

    Raises:
        DataError: a column is missing, a row is empty, or its columns differ in length.
    """
    if isinstance(dataset, TokenRows):
        return dataset
    if not len(dataset):
        return joined_in_memory([])
    names = list(getattr(dataset, "column_names", None) or dataset[0])
    wanted = [*COLUMNS, POSITIONS] if POSITIONS in names else list(COLUMNS)
    refuse_missing_columns(names)
    columns, lengths = {}, {}
    for name in wanted:
        columns[name], lengths[name] = _flat_column(dataset, name)
    for name in wanted[1:]:
        differs = (lengths[name] != lengths["input_ids"]).nonzero()[0]
        if len(differs):
            row = int(differs[0])
            raise DataError(f"row {row}: {lengths['input_ids'][row]} input_ids and {lengths[name][row]} {name}")
    empty = (lengths["input_ids"] == 0).nonzero()[0]
    if len(empty):
        raise DataError(f"row {int(empty[0])}: no tokens", remedy="remove empty rows")
    return TokenRows(columns, lengths["input_ids"])


def columns_of(dataset: Any) -> set[str]:
    """The columns of a table, or those that the first rows have which can be read."""
    if names := getattr(dataset, "column_names", None):
        return set(names)
    columns: set[str] = set()
    for number in range(min(PROBED_ROWS, len(dataset))):
        with contextlib.suppress(BadRow):
            row = dataset[number]
            columns.update(row if isinstance(row, Mapping) else ())
    return columns


def refuse_missing_columns(names: Sequence[str]) -> None:
    """Refuse columns that are not those of tokens.

    Raises:
        DataError: ``input_ids`` or ``labels`` is not among them.
    """
    if not set(COLUMNS) <= set(names):
        raise DataError(
            f"prepared rows must have the columns input_ids and labels; found {', '.join(sorted(names))}",
            remedy="remove `process: false` from the source if its rows are still text",
        )


def joined_in_memory(parts: Sequence[TokenRows]) -> TokenRows:
    """The rows of all parts, one after the other; each part is a source.

    Raises:
        DataError: some parts have positions and others do not.
    """
    import numpy as np

    filled = [part for part in parts if len(part)]
    if not filled:
        nothing: dict[str, Any] = {name: np.zeros(0, np.int32) for name in COLUMNS}
        return TokenRows(nothing, np.zeros(0, np.int64), parts=[0] * max(1, len(parts)))
    refuse_other_columns(filled)
    columns = {name: np.concatenate([part.columns[name] for part in filled]) for name in filled[0].columns}
    lengths = np.concatenate([part.lengths for part in filled])
    trained = np.concatenate([part.trained for part in filled])
    return TokenRows(columns, lengths, trained, [len(part) for part in parts])


def refuse_other_columns(parts: Sequence[TokenRows]) -> None:
    """Refuse sources that differ in their columns.

    Raises:
        DataError: some have positions and others do not.
    """
    filled = [part for part in parts if len(part)]
    if any(set(part.columns) != set(filled[0].columns) for part in filled):
        raise DataError(
            "some sources hold position_ids and others do not",
            remedy="leave position_ids out of rows that are to be packed here",
        )


def _flat_column(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if not hasattr(dataset, "with_format"):
        values = [np.asarray(row[name], np.int64) for row in dataset]
        return np.concatenate(values).astype(np.int32), np.array([len(value) for value in values], np.int64)
    chunks = dataset.select_columns([name]).with_format("arrow")[:].column(0).chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    if any(chunk.null_count for chunk in chunks) or any(numbers.dtype.kind not in "iu" for numbers in values):
        raise DataError(f"{name} is not a list of whole numbers in every row", remedy="correct the rows")
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(values).astype(np.int32), np.concatenate(lengths).astype(np.int64)
