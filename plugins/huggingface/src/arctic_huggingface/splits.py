"""``train[:10%]+validation[5:]``: which rows of which split a recipe asks for, the same for hub names, folders and files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from arctic_training.data import concatenate, select
from arctic_training.errors import DataError
from arctic_training.wording import nearest

_PART = re.compile(r"(?P<name>[^\[\]+]+)(?P<slice>\[[^\]]*\])?")
FILE_SPLITS = ("train", "eval", "validation", "test", "all")
"""What the one split of a file may be called."""


def map_split(split: str, mapping: Mapping[str, str]) -> str:
    """The split with each of its names replaced by what ``mapping`` says; slices stay, and add to those of the mapping.

    Raises:
        DataError: a name and what it is mapped to both have a slice.
    """

    def mapped(match: re.Match[str]) -> str:
        name, slice_text = match["name"].strip(), match["slice"] or ""
        target = mapping.get(name, name)
        if slice_text and "[" in target:
            raise DataError(f"split {match[0]!r} is mapped to {target!r}, and both have a slice", remedy="use one of them")
        return target + slice_text

    return _PART.sub(mapped, split)


def split_names(split: str) -> list[str]:
    """The names in a split, without slices."""
    return [match["name"].strip() for match in _PART.finditer(split)]


def take(splits: Mapping[str, Any], split: str, where: str) -> Any:
    """The rows that ``split`` asks for.

    Args:
        splits: rows by split name.
        split: as a recipe has it.
        where: what the rows come from, for messages.

    Raises:
        DataError: there is no such split, or a slice reaches past its end.
    """
    from datasets import ReadInstruction

    for name in split_names(split):
        if name not in splits:
            raise no_such_split(name, list(splits), where)
    lengths = {name: len(rows) for name, rows in splits.items()}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise DataError(f"split {split!r} does not fit: {error}", where=where) from error
    return concatenate([_part(splits[part.splitname], part.from_, part.to) for part in parts])


def no_such_split(name: str, known: Sequence[str], where: str) -> DataError:
    """The error for a split that a source does not have."""
    hint = nearest(name, known)
    return DataError(
        f"there is no split {name!r}; the splits are {', '.join(known)}" + (f"; {hint}" if hint else ""),
        where=where,
        remedy=f"write `split: NAME` in the source, or split_mapping: {{{name}: NAME}}",
    )


def _part(rows: Any, start: int | None, stop: int | None) -> Any:
    start, stop = start or 0, len(rows) if stop is None else stop
    return rows if (start, stop) == (0, len(rows)) else select(rows, range(start, stop))
