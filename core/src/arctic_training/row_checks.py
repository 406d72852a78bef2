"""Checks of the rows that an encoder makes, over a whole batch of them at once.

Legend: N rows, T tokens of all rows together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training.loss import IGNORE_INDEX

if TYPE_CHECKING:
    import numpy as np


def untrained_rows(labels: np.ndarray, lengths: np.ndarray) -> list[int]:
    """The numbers of the rows without a single label.

    Args:
        labels: labels of the T tokens.
        lengths: tokens of each of the N rows.
    """
    import numpy as np

    ends = np.cumsum(lengths)
    trained = np.concatenate([[0], np.cumsum(labels != IGNORE_INDEX)])  # before each token
    return np.flatnonzero(trained[ends] == trained[ends - lengths]).tolist()


def rows_that_double(token_id: int, ids: np.ndarray, lengths: np.ndarray) -> list[int]:
    """The numbers of the rows that hold a token twice in a row.

    Args:
        token_id: the token.
        ids: the T tokens.
        lengths: tokens of each of the N rows.
    """
    import numpy as np

    ends = np.cumsum(lengths)
    places = np.flatnonzero(ids == token_id)
    second = places[1:][np.diff(places) == 1]
    rows: Any = np.searchsorted(ends, second, "right")
    within = second > (ends - lengths)[rows]  # and not where one row ends and the next begins
    return np.unique(rows[within]).tolist()
