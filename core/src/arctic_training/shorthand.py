"""``name:split[slice]``, the short form of a data source in a recipe."""

from __future__ import annotations

import re
from typing import Any

from arctic_training.config import Place

_SLICE = r"\[(?:-?[0-9_]+%?)?:(?:-?[0-9_]+%?)?\]"
_PART = rf"[A-Za-z0-9_][A-Za-z0-9_.\-]*(?:{_SLICE})?"
_SPLIT = re.compile(rf"{_PART}(?:\+{_PART})*")


def source_from_shorthand(value: Any, place: Place) -> dict[str, Any]:
    """The entry that the text stands for.

    A name that is registered as a source is that source; every other is the ``name_or_path`` of the default source.

    Raises:
        ValueError: it is no text of this form.
    """
    if not isinstance(value, str):
        raise ValueError("expected a name, 'name:split[slice]' or a mapping")
    name, split = _name_and_split(value.strip())
    entry: dict[str, Any] = {"type": name} if name in place.names else {"name_or_path": name}
    if split:
        entry["split"] = split
    return entry


def is_split(text: str) -> bool:
    """Whether the text names a split: ``train``, ``train[:10%]``, ``train+validation[5:]``."""
    return bool(_SPLIT.fullmatch(text))


def default_split(place: Place) -> str:
    """The split of an entry that names none."""
    return "eval" if place.key.startswith("eval") else "train"


def _name_and_split(text: str) -> tuple[str, str]:
    name, colon, split = text.partition(":")
    if not colon:
        if not name:
            raise ValueError("expected a name or 'name:split[slice]'")
        return name, ""
    if split.startswith("//"):  # hf://datasets/...: the first colon belongs to the address
        address, colon, split = split.partition(":")
        name += ":" + address
        if not colon:
            return name, ""
    if not name or not is_split(split):
        raise ValueError("expected 'name:split[slice]', such as 'name:train[:10%]'")
    return name, split
