"""Prepared rows on disk: what data preparation writes once and every rank reads without loading it.

Each column is one flat array of numbers and one of offsets, memory-mapped, so a row costs two array slices and the
resident memory of a rank does not grow with the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

INDEX_FILE = "columns.json"
BLOCK_ROWS = 4096


class PreparedRows(Sequence[dict[str, Any]]):
    """Rows of numbers, memory-mapped from a directory that ``write_rows`` made.

    A row is a dict: a one-dimensional array where the column holds lists, a number where it holds numbers.
    """

    def __init__(self, path: Path) -> None:

        self.path = path
        index = json.loads((path / INDEX_FILE).read_text())
        self.facts: dict[str, Any] = index["facts"]
        self.num_rows: int = index["num_rows"]
        self.columns: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for name, is_list in index["columns"].items():
            values = _mapped(path / f"{name}.npy")
            self.columns[name] = (values, _mapped(path / f"{name}.offsets.npy") if is_list else None)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(self.num_rows))]
        if not -self.num_rows <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        index %= self.num_rows
        return {
            name: values[index] if offsets is None else values[offsets[index] : offsets[index + 1]]
            for name, (values, offsets) in self.columns.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:  # workers map the files again instead of receiving their content
        return PreparedRows, (self.path,)

    def lengths(self, column: str = "input_ids") -> np.ndarray:
        """Number of entries in each row of a list column."""
        import numpy as np

        offsets = self.columns[column][1]
        assert offsets is not None, f"{column} holds numbers, not lists"
        return np.diff(offsets)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, facts: Mapping[str, Any] | None = None) -> PreparedRows:
    """Write rows into the existing directory ``path``, synced to disk, and map them.

    Args:
        rows: mappings with equal keys, whose values are numbers or lists of numbers.
        path: an existing, empty directory.
        facts: JSON-able facts to keep beside them, such as counts of dropped rows.

    Raises:
        ValueError: a row has other columns than the first, or a value that is neither number nor list of numbers.
    """
    import numpy as np

    names: list[str] | None = None
    is_list: dict[str, bool] = {}
    blocks: dict[str, list[np.ndarray]] = {}
    lengths: dict[str, list[int]] = {}
    pending: dict[str, list[Any]] = {}
    num_rows = 0

    def flush() -> None:
        for name, values in pending.items():
            if values:
                blocks[name].append(_narrow(np.concatenate(values) if is_list[name] else np.asarray(values)))
                values.clear()

    for row in rows:
        if names is None:
            names = sorted(row)
            is_list = {name: np.ndim(row[name]) == 1 for name in names}
            blocks, lengths, pending = ({name: [] for name in names} for _ in range(3))  # type: ignore[assignment]
        if sorted(row) != names:
            raise ValueError(f"row {num_rows} has the columns {sorted(row)}, the rows before it {names}")
        for name in names:
            value = np.asarray(row[name]) if is_list[name] else row[name]
            if is_list[name]:
                if value.ndim != 1 or (value.size and value.dtype.kind not in "iufb"):
                    raise ValueError(f"row {num_rows}, column {name}: neither a number nor a list of numbers")
                lengths[name].append(len(value))
                value = value if value.size else value.astype(np.int32)  # an empty list is an array of float64
            pending[name].append(value)
        num_rows += 1
        if num_rows % BLOCK_ROWS == 0:
            flush()
    flush()
    for name in names or ():
        values = np.concatenate(blocks[name]) if blocks[name] else np.zeros(0, np.int32)
        _save(path / f"{name}.npy", values)
        if is_list[name]:
            _save(path / f"{name}.offsets.npy", np.concatenate([[0], np.cumsum(lengths[name], dtype=np.int64)]))
    index = {"num_rows": num_rows, "columns": is_list, "facts": dict(facts or {})}
    with open(path / INDEX_FILE, "w") as file:
        json.dump(index, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return PreparedRows(path)


def _narrow(values: np.ndarray) -> np.ndarray:
    import numpy as np

    if values.size == 0:
        return values.astype(np.int32)
    if values.dtype.kind in "iub":
        bounds = np.iinfo(np.int32)
        fits = bounds.min <= int(values.min()) and int(values.max()) <= bounds.max
        return values.astype(np.int32 if fits else np.int64)
    return values


def _save(path: Path, values: np.ndarray) -> None:
    import numpy as np

    with open(path, "wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())


def _mapped(path: Path) -> np.ndarray:
    import numpy as np

    try:
        # copy on write: pages are shared between ranks, and tensors may be made of them without a copy
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError:  # an empty array cannot be mapped
        return np.load(path, allow_pickle=False)
