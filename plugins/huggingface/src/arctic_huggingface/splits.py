"""``train[:10%]+validation[5:]``: which rows of which split a recipe asks for, in folders and files as on the hub."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from arctic_huggingface.rows import NumberedRows
from arctic_training.data import concatenate, select
from arctic_training.errors import DataError
from arctic_training.wording import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

_PART = re.compile(r"(?P<name>[^\[\]+]+)(?P<slice>\[[^\]]*\])?")
FILE_SPLITS = ("train", "eval")
"""What the one split of files may be called: train, or what a source of ``eval_sources`` asks for by default."""


def map_split(split: str, mapping: Mapping[str, str]) -> str:
    """The split with each of its names replaced by what ``mapping`` says; slices stay, and add to those of the mapping.

    Raises:
        DataError: a name and what it is mapped to both have a slice.
    """

    def mapped(match: re.Match[str]) -> str:
        name, slice_text = match["name"].strip(), match["slice"] or ""
        target = mapping.get(name, name)
        if slice_text and "[" in target:
            raise DataError(
                f"split {match[0]!r} is mapped to {target!r}, and both have a slice", remedy="use one of them"
            )
        return target + slice_text

    return _PART.sub(mapped, split)


def split_names(split: str) -> list[str]:
    """The names in a split, without slices."""
    return [match["name"].strip() for match in _PART.finditer(split)]


def take(splits: Mapping[str, Any], split: str, where: str) -> Any:
    """The rows that ``split`` asks for.

    A slice counts rows or percents, from the end when negative, as in Python; percents are rounded to the nearest row.

    Args:
        splits: rows by split name.
        split: as a recipe has it.
        where: what the rows come from, for messages.

    Raises:
        DataError: there is no such split, or a slice is none.
    """
    parts = []
    for match in _PART.finditer(split):
        name = match["name"].strip()
        if name not in splits:
            raise no_such_split(name, list(splits), where)
        rows = splits[name]
        numbers = range(len(rows))
        if match["slice"]:
            numbers = numbers[_slice(match["slice"], len(rows), where)]
        parts.append((rows, numbers))
    rows, numbers = parts[0]
    if len(parts) > 1 and isinstance(rows, NumberedRows) and all(part is rows for part, _ in parts):
        return rows.select(_joined(part for _, part in parts))
    return concatenate([rows if len(numbers) == len(rows) else select(rows, numbers) for rows, numbers in parts])


def first_rows(split: str) -> tuple[str, int, int | None] | None:
    """Name, first row and row after the last of a split whose rows can be counted from its beginning; None of others.

    Those are splits of several parts, and slices in percents or from the end.
    """
    match = _PART.fullmatch(split)
    if match is None:
        return None
    start, _, stop = (match["slice"] or "[:]").strip("[]").replace("_", "").partition(":")
    if not all(not bound or bound.strip().isdecimal() for bound in (start, stop)):
        return None
    return match["name"].strip(), int(start or 0), int(stop) if stop else None


def no_such_split(name: str, known: Sequence[str], where: str) -> DataError:
    """The error for a split that a source does not have."""
    hint = nearest(name, known)
    return DataError(
        f"there is no split {name!r}; the splits are {', '.join(known)}" + (f"; {hint}" if hint else ""),
        where=where,
        remedy=f"write `split: NAME` in the source, or split_mapping: {{{name}: NAME}}",
    )


def _joined(parts: Iterable[range]) -> np.ndarray:
    import numpy as np

    return np.concatenate([np.arange(part.start, part.stop, part.step) for part in parts])


def _slice(text: str, size: int, where: str) -> slice:
    bounds = [_bound(bound.strip(), size) for bound in text.strip("[]").split(":")]
    if len(bounds) != 2 or any(bound is False for bound in bounds):
        raise DataError(f"{text} is no slice of a split", where=where, remedy="write [START:STOP], in rows or percents")
    return slice(*bounds)


def _bound(text: str, size: int) -> int | bool | None:
    """The row that a bound stands for; None when it is left out, False when it is no number."""
    if not text:
        return None
    number, percent, rest = text.partition("%")
    try:
        return False if rest else round(int(number) * size / 100) if percent else int(number)
    except ValueError:
        return False
