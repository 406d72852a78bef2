"""Which rows share a training sequence, decided from their lengths alone.

Pure functions on whole numbers, without torch or any array library, so that every data factory can plan with them and a
plan can be shown before a token is moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """The tokens ``start`` to ``stop`` (exclusive) of the row ``row``."""

    row: int
    start: int
    stop: int


def plan_packs(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Shares rows out to packs of at most ``max_length`` tokens, by best fit over all rows at once.

    The longest row is placed first, each into the open pack that it fills most, as in best-fit decreasing bin packing
    (D. S. Johnson, "Near-optimal bin packing algorithms", 1973). The plan is a function of the arguments alone.

    Args:
        lengths: tokens of each row, each from 1 to ``max_length``.
        max_length: tokens that a pack may hold.

    Returns:
        Packs of row indices. Each index stands in exactly one pack, the indices of a pack ascend, and packs are ordered
        by their first index, so that a plan disturbs the order of the data as little as it can.

    Raises:
        ValueError: a length is below 1 or above ``max_length``; what to do with such a row is the caller's to decide.
    """
    _check(lengths, max_length)
    for index, length in enumerate(lengths):
        if length > max_length:
            raise ValueError(f"row {index} has {length} tokens, more than the {max_length} of a pack")
    packs: list[list[int]] = []
    open_packs = _OpenPacks(max_length)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        pack, space = open_packs.take_tightest(length)
        if pack is None:
            pack, space = len(packs), max_length
            packs.append([])
        packs[pack].append(index)
        open_packs.add(pack, space - length)
    for members in packs:
        members.sort()
    packs.sort()
    return packs


def fill_packs(lengths: Sequence[int], max_length: int) -> list[list[Piece]]:
    """Lays the rows end to end, in order, and cuts every ``max_length`` tokens.

    All packs but the last hold exactly ``max_length`` tokens. A row that a cut goes through continues in the next pack;
    a row longer than ``max_length`` is cut as often as it takes. Every token stands in exactly one piece.

    Args:
        lengths: tokens of each row, each at least 1.
        max_length: tokens of a full pack.

    Raises:
        ValueError: a length is below 1.
    """
    _check(lengths, max_length)
    packs: list[list[Piece]] = []
    space = 0
    for row, length in enumerate(lengths):
        start = 0
        while start < length:
            if space == 0:
                packs.append([])
                space = max_length
            stop = min(length, start + space)
            packs[-1].append(Piece(row, start, stop))
            space -= stop - start
            start = stop
    return packs


def repeat_to_fill(lengths: Sequence[int], max_length: int) -> list[int]:
    """Row indices, repeated in order as long as the next one still fits into one pack of ``max_length`` tokens.

    Rows that already hold ``max_length`` tokens or more are returned once each, so that no row is ever lost.
    """
    _check(lengths, max_length)
    total = sum(lengths)
    if total == 0:
        return []
    rounds = max(1, max_length // total)
    indices = list(range(len(lengths))) * rounds
    space = max_length - rounds * total
    for index, length in enumerate(lengths):
        if length > space:
            break
        indices.append(index)
        space -= length
    return indices


def _check(lengths: Sequence[int], max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"a pack must hold at least 1 token, not {max_length}")
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"row {index} has {length} tokens; drop empty rows before packing")


class _OpenPacks:
    """Packs that still have space, found by the least space that is enough, in constant time for any real length.

    A pack with ``space`` tokens left stands in the list of that space. Two levels of bit sets tell which lists hold
    something: blocks of 1024 spaces, and one set over the blocks. The lowest set bit at or above a length is the
    tightest fit.
    """

    _BLOCK_BITS = 10
    _BLOCK_MASK = (1 << _BLOCK_BITS) - 1

    def __init__(self, max_length: int) -> None:
        self._packs: list[list[int] | None] = [None] * (max_length + 1)
        self._blocks = [0] * ((max_length >> self._BLOCK_BITS) + 1)
        self._used_blocks = 0

    def add(self, pack: int, space: int) -> None:
        """Offers ``pack`` for rows of up to ``space`` tokens; a full pack is left out."""
        if space == 0:
            return
        packs = self._packs[space]
        if packs is None:
            packs = self._packs[space] = []
        if not packs:
            block = space >> self._BLOCK_BITS
            self._blocks[block] |= 1 << (space & self._BLOCK_MASK)
            self._used_blocks |= 1 << block
        packs.append(pack)

    def take_tightest(self, length: int) -> tuple[int | None, int]:
        """Takes out the pack with the least space of at least ``length``, and tells the space; None when none has."""
        block, low = length >> self._BLOCK_BITS, length & self._BLOCK_MASK
        bits = self._blocks[block] >> low << low
        if not bits:
            later = self._used_blocks >> (block + 1)
            if not later:
                return None, 0
            block += 1 + _lowest_bit(later)
            bits = self._blocks[block]
        space = (block << self._BLOCK_BITS) + _lowest_bit(bits)
        packs = self._packs[space]
        assert packs, "a set bit stands for a list that holds a pack"
        pack = packs.pop()
        if not packs:
            self._blocks[block] &= ~(1 << (space & self._BLOCK_MASK))
            if not self._blocks[block]:
                self._used_blocks &= ~(1 << block)
        return pack, space


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
