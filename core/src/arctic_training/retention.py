"""Which checkpoints of a directory stay: the newest, the best, and those of every so many-th step."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.errors import RecipeError
from arctic_training.wording import nearest

if TYPE_CHECKING:
    from arctic_training.checkpoint import CheckpointConfig
    from arctic_training.recipe import Recipe

NAME = re.compile(r"global_step_(\d+)")
MANIFEST = "manifest.json"
INCOMPLETE, REPLACED, REMOVED = ".incomplete", ".replaced", ".removed"
"""What a checkpoint is called while it is written, while one of the same step takes its place, and while it is removed,
so that half of one is never taken for a whole."""


def numbered(directory: Path) -> dict[int, Path]:
    """The checkpoints of a directory by step, whole or not."""
    found = directory.iterdir() if directory.is_dir() else ()
    return {int(match[1]): path for path in found if (match := NAME.fullmatch(path.name))}


def steps_to_keep(values: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """The steps whose checkpoints stay.

    Args:
        values: of each step with a checkpoint, its value of ``best_metric``; None where it was not evaluated.
        config: the entry; without any of ``keep_last``, ``keep_best`` and ``keep_every`` all stay.
    """
    if not (config.keep_last or config.keep_best or config.keep_every):
        return set(values)
    steps = sorted(values)
    sign = -1 if config.best_is == "highest" else 1
    ranked = sorted((sign * value, step) for step, value in values.items() if value is not None)
    keep = set(steps[-max(1, config.keep_last) :])
    keep |= {step for _, step in ranked[: config.keep_best]}
    if config.keep_every:
        keep |= {step for step in steps if step % config.keep_every == 0}
    return keep


def metric_of(path: Path, name: str) -> float | None:
    """A figure of the evaluation that was made at a checkpoint's step, by its manifest.

    Args:
        path: the checkpoint.
        name: ``loss``, or ``SET/loss`` where there are several sets of evaluation data.
    """
    try:
        sets: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8")).get("evaluation") or {}
    except (OSError, ValueError, AttributeError):  # no file, no JSON, no object
        return None
    value = _figures(sets).get(name)
    return None if value is None else float(value)


def refuse_unknown_figure(sets: Mapping[str, Mapping[str, Any]], config: CheckpointConfig, recipe: Recipe) -> None:
    """Refuse a ``best_metric`` that an evaluation has not measured, before a checkpoint is removed for want of it.

    Args:
        sets: the record of each set of evaluation data.
        config: the entry of ``checkpoint``.
        recipe: which the entry stands in.

    Raises:
        RecipeError: names the nearest figure, or all.
    """
    known = _figures(sets)
    if config.keep_best and config.best_metric not in known:
        remedy = nearest(config.best_metric, known) or f"there are {', '.join(sorted(known))}"
        path = (*config.section_path, "best_metric")
        raise RecipeError(recipe.problem(path, f"no evaluation measures {config.best_metric!r}", remedy=remedy))


def _figures(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The figures of evaluations as ``SET/figure``, and those of a single set by their names alone too."""
    figures = {
        (of_set, name): value
        for of_set, record in sets.items()
        for name, value in record.items()
        if (value is None or isinstance(value, (int, float))) and name != "step"
    }
    alone = {name: value for (_, name), value in figures.items()} if len(sets) == 1 else {}
    return {**{f"{of_set}/{name}": value for (of_set, name), value in figures.items()}, **alone}


def remove(path: Path) -> None:
    """Remove a checkpoint.

    Raises:
        OSError: it cannot be.
    """
    going = path.with_name(path.name + REMOVED)
    os.rename(path, going)
    shutil.rmtree(going)


def remove_rubble(directory: Path) -> None:
    """Remove what processes left that ended while they wrote or removed a checkpoint; not while one is written."""
    for path in directory.iterdir():
        name, suffix = path.stem, path.suffix
        if suffix in (INCOMPLETE, REPLACED, REMOVED) and NAME.fullmatch(name):
            shutil.rmtree(path, ignore_errors=True)
