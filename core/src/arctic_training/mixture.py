"""How much of each source an epoch holds: weights, passes and caps, as a function of the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import numpy as np


@attrs.frozen
class Share:
    """What a recipe asks of one source.

    Attributes:
        weight: its part of an epoch, in proportion to the weights of the others; None for all it has.
        passes: how often its rows are used in an epoch; with weights, at most.
        most_trained_tokens: trained tokens of an epoch at most.
    """

    weight: float | None = None
    passes: float = 1.0
    most_trained_tokens: int | None = None

    @property
    def asks_for_something(self) -> bool:
        """Whether it differs from using each row once."""
        return self.weight is not None or self.passes != 1 or self.most_trained_tokens is not None


def draw(shares: Sequence[Share], trained: Sequence[np.ndarray], weight_by: str, seed: int) -> list[np.ndarray]:
    """The rows of each source in one epoch.

    Without weights a source gives as many passes over its rows as it is asked for. With weights an epoch is as long as
    it can be with every source in proportion and none used more often than its ``passes``. A part of a pass is drawn at
    random, without replacement.

    Args:
        shares: one for each source; either all have a weight or none.
        trained: trained tokens of each row, for each source.
        weight_by: what weights are proportions of, ``rows`` or ``trained_tokens``; without weights a part of a pass is
            one of the trained tokens.
        seed: of the draws.

    Returns:
        For each source the numbers of its rows, ascending, each as often as it is used.
    """
    import numpy as np

    totals = [int(counts.sum()) for counts in trained]
    passes = [
        min(share.passes, share.most_trained_tokens / total) if share.most_trained_tokens and total else share.passes
        for share, total in zip(shares, totals, strict=True)
    ]
    weighted = any(share.weight is not None for share in shares)
    by_rows = weighted and weight_by == "rows"
    units = [np.ones_like(counts) if by_rows else counts for counts in trained]
    sizes = [int(counts.sum()) for counts in units]
    if weighted:
        weights = [share.weight or 0.0 for share in shares]
        epoch = min(size * most / weight for size, most, weight in zip(sizes, passes, weights, strict=True))
        passes = [epoch * weight / size if size else 0.0 for size, weight in zip(sizes, weights, strict=True)]
    drawn = [
        _passes(counts, number, np.random.Generator(np.random.Philox(key=[seed, source])))
        for source, (counts, number) in enumerate(zip(units, passes, strict=True))
    ]
    return [
        np.sort(_within(rows, counts, share.most_trained_tokens), kind="stable")
        for rows, counts, share in zip(drawn, trained, shares, strict=True)
    ]


def _within(rows: np.ndarray, trained: np.ndarray, most: int | None) -> np.ndarray:
    """As many of the rows, from the first on, as have no more trained tokens than a source may give."""
    import numpy as np

    if most is None:
        return rows
    return rows[: int(np.searchsorted(np.cumsum(trained[rows]), most, side="right"))]


def _passes(units: np.ndarray, passes: float, generator: np.random.Generator) -> np.ndarray:
    """Every row ``floor(passes)`` times, and rows drawn at random until the rest is reached as nearly as it can be."""
    import numpy as np

    whole = int(passes + 1e-9)
    rest = (passes - whole) * int(units.sum())
    chosen = np.tile(np.arange(len(units)), whole)
    if rest > 0.5:
        order = generator.permutation(len(units))
        reached = np.cumsum(units[order])
        count = int(np.searchsorted(reached, rest))
        before = reached[count - 1] if count else 0
        if count < len(units) and reached[count] - rest < rest - before:
            count += 1
        chosen = np.concatenate([chosen, order[:count]])
    return chosen
