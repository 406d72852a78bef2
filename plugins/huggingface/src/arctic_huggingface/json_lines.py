"""Files that hold one JSON object a line, of any size: an index of their lines is held, and a row is read and parsed
when it is asked for.

Nothing is mapped, since pages of a mapped file count as the process's own memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_huggingface.faults import INVALID_UTF8, MALFORMED_JSON, Fault, check_object, check_unicode
from arctic_huggingface.rows import NumberedRows, RowsOfFiles, narrow
from arctic_training.errors import DataError

if TYPE_CHECKING:
    import numpy as np

BLOCK_BYTES = 2**20
"""Bytes that are searched for line breaks together; what that takes is a few times as much, whatever the file."""
AHEAD_BYTES = 2**17
"""Bytes that are read together where lines are asked for one after the other."""
LINE_BREAK_BYTES = 2
"""What may stand between two lines: a line feed, or a carriage return before it."""
OPEN_FILES = 64
"""Files that a process keeps open, far fewer than systems allow."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANKS = b" \t\r\n\v\f"


class JsonLines(NumberedRows):
    """The rows of files with one JSON object a line; blank lines are no rows. A row takes 12 to 16 bytes of memory.

    Args:
        paths: the files, which must not change as long as rows are read.
        names: what they are called in messages; their paths when it is not given.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        import numpy as np

        indices = [index_lines(path) for path in paths]
        self.files = RowsOfFiles(names or [str(path) for path in paths], [len(index.starts) for index in indices])
        self.starts = np.concatenate([index.starts for index in indices])
        self.lengths = np.concatenate([index.lengths for index in indices])
        self.lines = [index.lines for index in indices]
        self.readers = FileReaders(paths, [index.version for index in indices])
        self.numbers = range(len(self.starts))

    def read(self, number: int) -> dict[str, Any]:
        file, _ = self.files.locate(number)
        return parse_line(self.readers.read(file, self.starts.item(number), self.lengths.item(number)))

    def place(self, number: int) -> str:
        file, row = self.files.locate(number)
        lines = self.lines[file]
        return f"{self.files.names[file]}:{row + 1 if lines is None else lines.item(row)}"


class LineIndex(NamedTuple):
    """The lines of a file that are not blank.

    Attributes:
        starts: where each begins, in bytes.
        lengths: how many bytes it has, without its line break.
        lines: its number, from 1; None where no line of the file is blank.
        version: size and time of the file that was indexed.
    """

    starts: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray | None
    version: tuple[int, int]


def index_lines(path: Path) -> LineIndex:
    """Where the lines of a file are. Memory beyond the index is a few blocks."""
    import numpy as np

    with open(path, "rb", buffering=0) as file:
        breaks, doubtful = _breaks_of(file)
        status = os.fstat(file.fileno())
        starts = np.concatenate([np.zeros(1, np.int64), breaks + 1])
        ends = np.concatenate([breaks, np.full(1, status.st_size)])
        del breaks
        if starts[-1] >= status.st_size:  # the last line ends with a line break
            starts, ends = starts[:-1], ends[:-1]
        if len(starts) and os.pread(file.fileno(), 3, 0) == BYTE_ORDER_MARK:
            starts[0] = len(BYTE_ORDER_MARK)
            doubtful = np.union1d(doubtful, starts[:1])
        blank = _blank_lines(file.fileno(), starts, ends, doubtful)
    lines = None
    if len(blank):
        kept: Any = np.ones(len(starts), bool)
        kept[blank] = False
        starts, ends = starts[kept], ends[kept]
        lines = narrow(kept.nonzero()[0] + 1)
    return LineIndex(starts, narrow(ends - starts), lines, _version(status))


def parse_line(line: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Raises:
        Fault: it is not UTF-8, not JSON, or no object.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Fault(
            f"byte {error.start} of the line, from 0, is not UTF-8: {line[error.start]:#04x}",
            INVALID_UTF8,
            "write the file in UTF-8",
        ) from None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith("\ufeff"):  # of a file that was appended to another
            return parse_line(line.removeprefix(BYTE_ORDER_MARK))
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise Fault(f"this line is not JSON: {reason}", MALFORMED_JSON, "correct the line") from error
    if b"\\" in line and (b"\\ud" in line or b"\\uD" in line):
        check_unicode(row)
    return check_object(row)


class FileReaders:
    """Reads parts of files. Each process opens them for itself when it first reads of them, and some of them at a time.
    Where parts are asked for one after the other, more than the next is read ahead.

    Args:
        paths: the files.
        versions: size and time of modification of each, which have to stay as they are.
    """

    def __init__(self, paths: Sequence[Path], versions: Sequence[tuple[int, int]]) -> None:
        self.paths = list(paths)
        self.versions = list(versions)
        self._opened: dict[int, _Descriptor] = {}
        # Each is one tuple, so that no thread sees half of what another has changed.
        self._ahead: tuple[int, int, bytes] = -1, 0, b""
        self._end: tuple[int, int] = -1, 0

    def __reduce__(self) -> tuple[Any, ...]:
        return FileReaders, (self.paths, self.versions)

    def read(self, file: int, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start`` on.

        Raises:
            DataError: the file has changed.
        """
        of, begin, content = self._ahead
        offset = start - begin
        if of == file and offset >= 0 and offset + length <= len(content):
            self._end = file, start + length
            return content[offset : offset + length]
        of, end = self._end
        follows = of == file and 0 <= start - end <= LINE_BREAK_BYTES
        content = self._read(file, start, length, max(length, AHEAD_BYTES) if follows else length)
        if follows:
            self._ahead = file, start, content
        self._end = file, start + length
        return content[:length]

    def _read(self, file: int, start: int, length: int, most: int) -> bytes:
        """At least ``length`` bytes, and at most so many, where the file has them."""
        # The descriptor stays open as long as this name refers to it, whatever another thread opens.
        descriptor = self._opened.get(file) or self._open(file)
        content = os.pread(descriptor.number, most, start)
        while len(content) < length:  # a read gives 2 GiB at most
            more = os.pread(descriptor.number, length - len(content), start + len(content))
            if not more:
                raise _changed(self.paths[file])
            content += more
        return content

    def _open(self, file: int) -> _Descriptor:
        descriptor = _Descriptor(self.paths[file])
        if _version(os.fstat(descriptor.number)) != self.versions[file]:
            raise _changed(self.paths[file])
        while len(self._opened) >= OPEN_FILES:
            self._opened.pop(next(iter(self._opened)), None)
        self._opened[file] = descriptor
        return descriptor


