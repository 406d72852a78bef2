"""Prepared rows on disk: what data preparation writes once and every rank reads without loading it.

Rows of tokens are flat columns and a plan of the pieces that each row is put together from. Rows of other columns,
which a plugin may prepare, have each column by itself. Everything is memory-mapped, so the resident memory of a rank
does not grow with the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.column_files import ColumnFile, TokenWriter, copy_rows, mapped, move_rows, write_numbers
from arctic_training.disk_errors import naming
from arctic_training.packing import Packs
from arctic_training.token_rows import PlannedRows, TokenRows

if TYPE_CHECKING:
    import numpy as np

INDEX_FILE = "rows.json"
FORMAT = 2
BLOCK_ROWS = 4096
PLAN = ("rows", "starts", "stops", "offsets")


class PreparedRows(Sequence[dict[str, Any]]):
    """Rows of numbers, memory-mapped from a directory that ``write_rows`` made.

    A row is a dict: a one-dimensional array where the column holds lists, a number where it holds numbers.
    ``facts`` is what was noted beside them, ``columns`` the names of a row, ``largest_id`` the largest of the ids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        index = json.loads((path / INDEX_FILE).read_text())
        self.facts: dict[str, Any] = index["facts"]
        self.largest_id: int | None = index.get("largest_id")
        self.rows: PlannedRows | _ColumnRows = _planned(path, index) if "plan" in index else _ColumnRows(path, index)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __reduce__(self) -> tuple[Any, ...]:  # workers map the files again instead of receiving their content
        return PreparedRows, (self.path,)

    @property
    def columns(self) -> list[str]:
        """The names of a row's columns."""
        return list(self.rows.columns)

    @property
    def tokens(self) -> TokenRows | None:
        """The rows of tokens that these are put together from, where they are."""
        return self.rows.base if isinstance(self.rows, PlannedRows) else None

    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self.rows.lengths()


def is_whole(path: Path) -> bool:
    """Whether a directory holds prepared rows of this format, every file with the size that it was written with."""
    try:
        index = json.loads((path / INDEX_FILE).read_text())
        sizes = {name: (path / name).stat().st_size for name in index["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return index.get("format") == FORMAT and sizes == index["files"]


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, facts: Mapping[str, Any] | None = None) -> PreparedRows:
    """Write rows into the existing directory ``path``, synced to disk, and map them.

    Args:
        rows: planned rows, token rows, or mappings with equal keys whose values are numbers or lists of numbers.
        path: an existing directory.
        facts: JSON-able facts to keep beside them, such as counts of dropped rows.

    Raises:
        ValueError: a row has other columns than the first, or a value that is neither number nor list of numbers.
    """
    from arctic_training.packing import whole_rows

    if isinstance(rows, TokenRows):
        rows = PlannedRows(rows, whole_rows(rows.lengths))
    index = _write_planned(rows, path) if isinstance(rows, PlannedRows) else _write_columns(rows, path)
    index |= {"format": FORMAT, "facts": dict(facts or {})}
    index["files"] = {file.name: file.stat().st_size for file in sorted(path.glob("*.bin"))}
    with naming(path / INDEX_FILE), open(path / INDEX_FILE, "w") as file:
        json.dump(index, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return PreparedRows(path)


def _write_planned(rows: PlannedRows, path: Path) -> dict[str, Any]:
    base = rows.base
    if base.directory is not None and base.directory.parent == path:
        base = move_rows(base, path)
    elif base.directory != path:
        writer = TokenWriter(path)
        copy_rows(base, writer)
        base = writer.close(base.parts)
    types = {name: str(values.dtype) for name, values in base.columns.items()}
    types["lengths"] = write_numbers(path / "lengths.bin", base.lengths)
    types["trained"] = write_numbers(path / "trained.bin", base.trained)
    for name in PLAN:
        types[f"plan.{name}"] = write_numbers(path / f"plan.{name}.bin", getattr(rows.packs, name))
    types["plan.trained"] = write_numbers(path / "plan.trained.bin", rows.trained_in_pieces)
    if rows.fused is not None:
        types["plan.fused"] = write_numbers(path / "plan.fused.bin", rows.fused)
    return {
        "columns": list(base.columns),
        "types": types,
        "parts": base.parts,
        "largest_id": base.largest_id,
        "plan": {"packed": rows.packed},
    }


def _planned(path: Path, index: Mapping[str, Any]) -> PlannedRows:
    import numpy as np

    def numbers(name: str) -> np.ndarray:
        return mapped(path / f"{name}.bin", index["types"][name])

    base = TokenRows({name: numbers(name) for name in index["columns"]}, numbers("lengths"), numbers("trained"))
    base.parts, base.directory = index["parts"], path
    packs = Packs(*(numbers(f"plan.{name}") for name in PLAN))
    fused: Any = numbers("plan.fused").astype(np.bool_) if "plan.fused" in index["types"] else None
    trained = numbers("plan.trained")
    return PlannedRows(base, packs, packed=index["plan"]["packed"], fused=fused, trained_in_pieces=trained)


class _ColumnRows(Sequence[dict[str, Any]]):
    """Rows whose columns stand each by itself."""

    def __init__(self, path: Path, index: Mapping[str, Any]) -> None:
        self.num_rows: int = index["num_rows"]
        self.columns: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
            name: (
                mapped(path / f"{name}.bin", index["types"][name]),
                mapped(path / f"{name}.offsets.bin", index["types"][f"{name}.offsets"]) if is_list else None,
            )
            for name, is_list in index["columns"].items()
        }

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

    def lengths(self) -> np.ndarray:
        import numpy as np

        name = "input_ids" if "input_ids" in self.columns else next(iter(self.columns))
        offsets = self.columns[name][1]
        return np.ones(self.num_rows, np.int64) if offsets is None else np.diff(offsets)


def _write_columns(rows: Iterable[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    import numpy as np

    names: list[str] | None = None
    is_list: dict[str, bool] = {}
    files: dict[str, ColumnFile] = {}
    lengths: dict[str, list[int]] = {}
    pending: dict[str, list[Any]] = {}
    num_rows = 0

    def flush() -> None:
        for name, values in pending.items():
            if values:
                files[name].append(np.concatenate(values) if is_list[name] else np.asarray(values))
                values.clear()

    for row in rows:
        if names is None:
            names = sorted(row)
            is_list = {name: np.ndim(row[name]) == 1 for name in names}
            files = {name: ColumnFile(path / f"{name}.bin") for name in names}
            lengths, pending = {name: [] for name in names}, {name: [] for name in names}
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
    types = {name: str(files[name].close().dtype) for name in names or ()}
    for name in (name for name, lists in is_list.items() if lists):
        offsets = np.concatenate([[0], np.cumsum(lengths[name], dtype=np.int64)])
        types[f"{name}.offsets"] = write_numbers(path / f"{name}.offsets.bin", offsets)
    largest = files["input_ids"].largest if "input_ids" in files else None
    return {"num_rows": num_rows, "columns": is_list, "types": types, "largest_id": largest}
