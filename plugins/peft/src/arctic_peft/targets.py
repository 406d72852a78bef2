"""Holds the layers that an adapter names against those of the model: peft passes over a name that is not there as long
as another is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from arctic_training.wording import nearest

if TYPE_CHECKING:
    import torch

ALL_LINEAR = "all-linear"
KEYS = ("target_modules", "feedforward_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern")


def missing(keys: Mapping[str, Any], model: torch.nn.Module) -> Iterator[tuple[tuple, str, str]]:
    """What an adapter names and the model does not have: path below the adapter's section, message, remedy.

    Args:
        keys: what the recipe gives for the adapter.
        model: the base model.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    what = type(model).__name__
    for key, names in (*((key, modules) for key in KEYS), ("target_parameters", parameters)):
        patterns = key.endswith("_pattern")
        for path, given in _each(keys.get(key)):
            if given != ALL_LINEAR and not _matches(given, names, is_pattern=patterns or not path):
                kind = "parameter" if key == "target_parameters" else "module"
                yield (key, *path), f"{what} has no {kind} {given!r}", _hint(given, names, model)
    numbers = {int(part) for name in modules for part in name.split(".") if part.isdigit()}
    last, key = max(numbers, default=0), "layers_to_transform"
    for path, given in _each(keys.get(key)):
        if given not in numbers:
            yield (key, *path), f"{what} has no layer {given}", f"its layers are 0 to {last}"


def _each(value: Any) -> Iterable[tuple[tuple, Any]]:
    if value is None or value == {}:
        return []
    if isinstance(value, Mapping):
        return [((name,), name) for name in value]
    return (
        [((number,), item) for number, item in enumerate(value)] if isinstance(value, (list, tuple)) else [((), value)]
    )


def _matches(given: Any, names: Iterable[str], *, is_pattern: bool) -> bool:
    """Whether a name, or the end of one, is given; a pattern is one of a whole name (as text) or of its end."""
    text = str(given)
    if any(name == text or name.endswith(f".{text}") for name in names):
        return True
    try:
        return is_pattern and any(re.fullmatch(rf"(.*\.)?({text})", name) for name in names)
    except re.error:
        return False


def _hint(given: Any, names: Iterable[str], model: torch.nn.Module) -> str:
    """The nearest name, whole where a whole one was given, or those that there are to choose from."""
    import torch

    text = str(given)
    if "." in text and (near := nearest(text, names)):
        return near
    last = text.rpartition(".")[2]
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    words = {end for name in names if not (end := name.rpartition(".")[2]).isdigit()}
    return nearest(last, words) or f"its modules are {', '.join(sorted(linear & words or words))}"
