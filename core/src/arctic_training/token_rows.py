"""Tokenised rows as flat arrays, and rows that are put together from pieces of them when they are asked for.

Filtering, cutting, mixing and packing choose pieces; no token is copied before a rank reads its rows.

Legend: N rows, T tokens of all rows together, P pieces, K planned rows (packs, or rows by themselves).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_training.loss import IGNORE_INDEX, MOST_SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from arctic_training.packing import Packs

COLUMNS = ("input_ids", "labels")
POSITIONS = "position_ids"
SOURCES = "source_ids"
OTHER_COLUMNS = "columns"
"""What a data factory collates besides a model's arguments, by the name of the column."""
BLOCK_TOKENS = 4_000_000
"""Tokens that are looked at together where all have to be."""


class TokenRows(Sequence):
    """Rows of ids and labels, and of positions where they are packs already.

    Args:
        columns: ``input_ids``, ``labels`` and others by name, each an array of T numbers, in memory or mapped.
        lengths: tokens of each of the N rows.
        trained: trained tokens of each row, where they have been counted; the first token of a document is none.
        parts: number of rows of each source, one after the other; all rows are of one source by default.
    """

    directory: Path | None = None
    """Where the files of mapped columns are."""
    largest_id: int | None = None
    """The largest of the ids, where it was noted while they were written."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        lengths: np.ndarray,
        trained: np.ndarray | None = None,
        parts: Sequence[int] | None = None,
    ) -> None:
        import numpy as np

        self.columns = dict(columns)
        self.lengths = lengths
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.parts = [len(lengths)] if parts is None else list(parts)
        self._trained = trained

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        begin, end = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        return {name: values[begin:end] for name, values in self.columns.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[number] for number in range(len(self)))

    @property
    def trained(self) -> np.ndarray:
        """Number of trained tokens of each row."""
        if self._trained is None:
            self._trained = count_trained(self.columns, self.lengths)
        return self._trained

    def sources(self) -> np.ndarray:
        """The number of the source of each row, from 0."""
        import numpy as np

        return np.repeat(np.arange(len(self.parts), dtype=np.int16), self.parts)

    def trained_between(self, row: int, start: int, stop: int) -> int:
        """Trained tokens of a piece of a row, whose first token is none."""
        import numpy as np

        begin = int(self.offsets[row])
        labels = self.columns["labels"][begin + start + 1 : begin + stop]
        trained = labels != IGNORE_INDEX
        if POSITIONS in self.columns:
            trained &= self.columns[POSITIONS][begin + start + 1 : begin + stop] != 0
        return int(np.count_nonzero(trained))


class PlannedRows(Sequence):
    """Rows put together from pieces of token rows.

    Args:
        base: the rows that pieces are taken from.
        packs: the pieces of each of the K rows.
        packed: whether positions begin anew in each piece; otherwise a row has positions only where the base has them.
        fused: for each pack, whether its positions run through instead.
        trained_in_pieces: trained tokens of each of the P pieces; counted by default.
    """

    def __init__(
        self,
        base: TokenRows,
        packs: Packs,
        *,
        packed: bool = False,
        fused: np.ndarray | None = None,
        trained_in_pieces: np.ndarray | None = None,
    ) -> None:
        self.base = base
        self.packs = packs
        self.packed = packed
        self.fused = fused
        self._trained_in_pieces = trained_in_pieces
        self._source_ends: Any = None

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._put_together(index % len(self))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[number] for number in range(len(self)))

    @property
    def columns(self) -> list[str]:
        """The names of a row's columns."""
        names = list(self.base.columns)
        if self.packed and POSITIONS not in names:
            names.append(POSITIONS)
        return [*names, SOURCES] if self._tells_sources else names

    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self.packs.lengths()

    @property
    def trained_in_pieces(self) -> np.ndarray:
        """Trained tokens of each of the P pieces."""
        if self._trained_in_pieces is None:
            packs, base = self.packs, self.base
            counts = base.trained[packs.rows]
            cut = ((packs.starts > 0) | (packs.stops < base.lengths[packs.rows])).nonzero()[0]
            bounds = zip(packs.rows[cut].tolist(), packs.starts[cut].tolist(), packs.stops[cut].tolist(), strict=True)
            counts[cut] = [base.trained_between(*bound) for bound in bounds]
            self._trained_in_pieces = counts
        return self._trained_in_pieces

    def trained(self) -> np.ndarray:
        """Trained tokens of each row."""
        import numpy as np

        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(self.trained_in_pieces, self.packs.offsets[:-1])

    def source_of_pieces(self) -> np.ndarray:
        """The number of the source of each of the P pieces, from 0."""
        return self._sources_of(self.packs.rows)

    def select(self, numbers: Any) -> PlannedRows:
        """The rows of these numbers, in their order."""
        import numpy as np

        numbers = np.asarray(numbers, np.int64)
        fused = None if self.fused is None else self.fused[numbers]
        return PlannedRows(self.base, self.packs.select(numbers), packed=self.packed, fused=fused)

    @property
    def _tells_sources(self) -> bool:
        return 1 < len(self.base.parts) <= MOST_SOURCES

    def _put_together(self, number: int) -> dict[str, np.ndarray]:
        import numpy as np

        packs, base = self.packs, self.base
        first, last = int(packs.offsets[number]), int(packs.offsets[number + 1])
        rows = packs.rows[first:last]
        starts, stops = packs.starts[first:last], packs.stops[first:last]
        begins = base.offsets[rows]
        spans = list(zip((begins + starts).tolist(), (begins + stops).tolist(), strict=True))
        row = {
            name: np.concatenate([values[begin:end] for begin, end in spans]) for name, values in base.columns.items()
        }
        lengths = stops - starts
        firsts = np.cumsum(lengths) - lengths
        if POSITIONS in base.columns:
            row["labels"][row[POSITIONS] == 0] = IGNORE_INDEX
        elif self.packed:
            row[POSITIONS] = (np.arange(lengths.sum()) - np.repeat(firsts, lengths)).astype(np.int32)
        row["labels"][firsts] = IGNORE_INDEX  # nothing before it predicts it
        if self.fused is not None and self.fused[number]:
            row[POSITIONS] = np.arange(lengths.sum(), dtype=np.int32)
        if self._tells_sources:
            row[SOURCES] = np.repeat(self._sources_of(rows), lengths).astype(np.int32)
        return row

    def _sources_of(self, rows: np.ndarray) -> np.ndarray:
        import numpy as np

        if self._source_ends is None:
            self._source_ends = np.cumsum(self.base.parts)
        sources: Any = np.searchsorted(self._source_ends, rows, side="right")
        return sources


def count_trained(columns: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Number of trained tokens of each row, in blocks of bounded size: labels that are set and have a token before
    them in their document.

    Args:
        columns: ``labels`` and perhaps ``position_ids``, flat.
        lengths: tokens of each row, each at least 1.
    """
    import numpy as np

    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    counts: np.ndarray = np.zeros(len(lengths), np.int64)
    row = 0
    while row < len(lengths):
        end = max(row + 1, int(np.searchsorted(offsets, offsets[row] + BLOCK_TOKENS, side="right")) - 1)
        begin, stop = offsets[row], offsets[end]
        trained = np.asarray(columns["labels"][begin:stop]) != IGNORE_INDEX
        if POSITIONS in columns:
            trained &= np.asarray(columns[POSITIONS][begin:stop]) != 0
        firsts = offsets[row:end] - begin
        trained[firsts] = False
        counts[row:end] = np.add.reduceat(trained, firsts, dtype=np.int64)
        row = end
    return counts
