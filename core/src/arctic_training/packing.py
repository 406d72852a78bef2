"""Which rows share a training sequence, decided from their lengths alone.

Pure functions on arrays of whole numbers, so that every data factory can plan with them, a plan can be shown before a
token is moved, and ten million rows are planned in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    import numpy as np


class Piece(NamedTuple):
    """The tokens ``start`` to ``stop`` (exclusive) of the row ``row``."""

    row: int
    start: int
    stop: int


@attrs.frozen(eq=False)
class Packs:
    """P pieces of rows, shared out to K packs.

    Attributes:
        rows: the row of each piece, int64 of shape (P,), the pieces of the first pack first.
        starts: the first token of each piece in its row, int64 of shape (P,).
        stops: one past the last token of each piece in its row, int64 of shape (P,).
        offsets: where the pieces of each pack begin, int64 of shape (K + 1,): those of pack k are ``offsets[k]`` to
            ``offsets[k + 1]`` (exclusive).
    """

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Tokens of each pack, int64 of shape (K,)."""
        before = _with_zero_before(self.stops - self.starts)
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    def pieces(self, pack: int) -> list[Piece]:
        """The pieces of one pack, to show and to compare."""
        if not -len(self) <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        pack %= len(self)
        numbers = slice(self.offsets[pack], self.offsets[pack + 1])
        columns = (self.rows[numbers], self.starts[numbers], self.stops[numbers])
        return [Piece(*piece) for piece in zip(*(column.tolist() for column in columns), strict=True)]

    def select(self, numbers: Sequence[int] | np.ndarray) -> Packs:
        """The packs of these numbers, in their order."""
        import numpy as np

        chosen = np.asarray(numbers, np.int64)
        counts = self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = _with_zero_before(counts)
        pieces = np.repeat(self.offsets[chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Packs(self.rows[pieces], self.starts[pieces], self.stops[pieces], offsets)


def whole_rows(lengths: Sequence[int] | np.ndarray) -> Packs:
    """Each row as a pack of its own.

    Args:
        lengths: tokens of each row, each at least 1.

    Raises:
        ValueError: a length is below 1.
    """
    import numpy as np

    stops = _checked(lengths)
    numbers: np.ndarray = np.arange(len(stops) + 1, dtype=np.int64)
    return Packs(numbers[:-1], np.zeros_like(stops), stops.copy(), numbers)


def plan_packs(lengths: Sequence[int] | np.ndarray, max_length: int) -> Packs:
    """Shares whole rows out to packs of at most ``max_length`` tokens, by best fit over all rows at once.

    The longest row is placed first, each into the open pack that it fills most, as in best-fit decreasing bin packing
    (D. S. Johnson, "Near-optimal bin packing algorithms", 1973). The plan is a function of the arguments alone. Ten
    million rows take about half a gigabyte, their lengths included.

    Args:
        lengths: tokens of each row, each from 1 to ``max_length``.
        max_length: tokens that a pack may hold.

    Returns:
        Packs in which each row stands once, whole. The rows of a pack ascend, and packs are ordered by their first row,
        so that a plan disturbs the order of the data as little as it can.

    Raises:
        ValueError: a length is below 1 or above ``max_length``; what to do with such a row is the caller's to decide.
    """
    import numpy as np

    lengths = _checked(lengths, max_length)
    too_long = lengths > max_length
    if too_long.any():
        row = int(too_long.argmax())
        raise ValueError(f"row {row} has {lengths[row]} tokens, more than the {max_length} of a pack")
    pack_of_row = _best_fit(lengths, max_length)
    num_packs = int(pack_of_row.max(initial=-1)) + 1
    first_rows: np.ndarray = np.empty(num_packs, np.int64)
    first_rows[pack_of_row[::-1]] = np.arange(len(lengths))[::-1]  # of several the last assignment stays: the first row
    by_first_row: np.ndarray = np.empty(num_packs, np.int32)
    by_first_row[np.argsort(first_rows)] = np.arange(num_packs, dtype=np.int32)
    pack_of_row = by_first_row[pack_of_row]
    rows = np.argsort(pack_of_row, kind="stable")
    offsets = _with_zero_before(np.bincount(pack_of_row, minlength=num_packs))
    return Packs(rows, np.zeros_like(rows), lengths[rows], offsets)


def fill_packs(lengths: Sequence[int] | np.ndarray, max_length: int) -> Packs:
    """Lays the rows end to end, in order, and cuts every ``max_length`` tokens.

    All packs but the last hold exactly ``max_length`` tokens. A row that a cut goes through continues in the next pack;
    a row longer than ``max_length`` is cut as often as it takes. Every token stands in exactly one piece.

    Args:
        lengths: tokens of each row, each at least 1.
        max_length: tokens of a full pack.

    Raises:
        ValueError: a length is below 1.
    """
    import numpy as np

    before = _with_zero_before(_checked(lengths, max_length))
    cuts = np.arange(0, before[-1], max_length, dtype=np.int64)
    bounds = np.union1d(before, cuts)
    begins, ends = bounds[:-1], bounds[1:]
    offsets: np.ndarray = np.append(np.searchsorted(begins, cuts), len(begins))
    rows = np.asarray(np.searchsorted(before[1:], begins, side="right"))
    return Packs(rows, begins - before[rows], ends - before[rows], offsets)


def repeat_to_fill(lengths: Sequence[int] | np.ndarray, max_length: int) -> np.ndarray:
    """Row indices, repeated in order as long as the next one still fits into one pack of ``max_length`` tokens.

    Rows that already hold ``max_length`` tokens or more are returned once each, so that no row is ever lost.

    Args:
        lengths: tokens of each row, each at least 1.
        max_length: tokens of a full pack.

    Returns:
        int64 of one dimension.

    Raises:
        ValueError: a length is below 1.
    """
    import numpy as np

    ends = np.cumsum(_checked(lengths, max_length))
    indices: np.ndarray = np.arange(len(ends), dtype=np.int64)
    if not len(ends):
        return indices
    rounds = max(1, max_length // int(ends[-1]))
    space = max_length - rounds * int(ends[-1])
    return np.concatenate([np.tile(indices, rounds), indices[: np.searchsorted(ends, space, side="right")]])


def _checked(lengths: Sequence[int] | np.ndarray, max_length: int = 1) -> np.ndarray:
    """The lengths as int64 of one dimension, each at least 1."""
    import numpy as np

    if max_length < 1:
        raise ValueError(f"a pack must hold at least 1 token, not {max_length}")
    array = np.asarray(lengths)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be whole numbers in one dimension, not {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64, copy=False)
    too_short = array < 1
    if too_short.any():
        row = int(too_short.argmax())
        raise ValueError(f"row {row} has {array[row]} tokens; drop empty rows before packing")
    return array


def _with_zero_before(numbers: np.ndarray) -> np.ndarray:
    """Running totals, int64, from 0 on: one more than there are numbers."""
    import numpy as np

    totals: np.ndarray = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=totals[1:])
    return totals


def _best_fit(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """The pack of each row by best-fit decreasing, numbered from 0 in the order in which they are opened."""
    import numpy as np

    longest = lengths.max(initial=0)
    shorter = (longest - lengths).astype(np.min_scalar_type(longest))
    longest_first = np.argsort(shorter, kind="stable")  # by radix, in linear time, where they take up to 16 bits
    differences, counts = np.unique(shorter, return_counts=True)
    del shorter
    found = (longest - differences.astype(np.int64)).tolist()
    moves = np.fromiter(_moves(found, counts.tolist(), max_length), np.dtype((np.int64, 3)))
    first_packs, num_packs, rows_each = moves.T
    before = np.cumsum(num_packs) - num_packs
    packs = np.arange(num_packs.sum(), dtype=np.int32) + np.repeat((first_packs - before).astype(np.int32), num_packs)
    pack_of_row: np.ndarray = np.empty(len(lengths), np.int32)
    pack_of_row[longest_first] = np.repeat(packs, np.repeat(rows_each, num_packs))
    return pack_of_row


def _moves(lengths: list[int], counts: list[int], max_length: int) -> Iterator[tuple[int, int, int]]:
    """Best-fit decreasing on whole groups of equal packs instead of single rows.

    A pack with ``space`` tokens left that is the tightest for a row stays the tightest for the rows of the same length
    that follow, as long as one more fits: what else has room for it had more than ``space`` before. So it takes
    ``space // length`` of them in a row, and then the next pack with as much space does the same.

    Groups of packs with equal space are ranges of pack numbers. Those with room for the length at hand lie on a stack,
    the tightest on top; those without lie asleep, until the lengths have come down to their space. All that wakes up
    then is tighter than all that was awake, and what remains of the pack on top is tighter still, so the stack stays in
    order without a search.

    Args:
        lengths: the different lengths there are, descending.
        counts: how many rows have each of them.

    Yields:
        (first pack, number of packs, rows that each of them takes); the rows are those of ``lengths``, in order.
    """
    awake: list[tuple[int, int, int]] = []  # (space, first pack, number of packs)
    asleep: list[tuple[int, int, int]] = []  # a heap of (-space, first pack, number of packs), the largest space first
    opened = 0
    for length, count in zip(lengths, counts, strict=True):
        while asleep and -asleep[0][0] >= length:
            negative, first, packs = heappop(asleep)
            awake.append((-negative, first, packs))
        while count:
            if awake:
                space, first, packs = awake.pop()
            else:
                space, first, packs = max_length, opened, -(-count // (max_length // length))
                opened += packs
            each = space // length
            full = min(packs, count // each)
            if full:
                yield first, full, each
                count -= full * each
                if space % length:
                    heappush(asleep, (-(space % length), first, full))
                first, packs = first + full, packs - full
            if packs and count:  # fewer rows are left than the next pack has room for
                yield first, 1, count
                if packs > 1:
                    awake.append((space, first + 1, packs - 1))
                awake.append((space - count * length, first, 1))
                count = 0
            elif packs:
                awake.append((space, first, packs))
