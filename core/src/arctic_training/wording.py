"""Types and values of a recipe in the words of its author, for messages."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from arctic_training.config import Config


def described(expected: Any, *, bounded: bool = False) -> str:
    """A type in the words of a recipe's author; without ``null`` where bounds of a number follow."""
    origin = get_origin(expected)
    if origin is Literal:
        choices = [described_value(choice) for choice in get_args(expected)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if origin in (Union, types.UnionType):
        members = [member for member in get_args(expected) if not (bounded and member is type(None))]
        return " or ".join(described(member) for member in members)
    if (origin or expected) is tuple:
        items = get_args(expected)
        if items and items[-1] is not Ellipsis:
            return f"a list of {len(items)}"
    if isinstance(expected, type) and issubclass(expected, Config):
        return "a mapping"
    return _WORDS.get(origin or expected, getattr(expected, "__name__", str(expected)))


def found(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    shown = described_value(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    if isinstance(value, str):
        return f"the text {shown}"
    return f"the number {shown}" if isinstance(value, (int, float)) and not isinstance(value, bool) else shown


def described_value(value: Any) -> str:
    """A scalar as YAML writes it."""
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


def counted(number: int, noun: str, nouns: str = "") -> str:
    """``1 row``, ``2,000 rows``; ``nouns`` is the plural where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def counted_by_name(number: int, name: str) -> str:
    """``1 row refused, too long`` for the count ``rows refused, too long``: counts are named in the plural."""
    one = _PLURAL.sub(r"\1", name, count=1)
    return f"{number:,} {one if number == 1 else name}"


def nearest(name: Any, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``did you mean 'x'?`` for a name that is nearly one of those known; else empty."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=cutoff)
    return f"did you mean {lowered[near[0]]!r}?" if near else ""


_PLURAL = re.compile(r"\b(answer|document|message|pack|pair|prompt|row|text|token)s\b")
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
    type(None): "null",
    Mapping: "a mapping",
}

_BOUND_WORDS = {
    "ge": ("of at least", lambda number, bound: number >= bound),
    "gt": ("above", lambda number, bound: number > bound),
    "le": ("of at most", lambda number, bound: number <= bound),
    "lt": ("below", lambda number, bound: number < bound),
}


def outside(value: Any, bounds: Mapping[str, float]) -> str:
    """The bounds in words when a number is not within them; nan is within none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if all(_BOUND_WORDS[name][1](value, bound) for name, bound in bounds.items()):
        return ""
    return " and ".join(f"{_BOUND_WORDS[name][0]} {bound}" for name, bound in bounds.items())


def takes_shape(member: Any, value: Any) -> bool:
    """Whether a value looks like this type from outside, so that what is wrong inside is worth telling."""
    shape = get_origin(member) or member
    if isinstance(value, Mapping):
        return shape is dict or shape is Mapping or (isinstance(shape, type) and issubclass(shape, Config))
    return isinstance(value, (list, tuple)) and shape in (list, tuple)


def listed(known: Iterable[str]) -> str:
    names = list(known)
    if not names:
        return "the section has no keys"
    return f"the keys are {', '.join(names)}" if len(names) <= 12 else ""