class _Descriptor:
    """An open file, closed when nobody refers to it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _changed(path: Path) -> DataError:
    return DataError("the file has changed since its lines were counted", where=str(path), remedy="start the run again")


def _breaks_of(file: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where the line breaks of a file are, and where lines begin that may be blank, since their first byte is."""
    import numpy as np

    is_blank: Any = np.zeros(256, bool)
    is_blank[list(BLANKS)] = True
    buffer: Any = np.empty(BLOCK_BYTES, np.uint8)
    breaks: list[Any] = [np.zeros(0, np.int64)]
    doubtful: list[Any] = [np.zeros(0, np.int64)]
    offset, line_begins = 0, True
    while size := file.readinto(memoryview(buffer)):
        block = buffer[:size]
        found: Any = np.flatnonzero(block == ord("\n"))
        firsts: Any = found[: -1 if len(found) and found[-1] == size - 1 else None] + 1
        if line_begins:
            firsts = np.concatenate([np.zeros(1, np.int64), firsts])
        breaks.append(found + offset)
        doubtful.append(firsts[is_blank[block[firsts]]] + offset)
        line_begins = bool(block[-1] == ord("\n"))
        offset += size
    return np.concatenate(breaks), np.concatenate(doubtful)


def _blank_lines(descriptor: int, starts: np.ndarray, ends: np.ndarray, doubtful: np.ndarray) -> np.ndarray:
    """The numbers, from 0, of the blank ones among the lines that begin where it is doubtful."""
    import numpy as np

    numbers: Any = np.searchsorted(starts, doubtful)
    lengths: Any = ends[numbers] - starts[numbers]
    blank: Any = np.ones(len(numbers), bool)
    for place in lengths.nonzero()[0].tolist():
        line = os.pread(descriptor, lengths.item(place), starts.item(numbers.item(place)))
        blank[place] = not line.strip(BLANKS)
    return numbers[blank]
