"""What scripts and the command line call first: a recipe, read and resolved against the plugins that are installed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.component import Component, declared_classes
from arctic_training.errors import Problem, RecipeError

if TYPE_CHECKING:
    from arctic_training.trainer_config import TrainerConfig


def get_config(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    block: Iterable[str] = (),
    code: bool | None = None,
    trust: bool = False,
) -> TrainerConfig:
    """Read a recipe and resolve it against the installed plugins.

    Component classes of the calling function and module count as registered.

    Args:
        recipe: path of a YAML file, or the mapping that one holds.
        overrides: ``key=value`` texts.
        block: plugins that are not loaded.
        code: False refuses the recipe's Python file; by default the environment's ARCTIC_NO_CODE decides.
        trust: True runs code and reads pickles that somebody else could have put there.

    Raises:
        RecipeError: the recipe is wrong; holds every problem.
        PluginError: a plugin that the recipe needs is missing or broken.
    """
    frame = inspect.currentframe()
    caller = frame.f_back if frame else None
    classes = []
    if caller is not None:
        module = caller.f_globals.get("__name__", "")
        if not module.startswith(("arctic_training.", "arctic_cli.")):
            classes = declared_classes({**caller.f_globals, **caller.f_locals}, module)
    return configure(recipe, overrides, block=block, code=code, trust=trust, classes=classes)


def configure(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    block: Iterable[str] = (),
    code: bool | None = None,
    trust: bool = False,
    classes: Sequence[type[Component]] = (),
    refuse_broken: bool = False,
) -> TrainerConfig:
    """``get_config`` with the classes that count as registered given by name instead of found.

    A recipe may be wrong only because a plugin is broken. With ``refuse_broken``, as for a run, the error is that of
    the plugin then; else the plugin is told among the problems.
    """
    from arctic_training.code import code_allowed
    from arctic_training.plugins import create_plugin_manager
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve

    loaded = load_recipe(recipe, overrides)
    manager = create_plugin_manager(block=block, recipe_plugins=loaded.data.get("plugins"))
    if classes:
        manager.register_classes(classes, "script")
    try:
        return resolve(loaded, manager, code=code_allowed() if code is None else code, trust=trust)
    except RecipeError as error:
        if refuse_broken:
            manager.refuse_broken()
        doubts = [Problem(f"{broken}; what it brings is missing here") for broken in manager.broken]
        raise RecipeError([*error.problems, *doubts], is_complete=error.is_complete) from None
