"""Which tokens of which rows are trained on: pieces of rows, before they are packed.

Over-long rows are dropped, cut or split here, and what that leaves without anything to train on is taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import attrs

from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX

if TYPE_CHECKING:
    import numpy as np

    from arctic_training.token_rows import TokenRows

OverLong = Literal["drop", "truncate_right", "truncate_left", "split", "error"]
Count = Callable[[str, int], None]


@attrs.frozen(eq=False)
class Pieces:
    """P pieces of rows: tokens ``starts`` to ``stops`` (exclusive) of ``rows``, and how many of each are trained."""

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    trained: np.ndarray

    @classmethod
    def whole(cls, base: TokenRows) -> Pieces:
        """Each row as one piece."""
        import numpy as np

        count = len(base)
        return cls(np.arange(count), np.zeros(count, np.int64), base.lengths, base.trained)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece."""
        return self.stops - self.starts

    def select(self, which: Any) -> Pieces:
        """The pieces of these numbers, or those that a mask tells."""
        return Pieces(self.rows[which], self.starts[which], self.stops[which], self.trained[which])

    def with_bounds(self, base: TokenRows, which: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Pieces:
        """The same with other bounds for the pieces of these numbers."""
        all_starts, all_stops, trained = self.starts.copy(), self.stops.copy(), self.trained.copy()
        all_starts[which], all_stops[which] = starts, stops
        bounds = zip(self.rows[which].tolist(), starts.tolist(), stops.tolist(), strict=True)
        trained[which] = [base.trained_between(*bound) for bound in bounds]
        return Pieces(self.rows, all_starts, all_stops, trained)


def fit(pieces: Pieces, base: TokenRows, max_length: int, policy: OverLong, count: Count) -> Pieces:
    """Pieces of at most ``max_length`` tokens.

    Args:
        pieces: whole rows.
        base: the rows.
        max_length: most tokens of a piece.
        policy: what becomes of a longer row.
        count: is told what was done to how many.

    Raises:
        DataError: a row is longer and the policy is ``error``.
    """
    over_long = (pieces.lengths > max_length).nonzero()[0]
    if not len(over_long):
        return pieces
    if policy == "drop":
        count("rows dropped, longer than max_length", len(over_long))
        return pieces.select(pieces.lengths <= max_length)
    if policy == "error":
        first = int(over_long[0])
        raise DataError(
            f"row {first} has {pieces.lengths[first]} tokens, and max_length is {max_length}; "
            f"{len(over_long)} rows are too long",
            remedy="raise data.max_length, or say with data.over_long what shall become of them: drop, truncate_right, "
            "truncate_left or split",
        )
    if policy == "split":
        return _split(pieces, base, max_length, over_long, count)
    return _truncated(pieces, base, max_length, policy, over_long, count)


def without_untrained(pieces: Pieces, reason: str, count: Count) -> Pieces:
    """The pieces that have something to train on; how many have not is counted under ``reason``."""
    trained = pieces.trained > 0
    if trained.all():
        return pieces
    count(reason, int((~trained).sum()))
    return pieces.select(trained)


def _truncated(
    pieces: Pieces, base: TokenRows, max_length: int, policy: OverLong, which: np.ndarray, count: Count
) -> Pieces:
    starts, stops = pieces.starts[which], pieces.stops[which]
    if policy == "truncate_right":
        stops = starts + max_length
        cuts = stops
    else:
        starts = stops - max_length
        cuts = starts
    count("rows cut to max_length", len(which))
    labels = base.columns["labels"]
    positions = base.offsets[pieces.rows[which]] + cuts
    through = (labels[positions - 1] != IGNORE_INDEX) & (labels[positions] != IGNORE_INDEX)
    if through.any():
        count("of them in the middle of what is trained", int(through.sum()))
    cut = pieces.with_bounds(base, which, starts, stops)
    return without_untrained(cut, "rows dropped, nothing to train on in what is left of them", count)


def _split(pieces: Pieces, base: TokenRows, max_length: int, which: np.ndarray, count: Count) -> Pieces:
    """Each over-long row as pieces of ``max_length`` tokens and a rest."""
    import numpy as np

    shares: np.ndarray = np.ones(len(pieces), np.int64)
    shares[which] = -(-pieces.lengths[which] // max_length)
    numbers: np.ndarray = np.repeat(np.arange(len(pieces)), shares)
    index = np.arange(len(numbers)) - np.repeat(np.cumsum(shares) - shares, shares)
    starts = pieces.starts[numbers] + index * max_length
    stops = np.minimum(starts + max_length, pieces.stops[numbers])
    count("rows split, longer than max_length", len(which))
    count("rows made by splitting", len(numbers) - len(pieces))
    split = pieces.select(numbers)
    changed = np.isin(numbers, which).nonzero()[0]
    split = split.with_bounds(base, changed, starts[changed], stops[changed])
    return without_untrained(split, "rows dropped, nothing to train on in what was split off", count)
