"""Tokenised rows as flat arrays: filtering, cutting and packing them costs array operations, not work on each token.

Legend: N rows, T tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.packing import Piece

if TYPE_CHECKING:
    import numpy as np

COLUMNS = ("input_ids", "labels")
POSITIONS = "position_ids"


class TokenRows(Sequence):
    """Rows of ids and labels, and of positions when they are packs.

    Args:
        columns: ``input_ids``, ``labels`` and perhaps ``position_ids``, each an array of T numbers.
        lengths: tokens of each of the N rows.
    """

    def __init__(self, columns: dict[str, np.ndarray], lengths: np.ndarray) -> None:
        import numpy as np

        self.columns = columns
        self.lengths = lengths
        self.offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @classmethod
    def of(cls, dataset: Any) -> TokenRows:
        """Rows of any sequence of mappings, a ``datasets.Dataset`` without going through Python numbers.

        Raises:
            DataError: a column is missing, a row is empty, or its columns differ in length.
        """
        return cls.joined([_arrays(part) for part in getattr(dataset, "parts", [dataset]) if len(part)])

    @classmethod
    def joined(cls, parts: Sequence[tuple[dict[str, np.ndarray], np.ndarray]]) -> TokenRows:
        """The rows of several flat columns and lengths, one after the other.

        Raises:
            DataError: some parts have positions and others do not.
        """
        import numpy as np

        if not parts:
            return cls({name: np.zeros(0, np.int32) for name in COLUMNS}, np.zeros(0, np.int64))
        names = set(parts[0][0])
        if any(set(columns) != names for columns, _ in parts):
            raise DataError(
                "some sources hold position_ids and others do not",
                remedy="leave position_ids out of rows that are to be packed here",
            )
        columns = {name: np.concatenate([columns[name] for columns, _ in parts]) for name in sorted(names)}
        return cls(columns, np.concatenate([lengths for _, lengths in parts]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        begin, end = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        return {name: values[begin:end] for name, values in self.columns.items()}

    def select(self, numbers: Iterable[int]) -> TokenRows:
        """The rows of these numbers, in their order."""
        import numpy as np

        numbers = np.fromiter(numbers, np.int64)
        tokens = _ranges(self.offsets[:-1][numbers], self.lengths[numbers])
        return TokenRows({name: values[tokens] for name, values in self.columns.items()}, self.lengths[numbers])

    def cut(self, max_length: int) -> TokenRows:
        """The same rows, each to its first ``max_length`` tokens."""
        import numpy as np

        lengths = np.minimum(self.lengths, max_length)
        tokens = _ranges(self.offsets[:-1], lengths)
        return TokenRows({name: values[tokens] for name, values in self.columns.items()}, lengths)

    def unlabel_first_tokens(self) -> None:
        """Take the label from the first token of each row, and of each document of a pack: nothing before it predicts
        it."""
        self.columns["labels"] = self.columns["labels"].copy()
        self.columns["labels"][self.offsets[:-1]] = IGNORE_INDEX
        if POSITIONS in self.columns:
            self.columns["labels"][self.columns[POSITIONS] == 0] = IGNORE_INDEX

    def trained(self) -> np.ndarray:
        """Number of trained tokens of each row."""
        import numpy as np

        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat((self.columns["labels"] != IGNORE_INDEX).astype(np.int64), self.offsets[:-1])

    def pack(self, packs: Sequence[Sequence[Piece]], fused: np.ndarray | None = None) -> TokenRows:
        """One row for each pack, its pieces one after the other, positions from 0 in each piece.

        Args:
            packs: pieces of rows.
            fused: for each pack, whether its positions run through instead.
        """
        import numpy as np

        pieces = np.array([piece for pack in packs for piece in pack], np.int64).reshape(-1, 3)
        lengths = pieces[:, 2] - pieces[:, 1]
        tokens = _ranges(self.offsets[:-1][pieces[:, 0]] + pieces[:, 1], lengths)
        columns = {name: self.columns[name][tokens] for name in COLUMNS}
        begins = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        columns["labels"][begins] = IGNORE_INDEX
        num_pieces = np.array([len(pack) for pack in packs], np.int64)
        pack_lengths = np.add.reduceat(lengths, np.cumsum(num_pieces) - num_pieces) if len(packs) else num_pieces
        positions = _ranges(np.zeros_like(lengths), lengths)
        if fused is not None:
            through = _ranges(np.zeros_like(pack_lengths), pack_lengths)
            positions = np.where(np.repeat(fused, pack_lengths), through, positions)
        columns[POSITIONS] = positions.astype(np.int32)
        return TokenRows(columns, pack_lengths)


def _arrays(dataset: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Flat columns and row lengths of one sequence of rows."""
    import numpy as np

    if isinstance(dataset, TokenRows):
        return dataset.columns, dataset.lengths
    names = list(getattr(dataset, "column_names", None) or dataset[0])
    wanted = [*COLUMNS, POSITIONS] if POSITIONS in names else list(COLUMNS)
    if not set(wanted) <= set(names):
        raise DataError(
            f"prepared rows must have the columns input_ids and labels; found {', '.join(sorted(names))}",
            remedy="remove `process: false` from the source if its rows are still text",
        )
    columns, lengths = {}, {}
    for name in wanted:
        columns[name], lengths[name] = _flat_column(dataset, name)
    for name in wanted[1:]:
        differs = np.flatnonzero(lengths[name] != lengths["input_ids"])
        if len(differs):
            row = int(differs[0])
            raise DataError(f"row {row}: {lengths['input_ids'][row]} input_ids and {lengths[name][row]} {name}")
    empty = np.flatnonzero(lengths["input_ids"] == 0)
    if len(empty):
        raise DataError(f"row {int(empty[0])}: no tokens", remedy="remove empty rows")
    return columns, lengths["input_ids"]


def _flat_column(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if not hasattr(dataset, "with_format"):
        values = [np.asarray(row[name], np.int64) for row in dataset]
        return np.concatenate(values).astype(np.int32), np.array([len(value) for value in values], np.int64)
    chunks = dataset.select_columns([name]).with_format("arrow")[:].column(0).chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(values).astype(np.int32), np.concatenate(lengths).astype(np.int64)


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers of all ranges ``begin`` to ``begin + length``, one range after the other."""
    import numpy as np

    before = np.cumsum(lengths) - lengths
    return np.repeat(begins - before, lengths) + np.arange(lengths.sum())
