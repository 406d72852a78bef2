"""Rows of local files, as they were written: no type is guessed, no column is filled in, optional fields survive.

JSON lines are parsed when a row is asked for, so that memory does not grow with the file.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import mmap
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
CSV_KWARGS = ("delimiter", "quotechar", "encoding")
READ_BYTES = 8 * 2**20


class FileRows(Sequence[dict[str, Any]]):
    """Rows that know the file and the line they come from."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The place of a row, for messages."""

    @abstractmethod
    def select(self, numbers: Iterable[int]) -> FileRows:
        """The rows of these numbers, in their order."""


class JsonLines(FileRows):
    """The rows of files that hold one JSON object a line; empty lines are no rows.

    Args:
        paths: the files.
        lines: for each row the number of its file, the offset of its line in bytes, and the line's number from 1.
    """

    def __init__(self, paths: Sequence[Path], lines: np.ndarray | None = None) -> None:
        self.paths = list(paths)
        self.lines = _index_lines(self.paths) if lines is None else lines
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        number, offset, _ = self.lines[index].tolist()
        content = self._map(number)
        end = content.find(b"\n", offset)
        line = content[offset : end if end >= 0 else len(content)]
        try:
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise DataError(
                f"this line is not JSON: {error}", where=self.where(index), remedy="correct the line"
            ) from error
        return _checked(row, self.where, index)

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes map the files again
        return JsonLines, (self.paths, self.lines)

    def where(self, index: int) -> str:
        number, _, line = self.lines[index].tolist()
        return f"{self.paths[number]}:{line}"

    def select(self, numbers: Iterable[int]) -> JsonLines:
        return JsonLines(self.paths, self.lines[list(numbers)])

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            with open(self.paths[number], "rb") as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[number]


class Items(FileRows):
    """Rows in memory, each with its place."""

    def __init__(self, rows: Sequence[Any], places: Sequence[str]) -> None:
        self.rows = rows
        self.places = places

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return _checked(self.rows[index], self.where, index)

    def where(self, index: int) -> str:
        return self.places[index]

    def select(self, numbers: Iterable[int]) -> Items:
        numbers = list(numbers)
        return Items([self.rows[number] for number in numbers], [self.places[number] for number in numbers])


def find_files(name: str, folders: Sequence[Path]) -> list[Path]:
    """The files that a path or a glob pattern names, sorted; empty when it names none.

    Args:
        name: a path, with ``*``, ``?``, ``[...]`` and ``**`` as a shell has them.
        folders: where a relative one starts; the first folder in which there is something counts.
    """
    for folder in folders:
        pattern = str(folder / Path(name).expanduser())
        if Path(pattern).is_file():
            return [Path(pattern)]
        files = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
        if files:
            return files
    return []


def read_files(paths: Sequence[Path], kwargs: Mapping[str, Any]) -> Any:
    """The rows of files of one format.

    Args:
        paths: at least one file.
        kwargs: ``delimiter``, ``quotechar`` and ``encoding`` of CSV files.

    Raises:
        DataError: a format is not known, formats differ, or a file cannot be read.
    """
    formats = {format_of(path) for path in paths}
    if len(formats) > 1:
        raise DataError(f"the files differ in format: {', '.join(sorted(formats))}", where=str(paths[0].parent))
    (form,) = formats
    unknown = sorted(set(kwargs) - set(CSV_KWARGS if form == "csv" else ()))
    if unknown:
        raise DataError(
            f"kwargs has {', '.join(unknown)}, which reading {form} files does not take",
            where=str(paths[0]),
            remedy=f"remove it; CSV files take {', '.join(CSV_KWARGS)}",
        )
    if form == "jsonl":
        return JsonLines(paths)
    if form == "json":
        return _read_json(paths)
    return _read_parquet(paths) if form == "parquet" else _read_csv(paths, kwargs)


