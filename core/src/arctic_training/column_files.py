"""Columns of numbers on disk: written block after block in bounded memory, and mapped when they are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from arctic_training.disk_errors import naming
from arctic_training.token_rows import TokenRows, count_trained

if TYPE_CHECKING:
    import numpy as np

COPY_NUMBERS = 1 << 20
"""Numbers that are copied together."""


class ColumnFile:
    """A file of numbers of one type, which becomes a wider one when a block needs it.

    Whole numbers take four bytes as long as they fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dtype: np.dtype | None = None
        self.largest: float | None = None
        """The largest number; None where there is none."""
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - open until it is closed

    def append(self, values: np.ndarray) -> None:
        """Add numbers at the end."""
        import numpy as np

        values = narrowed(values)
        if self.dtype is None:
            self.dtype = values.dtype
        wider = np.result_type(self.dtype, values.dtype)
        if wider != self.dtype:
            self._widen(wider)
        with naming(self.path, values.size * wider.itemsize):
            self._file.write(np.ascontiguousarray(values, wider).data)
        if values.size:
            largest = values.max().item()
            self.largest = largest if self.largest is None else max(self.largest, largest)

    def close(self) -> np.ndarray:
        """Sync the file to disk and map it."""
        import numpy as np

        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self.dtype = self.dtype or np.dtype(np.int32)
        return mapped(self.path, self.dtype)

    def _widen(self, dtype: np.dtype) -> None:
        import numpy as np

        assert self.dtype is not None, "only what has numbers is widened"
        with naming(self.path):
            self._file.close()
        narrow = self.path.with_suffix(".narrow")
        os.replace(self.path, narrow)
        self._file = open(self.path, "wb")  # noqa: SIM115
        with open(narrow, "rb") as file, naming(self.path):
            while block := file.read(COPY_NUMBERS * self.dtype.itemsize):
                self._file.write(np.frombuffer(block, self.dtype).astype(dtype).data)
        narrow.unlink()
        self.dtype = dtype


class TokenWriter:
    """Writes token rows into a directory, block after block.

    Args:
        directory: where the files go; made when it is not there.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._files: dict[str, ColumnFile] = {}
        self._lengths: list[np.ndarray] = []
        self._trained: list[np.ndarray] = []

    def append(self, columns: Mapping[str, np.ndarray], lengths: np.ndarray, trained: np.ndarray | None = None) -> None:
        """Add rows.

        Args:
            columns: flat numbers by name, the same names each time.
            lengths: tokens of each row.
            trained: trained tokens of each; counted here by default.
        """
        if not len(lengths):
            return
        if not self._files:
            self._files = {name: ColumnFile(self.directory / f"{name}.bin") for name in columns}
        for name, file in self._files.items():
            file.append(columns[name])
        self._lengths.append(lengths)
        self._trained.append(count_trained(columns, lengths) if trained is None else trained)

    def close(self, parts: list[int] | None = None) -> TokenRows:
        """The rows, mapped from the files; ``parts`` are the numbers of rows of each source."""
        import numpy as np

        for name in ("input_ids", "labels"):
            if name not in self._files:
                self._files[name] = ColumnFile(self.directory / f"{name}.bin")
        columns = {name: file.close() for name, file in self._files.items()}
        largest = self._files["input_ids"].largest
        lengths, trained = (
            np.concatenate(blocks) if blocks else np.zeros(0, np.int64) for blocks in (self._lengths, self._trained)
        )
        rows = TokenRows(columns, lengths, trained, parts)
        rows.directory, rows.largest_id = self.directory, None if largest is None else int(largest)
        return rows


def copy_rows(rows: TokenRows, writer: TokenWriter) -> None:
    """Append token rows to a writer in blocks, so that no more than a block of them is in memory."""
    import numpy as np

    begin = 0
    while begin < len(rows):
        limit = rows.offsets[begin] + COPY_NUMBERS
        end = max(begin + 1, int(np.searchsorted(rows.offsets, limit, side="right")) - 1)
        first, last = int(rows.offsets[begin]), int(rows.offsets[end])
        columns = {name: _block(rows, name, first, last) for name in rows.columns}
        writer.append(columns, rows.lengths[begin:end], rows.trained[begin:end])
        begin = end


def move_rows(rows: TokenRows, directory: Path) -> TokenRows:
    """Take the files of mapped rows over into another directory of the same file system."""
    source = rows.directory
    assert source is not None, "only rows of files can be moved"
    for name in rows.columns:
        os.replace(source / f"{name}.bin", directory / f"{name}.bin")
    columns = {name: mapped(directory / f"{name}.bin", values.dtype) for name, values in rows.columns.items()}
    moved = TokenRows(columns, rows.lengths, rows.trained, rows.parts)
    moved.directory, moved.largest_id = directory, rows.largest_id
    shutil.rmtree(source, ignore_errors=True)
    return moved


def write_numbers(path: Path, values: np.ndarray) -> str:
    """Write an array into a file of its own, synced; the name of its type."""
    file = ColumnFile(path)
    file.append(values)
    file.close()
    return str(file.dtype)


def mapped(path: Path, dtype: Any) -> np.ndarray:
    """The numbers of a file: copy on write, so that ranks share the pages and tensors may be made of them."""
    import numpy as np

    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="c"))  # a memmap's slices cost ten times as much


def narrowed(values: np.ndarray) -> np.ndarray:
    """Whole numbers in four bytes where they fit, in eight otherwise."""
    import numpy as np

    if values.size == 0:
        return values.astype(np.int32)
    if values.dtype.kind in "iub" and values.dtype != np.int32:
        bounds = np.iinfo(np.int32)
        fits = bounds.min <= int(values.min()) and int(values.max()) <= bounds.max
        return values.astype(np.int32 if fits else np.int64)
    return values


def _block(rows: TokenRows, name: str, begin: int, end: int) -> np.ndarray:
    """Some numbers of a column, read from its file where it has one: pages that are mapped would stay in memory."""
    import numpy as np

    values = rows.columns[name]
    if rows.directory is None:
        return values[begin:end]
    path = rows.directory / f"{name}.bin"
    return np.fromfile(path, values.dtype, count=end - begin, offset=begin * values.dtype.itemsize)
