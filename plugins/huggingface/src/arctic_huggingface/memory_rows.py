"""JSON arrays and CSV files, whose rows are held in memory: such a file can only be read from its beginning.

Write rows as JSON lines or Parquet where there are more of them than fit.
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from arctic_huggingface.faults import MALFORMED_CSV, Fault, check_object, check_unicode
from arctic_huggingface.json_lines import BLANKS, BYTE_ORDER_MARK, JsonLines, parse_line
from arctic_huggingface.rows import NumberedRows, RowsOfFiles
from arctic_training.errors import DataError

PROBED_LINES = 20
LONGEST_FIELD = 2**31 - 1
_SPACE = re.compile(r"[ \t\n\r]*")


class FileContent(NamedTuple):
    """The rows of one file.

    Attributes:
        values: the rows, or the fault of one.
        lines: the line, from 1, in which each begins.
        columns: the names of a CSV file's columns.
        unicode: whether all its text is known to be Unicode.
    """

    values: list[Any]
    lines: array[int]
    columns: tuple[str, ...] = ()
    unicode: bool = True


class MemoryRows(NumberedRows):
    """The rows of files, held in memory."""

    def __init__(self, names: Sequence[str], contents: Sequence[FileContent]) -> None:
        self.files = RowsOfFiles(names, [len(content.values) for content in contents])
        self.contents = contents
        self.numbers = range(self.files.firsts[-1])

    def read(self, number: int) -> dict[str, Any]:
        file, row = self.files.locate(number)
        content = self.contents[file]
        value = content.values[row]
        if isinstance(value, Fault):
            raise value.with_traceback(None)
        if not content.unicode:
            check_unicode(value)
        return dict(zip(content.columns, value, strict=True)) if content.columns else check_object(value)

    def place(self, number: int) -> str:
        file, row = self.files.locate(number)
        content = self.contents[file]
        place = f"{self.files.names[file]}:{content.lines[row]}"
        return place if content.columns else f"{place}, row {row}"


def read_json(paths: Sequence[Path], names: Sequence[str]) -> NumberedRows:
    """The items of JSON arrays, or JSON lines under the ending ``.json``, as many data sets on the hub are.

    Args:
        paths: the files.
        names: what they are called in messages.

    Raises:
        DataError: a file holds neither.
    """
    if all(_holds_lines(path) for path in paths):
        return JsonLines(paths, names)
    return MemoryRows(names, [_read_array(path, name) for path, name in zip(paths, names, strict=True)])


def read_csv(paths: Sequence[Path], names: Sequence[str], options: Mapping[str, Any]) -> NumberedRows:
    """The rows of CSV files whose first line names the columns; every value is text.

    Args:
        paths: the files.
        names: what they are called in messages.
        options: ``delimiter``, ``quotechar`` and ``encoding``; the delimiter is a tab in files ending in ``.tsv``.

    Raises:
        DataError: a file is no CSV, or names a column twice.
    """
    return MemoryRows(names, [_read_csv(path, name, options) for path, name in zip(paths, names, strict=True)])


def _holds_lines(path: Path) -> bool:
    """Whether a file is JSON lines: no array, and one of its first lines is an object."""
    with open(path, "rb") as file:
        for line in islice((line for line in file if line.strip(BLANKS)), PROBED_LINES):
            if line.removeprefix(BYTE_ORDER_MARK).lstrip(BLANKS).startswith(b"["):
                return False
            try:
                parse_line(line)
            except Fault:
                continue
            return True
    return False


def _read_array(path: Path, name: str) -> FileContent:
    content = path.read_bytes()
    try:
        text, unicode = content.decode("utf-8-sig"), b"\\ud" not in content and b"\\uD" not in content
    except UnicodeDecodeError:
        text, unicode = content.decode("utf-8-sig", "surrogateescape"), False
    values: list[Any] = []
    lines = array("Q")
    line, counted = 1, 0
    try:
        for value, start in _items(text):
            line += text.count("\n", counted, start)
            counted = start
            values.append(value)
            lines.append(line)
    except json.JSONDecodeError as error:
        raise DataError(f"this file is not JSON: {error.msg}", where=f"{name}:{error.lineno}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"this file cannot be read as JSON: {error}", where=f"{name}:{line}") from error
    except _NoArray:
        raise DataError(
            "a JSON file must hold a list of objects", where=name, remedy="write [{...}, {...}], or JSON lines"
        ) from None
    return FileContent(values, lines, unicode=unicode)


class _NoArray(Exception):
    """A file holds some other JSON than an array."""


def _items(text: str) -> Iterator[tuple[Any, int]]:
    """The items of a JSON array, and where each begins."""
    scan = json.JSONDecoder().raw_decode
    position = _after_space(text, 0)
    if not text.startswith("[", position):
        json.loads(text)
        raise _NoArray
    position = _after_space(text, position + 1)
    if not text.startswith("]", position):
        while True:
            value, end = scan(text, position)
            yield value, position
            position = _after_space(text, end)
            if not text.startswith(",", position):
                break
            position = _after_space(text, position + 1)
    if not text.startswith("]", position):
        raise json.JSONDecodeError("expected ',' or ']'", text, position)
    if (rest := _after_space(text, position + 1)) < len(text):
        raise json.JSONDecodeError("something follows the list", text, rest)


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _read_csv(path: Path, name: str, options: Mapping[str, Any]) -> FileContent:
    options = {"delimiter": "\t" if path.suffix.lower() == ".tsv" else ",", **options}
    encoding = options.pop("encoding", "utf-8-sig")
    values: list[Any] = []
    lines = array("Q")
    columns: tuple[str, ...] = ()
    try:
        # Bytes that are no text are kept until their row is asked for.
        with open(path, encoding=encoding, errors="surrogateescape", newline="") as file, _long_fields():
            for line, fields in _records(csv.reader(file, strict=True, **options), name):
                if not columns:
                    columns = _columns(fields, f"{name}:{line}")
                    continue
                values.append(_checked_fields(fields, columns))
                lines.append(line)
    except (csv.Error, UnicodeError, LookupError, TypeError) as error:
        raise DataError(f"cannot be read as CSV: {error}", where=name) from error
    return FileContent(values, lines, columns)


def _records(reader: Any, name: str) -> Iterator[tuple[int, list[str] | Fault]]:
    """The records of a CSV file, or the fault of one, each with the line in which it begins."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == "unexpected end of data":
                raise DataError(
                    "a quote that is opened in this row is never closed, so no row can be told from here on",
                    where=f"{name}:{line}",
                    remedy="close it, or double it where it is part of the text",
                ) from error
            last = f" to line {reader.line_num}" if reader.line_num > line else ""
            yield line, Fault(f"this row{last} is no CSV: {error}", MALFORMED_CSV, "correct its quotes")
        else:
            if fields:
                yield line, fields


def _columns(fields: list[str] | Fault, where: str) -> tuple[str, ...]:
    if isinstance(fields, Fault):
        raise DataError(fields.message, where=where, remedy=fields.remedy)
    twice = next((name for name in fields if fields.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are named {twice!r}", where=where, remedy="rename one")
    return tuple(fields)


def _checked_fields(fields: list[str] | Fault, columns: Sequence[str]) -> tuple[str, ...] | Fault:
    if isinstance(fields, Fault):
        return fields
    if len(fields) != len(columns):
        return Fault(
            f"this line has {'more' if len(fields) > len(columns) else 'fewer'} fields than the first: "
            f"{len(fields)} and not {len(columns)}",
            MALFORMED_CSV,
            "put fields that hold the delimiter or a line break into quotes",
        )
    if not (text := "".join(fields)).isascii():
        try:
            check_unicode(text)
        except Fault as fault:
            return fault
    return tuple(fields)


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module refuses fields of more than 128 KiB, fewer than a long document has."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