def format_of(path: Path) -> str:
    """jsonl, json, csv or parquet, by the file's ending.

    Raises:
        DataError: the ending is none that is known.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise DataError(
            f"files ending in {path.suffix or 'nothing'!r} cannot be read",
            where=str(path),
            remedy=f"the endings that are known: {', '.join(FORMATS)}",
        )
    return form


def content_hash(paths: Sequence[Path]) -> str:
    """sha256 over the format and the content of files, in order."""
    total = hashlib.sha256()
    for path in paths:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
        total.update(f"{path.suffix} {digest.hexdigest()}\n".encode())
    return total.hexdigest()


def _index_lines(paths: Sequence[Path]) -> np.ndarray:
    import numpy as np

    parts = []
    for number, path in enumerate(paths):
        with open(path, "rb") as file:
            offsets, lines = _lines_of(file)
        parts.append(np.stack([np.full(len(offsets), number, np.int64), offsets, lines], axis=1))
    return np.concatenate(parts)


def _lines_of(file: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    offsets, lines, offset = [], [], 0
    for line, content in enumerate(file, 1):
        if not content.isspace():
            offsets.append(offset)
            lines.append(line)
        offset += len(content)
    return np.array(offsets, np.int64), np.array(lines, np.int64)


def _read_json(paths: Sequence[Path]) -> FileRows:
    rows: list[Any] = []
    places: list[str] = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and len(paths) == 1:
                return JsonLines(paths)  # JSON lines under another ending, as many data sets on the hub are
            raise DataError(f"this file is not JSON: {error}", where=str(path)) from error
        if isinstance(content, dict) and len(paths) == 1:
            return JsonLines(paths) if _is_one_line(path) else _not_a_list(path)
        if not isinstance(content, list):
            return _not_a_list(path)
        rows.extend(content)
        places.extend(f"{path}, row {number}" for number in range(len(content)))
    return Items(rows, places)


def _is_one_line(path: Path) -> bool:
    return len(path.read_bytes().strip().splitlines()) == 1


def _not_a_list(path: Path) -> Any:
    raise DataError(
        "a JSON file must hold a list of objects", where=str(path), remedy="write [{...}, {...}], or JSON lines"
    )


def _read_csv(paths: Sequence[Path], kwargs: Mapping[str, Any]) -> FileRows:
    rows: list[dict[str, str]] = []
    places: list[str] = []
    for path in paths:
        options = {"delimiter": "\t" if path.suffix.lower() == ".tsv" else ",", **kwargs}
        encoding = options.pop("encoding", "utf-8-sig")
        try:
            with open(path, encoding=encoding, newline="") as file:
                reader = csv.DictReader(file, strict=True, **options)
                for row in reader:
                    if None in row or None in row.values():
                        raise DataError(
                            f"this line has {'more' if None in row else 'fewer'} fields than the first",
                            where=f"{path}:{reader.line_num}",
                            remedy="put fields that hold the delimiter or a line break into quotes",
                        )
                    rows.append(row)
                    places.append(f"{path}:{reader.line_num}")
        except (csv.Error, UnicodeError, LookupError, TypeError) as error:
            raise DataError(f"cannot be read as CSV: {error}", where=str(path)) from error
    return Items(rows, places)


def _read_parquet(paths: Sequence[Path]) -> Any:
    import datasets

    with quiet_datasets():
        try:
            # Written once into the library's cache as Arrow, and mapped from there.
            return datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
        except (datasets.exceptions.DatasetGenerationError, datasets.table.CastError, OSError, ValueError) as error:
            cause = error.__cause__ or error
            raise DataError(
                f"cannot be read as Parquet: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}",
                where=str(paths[0]),
            ) from error


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """The datasets library without its progress bars, which would be mixed into the run's own lines."""
    import datasets

    if datasets.utils.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _checked(row: Any, where: Any, index: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object with named fields, not {type(row).__name__}", where=where(index))
    return row
