"""Rows of files, as they were written: no type is guessed, no column is filled in, optional fields survive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.json_lines import JsonLines
from arctic_huggingface.memory_rows import read_csv, read_json
from arctic_huggingface.places import DataFile
from arctic_training.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
CSV_KWARGS = ("delimiter", "quotechar", "encoding")


def read_files(files: Sequence[DataFile], kwargs: Mapping[str, Any], say: Callable[[str], None]) -> Any:
    """The rows of files of one format.

    Args:
        files: at least one file.
        kwargs: ``delimiter``, ``quotechar`` and ``encoding`` of CSV files.
        say: tells the user that a file is copied.

    Raises:
        DataError: a format is not known, formats differ, or a file cannot be read.
    """
    form = format_of_all(files, kwargs)
    paths, names = [file.local(say) for file in files], [file.name for file in files]
    if form == "jsonl":
        return JsonLines(paths, names)
    if form == "json":
        return read_json(paths, names)
    return read_csv(paths, names, kwargs) if form == "csv" else _read_parquet(paths, names)


def format_of_all(files: Sequence[DataFile], kwargs: Mapping[str, Any]) -> str:
    """The one format of all files: jsonl, json, csv or parquet, by their endings.

    Raises:
        DataError: an ending is none that is known, formats differ, or reading that format does not take ``kwargs``.
    """
    formats = {_format_of(file) for file in files}
    if len(formats) > 1:
        raise DataError(
            f"the files differ in format: {', '.join(sorted(formats))}",
            where=f"{files[0].name} to {files[-1].name}",
            remedy="give each format a source of its own",
        )
    form = formats.pop()
    unknown = sorted(set(kwargs) - set(CSV_KWARGS if form == "csv" else ()))
    if unknown:
        raise DataError(
            f"kwargs has {', '.join(unknown)}, which reading {form} files does not take",
            where=files[0].name,
            remedy=f"remove it; CSV files take {', '.join(CSV_KWARGS)}, files elsewhere storage_options",
        )
    return form


def _format_of(file: DataFile) -> str:
    form = FORMATS.get(file.suffix)
    if form is None:
        raise DataError(
            f"files ending in {file.suffix or 'nothing'!r} cannot be read",
            where=file.name,
            remedy=f"the endings that are known: {', '.join(FORMATS)}",
        )
    return form


def _read_parquet(paths: Sequence[Path], names: Sequence[str]) -> Any:
    import datasets

    with quiet_datasets():
        try:
            # Written once into the library's cache as Arrow, and mapped from there.
            return datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
        except (datasets.exceptions.DatasetGenerationError, datasets.table.CastError, OSError, ValueError) as error:
            cause = error.__cause__ or error
            raise DataError(
                f"cannot be read as Parquet: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}",
                where=names[0],
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
