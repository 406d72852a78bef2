"""Rows one after the other, for sources that are larger than the disk; what is read next can be kept as a position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from arctic_training.errors import BadRow, DataError

if TYPE_CHECKING:
    from arctic_training.data import Rows


class RowStream(ABC):
    """Rows one after the other, from any position that it told before."""

    @abstractmethod
    def read(self, count: int) -> list[tuple[Any, str]]:
        """The next rows, each with its place, for messages.

        Args:
            count: rows to read; fewer come only at the end.

        Returns:
            Pairs of a row and its place; instead of a row that cannot be used, the ``BadRow`` that says why.

        Raises:
            DataError: the source cannot be read any further.
        """

    @abstractmethod
    def position(self) -> dict[str, Any]:
        """Where the next read begins, as JSON can hold it."""

    @abstractmethod
    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a position that a stream of the same source told, in this process or an earlier one.

        Raises:
            DataError: the source has no such position.
        """


class LoadedStream(RowStream):
    """The rows of a sequence.

    Args:
        rows: rows as ``DataSource.load`` gives them; where they have ``where(number)``, it tells their places.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.row = 0

    def read(self, count: int) -> list[tuple[Any, str]]:
        numbers = range(self.row, min(self.row + count, len(self.rows)))
        self.row = numbers.stop
        return [self._row(number) for number in numbers]

    def position(self) -> dict[str, Any]:
        return {"row": self.row}

    def seek(self, position: Mapping[str, Any]) -> None:
        row = position.get("row")
        if not isinstance(row, int) or not 0 <= row <= len(self.rows):
            raise DataError(
                f"there is no position {dict(position)} in a source of {len(self.rows)} rows",
                remedy="go on with the data that the run began with, or start a new run",
            )
        self.row = row

    def _row(self, number: int) -> tuple[Any, str]:
        place = self.rows.where(number) if hasattr(self.rows, "where") else f"row {number}"
        try:
            return self.rows[number], place
        except BadRow as error:
            return error, place
