"""Rows one after the other, without a copy of their source on this machine: of JSON lines, of Parquet, of the hub.

Positions count what was read, so that going on needs nothing but them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from arctic_huggingface.faults import Fault
from arctic_huggingface.json_lines import BLANKS, BYTE_ORDER_MARK, parse_line
from arctic_huggingface.places import DataFile
from arctic_huggingface.rows import Reader, rows_of_table
from arctic_training.errors import BadRow, DataError
from arctic_training.stream import RowStream

BLOCK_BYTES = 2**20
"""Bytes of a file that are read together."""
TABLE_ROWS = 1000
"""Rows of a Parquet file that are decoded together."""


class FileStream(RowStream):
    """The rows of files, one file after the other. Its position holds the number of the file and the place in it.

    Args:
        files: the files.
    """

    start: Mapping[str, int] = {}
    """The place in a file at which it begins."""

    def __init__(self, files: Sequence[DataFile]) -> None:
        self.files = list(files)
        self.file = 0
        self.at = dict(self.start)
        self._rows: Iterator[tuple[Any, str]] | None = None

    def read(self, count: int) -> list[tuple[Any, str]]:
        rows: list[tuple[Any, str]] = []
        while len(rows) < count and self.file < len(self.files):
            file = self.files[self.file]
            if self._rows is None:
                self._rows = self.rows_of(file)
            with file.reached():
                rows.extend(islice(self._rows, count - len(rows)))
            if len(rows) < count:
                self.file, self.at, self._rows = self.file + 1, dict(self.start), None
        return rows

    def position(self) -> dict[str, Any]:
        return {"file": self.file, "name": self._name(self.file), **self.at}

    def seek(self, position: Mapping[str, Any]) -> None:
        file, at = position.get("file"), {name: position.get(name) for name in self.start}
        numbers = [number for number in (file, *at.values()) if isinstance(number, int) and number >= 0]
        if len(numbers) <= len(at) or numbers[0] > len(self.files) or position.get("name") != self._name(numbers[0]):
            raise DataError(
                f"there is no position {dict(position)} in the {len(self.files)} files of this source",
                where=self.files[0].name,
                remedy="go on with the files that the run began with, or start a new run",
            )
        self.file, self.at, self._rows = numbers[0], dict(zip(at, numbers[1:], strict=True)), None

    @abstractmethod
    def rows_of(self, file: DataFile) -> Iterator[tuple[Any, str]]:
        """The rows of a file from ``self.at`` on, and their places; moves ``self.at`` behind each before giving it."""

    def _name(self, file: int) -> str:
        """The name of a file without its folders, which may stand elsewhere when the run goes on."""
        return PurePosixPath(self.files[file].path).name if file < len(self.files) else ""


class LineStream(FileStream):
    """The rows of files with one JSON object a line, as ``JsonLines`` gives them. Positions are bytes and lines."""

    start = {"offset": 0, "line": 1}

    def rows_of(self, file: DataFile) -> Iterator[tuple[Any, str]]:
        offset, number = self.at["offset"], self.at["line"]
        with file.open() as content:
            _go_to(content, offset, file.name)
            for line, end in _lines(content, offset):
                place = f"{file.name}:{number}"
                number += 1
                self.at = {"offset": end, "line": number}
                if line.strip(BLANKS):
                    yield _or_bad_row(parse_line, line, place), place


class ParquetStream(FileStream):
    """The rows of Parquet files. Positions are rows; the groups of rows before one are not read."""

    start = {"row": 0}

    def rows_of(self, file: DataFile) -> Iterator[tuple[Any, str]]:
        import datasets
        import pyarrow
        import pyarrow.parquet

        with file.open() as content, pyarrow.parquet.ParquetFile(content) as parquet:
            groups = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            number, before, first = self.at["row"], 0, 0
            while first < len(groups) and before + groups[first] <= number:
                before += groups[first]
                first += 1
            skipped = number - before
            for batch in parquet.iter_batches(TABLE_ROWS, row_groups=list(range(first, len(groups)))):
                left = batch.slice(min(skipped, batch.num_rows))
                skipped -= batch.num_rows - left.num_rows
                table = datasets.Dataset(
                    datasets.table.InMemoryTable(pyarrow.Table.from_batches([left])), fingerprint=""
                )
                for row in rows_of_table(table, 0, left.num_rows):
                    number += 1
                    self.at = {"row": number}
                    yield row, f"{file.name}, row {number - 1}"


class LibraryStream(RowStream):
    """The rows that the datasets library streams. Positions are the library's own.

    Args:
        load: gives a ``datasets.IterableDataset``.
        source: what the rows come from, for messages.
        reached: explains what the library raises when it cannot read on.
    """

    def __init__(self, load: Callable[[], Any], source: str, reached: Callable[[], Any]) -> None:
        self.load = load
        self.source = source
        self.reached = reached
        self.row = 0
        self._state: dict[str, Any] | None = None
        self._dataset: Any = None
        self._rows: Iterator[Any] | None = None

    def read(self, count: int) -> list[tuple[Any, str]]:
        with self.reached():
            if self._rows is None:
                self._dataset = self.load()
                if self._state is not None:
                    self._dataset.load_state_dict(self._state)
                self._rows = iter(self._dataset)
            rows = list(islice(self._rows, count))
            if rows:
                self._state = self._dataset.state_dict()
        before, self.row = self.row, self.row + len(rows)
        return [(row, f"{self.source}, row {number}") for number, row in enumerate(rows, before)]

    def position(self) -> dict[str, Any]:
        return {"row": self.row, "state": self._state}

    def seek(self, position: Mapping[str, Any]) -> None:
        if not isinstance(position.get("row"), int) or "state" not in position:
            raise DataError(f"there is no position {dict(position)} in this source", where=self.source)
        self.row, self._state, self._rows = position["row"], position["state"], None


class SlicedStream(RowStream):
    """Some rows of a stream, which is read from its beginning to the first of them.

    Args:
        stream: a stream at its beginning.
        start: number of the first row, from 0.
        stop: number of the row after the last; None for all.
    """

    def __init__(self, stream: RowStream, start: int, stop: int | None) -> None:
        self.stream = stream
        self.start = start
        self.stop = stop
        self.row = 0

    def read(self, count: int) -> list[tuple[Any, str]]:
        while self.row < self.start and self._take(min(TABLE_ROWS, self.start - self.row)):
            pass
        return self._take(count if self.stop is None else max(0, min(count, self.stop - self.row)))

    def position(self) -> dict[str, Any]:
        return {"row": self.row, "of": self.stream.position()}

    def seek(self, position: Mapping[str, Any]) -> None:
        self.stream.seek(position["of"])
        self.row = int(position["row"])

    def _take(self, count: int) -> list[tuple[Any, str]]:
        rows = self.stream.read(count)
        self.row += len(rows)
        return rows


class ReadStream(RowStream):
    """What a reader makes of the rows of a stream.

    Args:
        stream: the rows as they come from their source.
        reader: makes a row of each.
    """

    def __init__(self, stream: RowStream, reader: Reader) -> None:
        self.stream = stream
        self.reader = reader

    def read(self, count: int) -> list[tuple[Any, str]]:
        return [
            (row if isinstance(row, BadRow) else _or_bad_row(self.reader, row, place), place)
            for row, place in self.stream.read(count)
        ]

    def position(self) -> dict[str, Any]:
        return self.stream.position()

    def seek(self, position: Mapping[str, Any]) -> None:
        self.stream.seek(position)


def _or_bad_row(read: Callable[[Any], Any], row: Any, place: str) -> Any:
    try:
        return read(row)
    except Fault as fault:
        return fault.at(place)


def _lines(file: Any, offset: int) -> Iterator[tuple[bytes, int]]:
    """The lines of a file that stands at ``offset``, without their line breaks, and where the next begins."""
    buffer, start = b"", 0
    begins = offset == 0
    while True:
        end = buffer.find(b"\n", start)
        if end < 0:
            # Longer blocks for longer lines, so that each byte is moved few times.
            block = file.read(max(BLOCK_BYTES, len(buffer) - start))
            buffer, start = buffer[start:] + block, 0
            if block:
                continue
            end = len(buffer)
            if not buffer:
                return
        offset += end + 1 - start if end < len(buffer) else end - start
        line = buffer[start:end]
        yield (line.removeprefix(BYTE_ORDER_MARK) if begins else line), offset
        start, begins = min(end + 1, len(buffer)), False


def _go_to(file: Any, offset: int, name: str) -> None:
    """Go to a place that is in the file or at its end."""
    if offset:
        file.seek(offset - 1)
        if not file.read(1):
            raise DataError(
                f"the file has changed: it is shorter than the {offset:,} bytes that were read of it",
                where=name,
                remedy="go on with the files that the run began with, or start a new run",
            )
