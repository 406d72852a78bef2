"""Data sets that the datasets library reads: names on the hub, folders of data files, and what save_to_disk wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arctic_huggingface.files import quiet_datasets
from arctic_huggingface.hub import WHOLE_LOG, found
from arctic_huggingface.splits import FILE_SPLITS, no_such_split, take
from arctic_training.errors import DataError

_UNKNOWN_SPLIT = re.compile(r"(Unknown|Bad) split:? \"?(?P<name>[^\".]*)\"?\..*\[(?P<known>.*)\]")
OWN_KEYS = {
    "split": "use the source's own `split`",
    "streaming": "remove it: whether rows are streamed is no property of a source",
}


def is_saved(folder: Path | None) -> bool:
    """Whether save_to_disk wrote a folder."""
    return folder is not None and any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def load_saved(folder: Path, split: str, source: str, kwargs: Mapping[str, Any]) -> Any:
    """The rows of a folder that save_to_disk wrote.

    Args:
        folder: the folder.
        split: the split, with slices.
        source: what the recipe calls it, for messages.
        kwargs: what the recipe gives for reading it, which has to be nothing.

    Raises:
        DataError: it cannot be read, or has no such split.
    """
    import datasets

    if kwargs:
        raise DataError("a folder that save_to_disk wrote takes no kwargs", where=str(folder), remedy="remove kwargs")
    with found(f"data {source!r}", refused):
        saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        own = () if saved.split is None else (str(saved.split),)
        saved = dict.fromkeys((*FILE_SPLITS, *own), saved)
    return take(saved, split, source)


OF_A_FOLDER = "name its files themselves, one by one or as *.jsonl: what is wrong in them is told by file and line then"


def load_named(name: str, split: str, source: str, kwargs: Mapping[str, Any], *, streaming: bool = False) -> Any:
    """A data set of the hub, or of a folder of data files.

    Args:
        name: its name or folder.
        split: the split; with slices unless it is streamed.
        source: what the recipe calls it, for messages.
        kwargs: arguments of ``datasets.load_dataset``.
        streaming: whether to give a ``datasets.IterableDataset``, of which nothing is kept on this machine.

    Raises:
        DataError: it cannot be found or read, or has no such split.
    """
    import datasets

    if name == "pandas":
        raise DataError("these are pickles, which run what is in them", where=source, remedy="write them as Parquet")
    for key, remedy in OWN_KEYS.items():
        if key in kwargs:
            raise DataError(f"{key} stands in kwargs", where=source, remedy=remedy)
    kwargs = {**kwargs, "streaming": True} if streaming else kwargs
    is_folder = Path(name).is_dir()
    with reading(source, on_hub=not is_folder, remedy=OF_A_FOLDER if is_folder else ""):
        try:
            return datasets.load_dataset(name, split=split, **kwargs)
        except ValueError as error:
            known = _UNKNOWN_SPLIT.search(str(error))
            if known is None:
                raise
            raise no_such_split(known["name"], re.findall(r"'([^']*)'", known["known"]), source) from error


@contextmanager
def reading(source: str, *, on_hub: bool = False, remedy: str = "") -> Iterator[None]:
    """Explains what the library raises while it reads, and keeps it quiet."""
    import datasets

    remedy = remedy or WHOLE_LOG
    with found(f"data {source!r}", refused, remedy, on_hub=on_hub), quiet_datasets():
        try:
            yield
        except datasets.exceptions.DatasetGenerationError as error:
            cause = str(error.__cause__ or "") or str(error)
            raise refused(f"data {source!r}: {cause.splitlines()[0]}", remedy) from error


def refused(message: str, remedy: str) -> DataError:
    """The error for data that a recipe names."""
    return DataError(message, remedy=remedy)
