"""Rows that hold tokens already (``process: false``): each is checked, and refused by itself when it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow, DataError
from arctic_training.token_rows import COLUMNS, POSITIONS, TokenRows, count_trained
from arctic_training.token_tables import refuse_missing_columns, token_rows_of

if TYPE_CHECKING:
    import numpy as np

PROBED_ROWS = 20
"""Rows that are looked at to see whether rows have positions."""


def clean_table(dataset: Any) -> TokenRows | None:
    """The rows of a table, or of token rows, if each of them can be used; None to look at them one by one.

    Raises:
        DataError: the table has no ``input_ids`` or no ``labels``.
    """
    if not isinstance(dataset, TokenRows) and not hasattr(dataset, "with_format"):
        return None
    if names := getattr(dataset, "column_names", None):
        refuse_missing_columns(names)
    try:
        rows = token_rows_of(dataset)
    except DataError:
        return None
    usable = (rows.trained > 0).all() and rows.columns["input_ids"].min(initial=0) >= 0
    return rows if usable else None


class GivenTokens:
    """Takes over rows of tokens, as an encoder.

    Args:
        dataset: the rows; whether they have ``position_ids`` is what the first of them tell.
    """

    def __init__(self, dataset: Any) -> None:
        self.columns = [*COLUMNS, POSITIONS] if _has_positions(dataset) else list(COLUMNS)

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """Rows as flat columns; ``places`` tells where each comes from, for errors."""
        import numpy as np

        made: list[dict[str, np.ndarray]] = []
        refused = []
        for row, place in zip(rows, places, strict=True):
            try:
                made.append(self._checked(row))
            except _Unusable as reason:
                refused.append(BadRow(str(reason), category=reason.category, where=place, remedy=reason.remedy))
        lengths = np.array([len(row["input_ids"]) for row in made], np.int64)
        empty: np.ndarray = np.zeros(0, np.int32)
        columns = {name: np.concatenate([empty, *(row[name] for row in made)]) for name in self.columns}
        return EncodedRows(columns, lengths, refused)

    def _checked(self, row: Any) -> dict[str, np.ndarray]:
        import numpy as np

        if not isinstance(row, Mapping):
            raise _Unusable(f"a row must hold input_ids and labels, not be a {type(row).__name__}", "wrong type")
        if missing := [name for name in self.columns if name not in row]:
            found = ", ".join(map(str, row)) or "none"
            raise _Unusable(
                f"the row has no column {missing[0]}; it has {found}",
                "missing column",
                "remove `process: false` from the source if its rows are still text",
            )
        columns = {name: _whole_numbers(row[name], name) for name in self.columns}
        count = len(columns["input_ids"])
        for name, values in columns.items():
            if len(values) != count:
                raise _Unusable(f"{count} input_ids and {len(values)} {name}", "columns of different lengths")
        if not count:
            raise _Unusable("no tokens", "no tokens", "remove empty rows")
        if columns["input_ids"].min() < 0:
            raise _Unusable(f"{columns['input_ids'].min()} is no token id", "wrong type")
        if not count_trained(columns, np.array([count])).any():
            raise _Unusable(
                "no token to train on: no label but of the first token is set", "nothing to train on", "remove the row"
            )
        return columns


class _Unusable(Exception):
    def __init__(self, reason: str, category: str, remedy: str = "correct the row, or remove it") -> None:
        super().__init__(reason)
        self.category = category
        self.remedy = remedy


def _whole_numbers(value: Any, name: str) -> np.ndarray:
    import numpy as np

    try:
        values = np.asarray(value)
    except ValueError:  # lists of different lengths
        values = np.asarray(None)
    if values.ndim == 1 and not len(values):
        return values.astype(np.int32)
    fits = values.ndim == 1 and values.dtype.kind in "iu" and np.can_cast(values.dtype, np.int64)
    if not fits or values.max() > np.iinfo(np.int32).max or values.min() < np.iinfo(np.int32).min:
        raise _Unusable(f"{name} must be a list of whole numbers of 32 bits", "wrong type")
    return values.astype(np.int32)


def _has_positions(dataset: Any) -> bool:
    for number in range(min(PROBED_ROWS, len(dataset))):
        try:
            row = dataset[number]
        except BadRow:
            continue
        if isinstance(row, Mapping) and set(COLUMNS) <= set(row):
            return POSITIONS in row
    return False
