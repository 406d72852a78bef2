"""Parameters by patterns over their names: shell globs, as in ``model.layers.[01].*`` or ``*norm*``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from arctic_training.errors import RecipeError
from arctic_training.wording import nearest

if TYPE_CHECKING:
    from arctic_training.config import Config
    from arctic_training.run import Run


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a whole name fits any of these patterns: ``*`` stands for any text, ``?`` for a letter, ``[...]`` for one
    of some."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def refuse_unmatched(patterns: Sequence[str], names: Sequence[str], section: Config, key: str, run: Run) -> None:
    """Refuse a pattern that fits no parameter: it was meant to fit one.

    Args:
        patterns: as the recipe has them.
        names: of the parameters.
        section: the section of the recipe that the patterns stand in.
        key: their key in it.
        run: the run.

    Raises:
        RecipeError: names the pattern with its place, and the nearest name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern.replace("*", ""), names) or f"there are {', '.join(names[:3])}, ..."
            message = f"the pattern {pattern!r} fits no parameter of the model"
            path = (*section.section_path, key)
            raise RecipeError(run.config.recipe.problem(path, message, remedy=f"{near} `*` stands for any text"))
