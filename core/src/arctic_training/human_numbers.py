"""Numbers as people write them in a recipe: ``10%``, ``2^20``, ``1e-5``, ``1_000``, ``1.25k``, ``32Ki``.

All arithmetic is exact, so ``3e-4`` is the double nearest to 3e-4, and a whole number is whole or refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

_NUMBER = r"[+-]?(?:[0-9]+(?:_[0-9]+)*(?:\.(?:[0-9]+(?:_[0-9]+)*)?)?|\.[0-9]+(?:_[0-9]+)*)"
_SCALED = re.compile(
    rf"(?P<mantissa>{_NUMBER})(?:[eE](?P<exponent>[+-]?[0-9]{{1,4}}))?(?P<suffix>%|[kmbt]|[kmgt]i)?",
    re.IGNORECASE | re.ASCII,
)
_POWER = re.compile(r"(?P<base>[+-]?[0-9]+(?:_[0-9]+)*)\^(?P<exponent>[0-9]{1,4})")
_SPECIAL = re.compile(r"(?P<sign>[+-]?)\.?(?P<word>inf|infinity|nan)", re.IGNORECASE | re.ASCII)
_SCALES = {
    "": Fraction(1),
    "%": Fraction(1, 100),
    **{suffix: Fraction(1000**power) for power, suffix in enumerate("kmbt", start=1)},
    **{suffix: Fraction(1024**power) for power, suffix in enumerate(("ki", "mi", "gi", "ti"), start=1)},
}
# 2^9999 is no number that a recipe means; the bound keeps a slip of the finger from filling the memory.
_MOST_BITS = 1024


def parse_number(value: Any, whole: bool) -> int | float:
    """The number that ``value`` stands for.

    Args:
        value: an int, a float, or text such as ``1.5k``; ``True`` and ``False`` are no numbers.
        whole: whether a whole number is meant; the result is then an int, else a float.

    Raises:
        ValueError: it is no number, or no whole number where one is meant, or too large.
    """
    exact = _exact(value)
    if exact is None or (whole and (isinstance(exact, float) or exact.denominator != 1)):
        raise ValueError(f"expected a {'whole ' if whole else ''}number, found {_shown(value)}")
    if whole and isinstance(exact, Fraction):
        return exact.numerator
    return _nearest_double(exact, value)


def convert_leaves(value: Any) -> Any:
    """A copy of nested mappings and lists in which every text that is a number has become one.

    A whole result is an int unless it was written as a fraction (``1.0``, ``1e5``, ``10%``).
    """
    if isinstance(value, Mapping):
        return {name: convert_leaves(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [convert_leaves(item) for item in value]
    if not isinstance(value, str) or _SPECIAL.fullmatch(value.strip()):
        return value
    try:
        exact = _exact(value)
        whole = isinstance(exact, Fraction) and exact.denominator == 1 and not _is_written_as_fraction(value)
        return parse_number(value, whole=whole)
    except ValueError:
        return value


def _exact(value: Any) -> Fraction | float | None:
    """The exact value; a float only for what no fraction can hold (infinity and nan); None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, int):
        return Fraction(value)
    if isinstance(value, float):
        return Fraction(value) if math.isfinite(value) else value
    text = value.strip()
    if match := _SPECIAL.fullmatch(text):
        return float(match["sign"] + match["word"])
    if match := _POWER.fullmatch(text):
        base, exponent = int(match["base"]), int(match["exponent"])
        if exponent * base.bit_length() > _MOST_BITS:
            raise ValueError(f"{_shown(value)} is too large")
        return Fraction(base**exponent)
    if match := _SCALED.fullmatch(text):
        mantissa = Fraction(match["mantissa"].replace("_", ""))
        exponent = int(match["exponent"] or 0)
        exact = mantissa * Fraction(10) ** exponent * _SCALES[(match["suffix"] or "").lower()]
        if exact.numerator.bit_length() > _MOST_BITS:  # Python would not even write it down
            raise ValueError(f"{_shown(value)} is too large")
        return exact
    return None


def _nearest_double(exact: Fraction | float, value: Any) -> float:
    try:
        return float(exact)
    except OverflowError:
        raise ValueError(f"{_shown(value)} is too large") from None


def _is_written_as_fraction(text: str) -> bool:
    """``1.5k`` and ``10%`` scale; ``1.0`` and ``1e5`` are how a decimal fraction is written."""
    match = _SCALED.fullmatch(text.strip())
    if match is None or match["suffix"]:
        return False
    return "." in match["mantissa"] or match["exponent"] is not None


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
