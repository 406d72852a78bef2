"""Rows of local files, as they were written: no type is guessed, no column is filled in, optional fields survive."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.json_lines import JsonLines
from arctic_huggingface.memory_rows import read_csv, read_json
from arctic_training.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
CSV_KWARGS = ("delimiter", "quotechar", "encoding")
READ_BYTES = 8 * 2**20


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
    form = format_of_all(paths)
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
        return read_json(paths)
    return _read_parquet(paths) if form == "parquet" else read_csv(paths, kwargs)


def format_of_all(paths: Sequence[Path]) -> str:
    """The one format of all files: jsonl, json, csv or parquet, by their endings.

    Raises:
        DataError: an ending is none that is known, or formats differ.
    """
    formats = {_format_of(path) for path in paths}
    if len(formats) > 1:
        raise DataError(
            f"the files differ in format: {', '.join(sorted(formats))}",
            where=str(paths[0].parent),
            remedy="give each format a source of its own",
        )
    return formats.pop()


def _format_of(path: Path) -> str:
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
