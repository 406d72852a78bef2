"""Sequences of rows that know their places, and selections of them that cost an array of numbers and nothing else."""

from __future__ import annotations

import copy
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arctic_huggingface.faults import INVALID_UTF8, Fault, check_object

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

    Numbers = range | np.ndarray

Reader = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Makes a row of some kind, such as a chat, of a row as it was loaded, or raises ``Fault``."""
TABLE_ROWS_AHEAD = 100
"""Rows of a table that are taken together when they are asked for one after the other."""


class NumberedRows(Sequence[dict[str, Any]]):
    """Rows, or a selection of them. ``numbers`` holds the number, from 0, that each had when all were loaded.

    A row that cannot be used is a ``BadRow`` when it is asked for, with its place; the others stay readable.
    """

    numbers: Numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        number = int(self.numbers[index])
        try:
            return self.read(number)
        except Fault as fault:
            raise fault.at(self.place(number)) from fault.__cause__

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        return self.place(int(self.numbers[index]))

    def select(self, numbers: Iterable[int]) -> Self:
        """The rows of these numbers, in their order."""
        selection = copy.copy(self)
        selection.numbers = chosen(self.numbers, numbers)
        return selection

    @abstractmethod
    def read(self, number: int) -> dict[str, Any]:
        """The row that had this number when all were loaded.

        Raises:
            Fault: it cannot be used.
        """

    @abstractmethod
    def place(self, number: int) -> str:
        """Where the row comes from that had this number when all were loaded."""


class TableRows(NumberedRows):
    """The rows of a ``datasets.Dataset``, or of any other sequence.

    Args:
        table: the rows.
        source: what they come from, for messages.
    """

    def __init__(self, table: Any, source: str) -> None:
        self.table = table
        self.source = source
        self.numbers = range(len(table))
        self._ahead: tuple[int, list[Any]] = 0, []

    def read(self, number: int) -> dict[str, Any]:
        start, rows = self._ahead
        if not start <= number < start + len(rows):
            follows = bool(rows) and number == start + len(rows)
            rows = self._rows(number, TABLE_ROWS_AHEAD if follows else 1)
            self._ahead = number, rows
            start = number
        row = rows[number - start]
        if isinstance(row, Fault):
            raise row.with_traceback(None)
        return check_object(row)

    def _rows(self, number: int, count: int) -> list[Any]:
        """Rows from this number on, or the fault of one whose bytes are no text."""
        try:
            return rows_of_table(self.table, number, count)
        except UnicodeDecodeError as error:
            if count > 1:
                return [
                    row for one in range(number, min(number + count, len(self.table))) for row in self._rows(one, 1)
                ]
            byte = f"{error.object[error.start]:#04x}"
            return [Fault(f"the row holds the byte {byte}, which is not UTF-8", INVALID_UTF8, "write it in UTF-8")]

    def place(self, number: int) -> str:
        return f"{self.source}, row {number}"


class ReadRows(Sequence[dict[str, Any]]):
    """What a reader makes of rows, each when it is asked for.

    Args:
        rows: the rows as they were loaded.
        reader: makes a row of each.
    """

    def __init__(self, rows: NumberedRows, reader: Reader) -> None:
        self.rows = rows
        self.reader = reader

    @property
    def numbers(self) -> Numbers:
        """The number, from 0, that each row had when all were loaded."""
        return self.rows.numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ReadRows(self.rows[index], self.reader)
        row = self.rows[index]
        try:
            return self.reader(row)
        except Fault as fault:
            raise fault.at(self.where(index)) from fault.__cause__

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """The place of a row, for messages: file and line, or the number that it had when it was loaded."""
        return self.rows.where(index)

    def select(self, numbers: Iterable[int]) -> ReadRows:
        """The rows of these numbers, in their order."""
        return ReadRows(self.rows.select(numbers), self.reader)


class RowsOfFiles:
    """Which file each row of several comes from.

    Args:
        names: what the files are called in messages.
        counts: rows of each.
    """

    def __init__(self, names: Sequence[str], counts: Sequence[int]) -> None:
        self.names = list(names)
        self.firsts = [0]
        for count in counts:
            self.firsts.append(self.firsts[-1] + count)

    def locate(self, number: int) -> tuple[int, int]:
        """The number of the row's file, and the row's number in it."""
        file = bisect_right(self.firsts, number) - 1
        return file, number - self.firsts[file]


def rows_of_table(table: Any, start: int, count: int) -> list[Any]:
    """Rows of a ``datasets.Dataset``, taken together, from ``start`` on; one row of any other sequence."""
    if count == 1 or not hasattr(table, "column_names"):
        return [table[start]]
    columns = table[start : start + count]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def chosen(numbers: Numbers, indices: Iterable[int]) -> Numbers:
    """The numbers at these indices: a range of a range stays a range, everything else becomes an array.

    Raises:
        IndexError: an index is out of bounds.
    """
    import numpy as np

    size = len(numbers)
    if isinstance(indices, range) and len(indices) and isinstance(numbers, range):
        first, last = numbers[indices[0]], numbers[indices[-1]]
        step = (last - first) // (len(indices) - 1) if len(indices) > 1 else 1
        return range(first, first + step * len(indices), step)
    if isinstance(indices, range):
        indices = np.arange(indices.start, indices.stop, indices.step)
    array = np.asarray(indices if hasattr(indices, "__len__") else list(indices), np.int64)
    if len(array) and not (-size <= array.min() and array.max() < size):
        raise IndexError(f"row {array.max() if array.max() >= size else array.min()} of {size}")
    if not isinstance(numbers, range):
        return numbers[array]
    if len(array) and array.min() < 0:
        array = np.where(array < 0, array + size, array)
    return narrow(array if numbers == range(size) else numbers.start + array * numbers.step)


def narrow(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 in the four bytes that most need, or in eight."""
    import numpy as np

    return values.astype(np.int64 if len(values) and values.max() >= 2**32 else np.uint32)
