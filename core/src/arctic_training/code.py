"""The recipe's own Python file: `code:`, or `train.py` beside the recipe.

The one file that is imported because of where it lies. So it is loaded from exactly that path, announced with its hash,
recorded with the run, and can be turned off.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import attrs

from arctic_training.component import declared_classes
from arctic_training.errors import PluginError, RecipeError, UsageError
from arctic_training.trust import TRUST, written_by_others

if TYPE_CHECKING:
    from arctic_training.plugins import PluginManager
    from arctic_training.recipe import Recipe

DEFAULT_NAME = "train.py"


@attrs.frozen
class Code:
    """A recipe's Python file: its path, the sha256 of its content, and the name it is imported under."""

    path: Path
    sha256: str

    @property
    def module(self) -> str:
        """Names the content, so that two recipes in one process do not share a module."""
        return f"arctic_recipe_code_{self.sha256[:12]}"


def code_allowed() -> bool:
    """Whether ARCTIC_NO_CODE leaves a recipe's own code on."""
    return os.environ.get("ARCTIC_NO_CODE", "").lower() not in ("1", "true", "yes")


def find_code(recipe: Recipe) -> Code | None:
    """The recipe's Python file, or None when it has none.

    Raises:
        RecipeError: `code:` names a file that is not there.
    """
    given = recipe.data.get("code")
    if given is not None and not isinstance(given, str):
        return None  # resolving says what is wrong with it
    path = (recipe.directory / (given or DEFAULT_NAME)).absolute()
    if given is None and (recipe.path is None or not path.is_file()):
        return None
    if not path.is_file():
        raise RecipeError(
            recipe.problem(("code",), f"there is no file {path}", remedy="give a path relative to the recipe")
        )
    return Code(path, hashlib.sha256(path.read_bytes()).hexdigest())


def load_code(recipe: Recipe, plugins: PluginManager, *, allowed: bool = True, trust: bool = False) -> Code | None:
    """Import the recipe's Python file and register what it declares: component classes and hook implementations.

    Args:
        recipe: the recipe.
        plugins: where it is registered.
        allowed: whether code may run.
        trust: whether also a file may that somebody else could have put there.

    Returns:
        The file that was loaded, or None when there is none or it is the default file and code is refused.

    Raises:
        RecipeError: `code:` names a file that is not there, or the file is one that somebody else could have put there.
        UsageError: the recipe names code and code is refused.
        PluginError: the file cannot be imported.
    """
    code = find_code(recipe)
    if code is None:
        return None
    if not allowed:
        if recipe.data.get("code") is not None:
            raise UsageError(
                f"the recipe needs its own code, {code.path}, and --no-code refuses it",
                remedy="leave out --no-code (and ARCTIC_NO_CODE) if you trust the file",
            )
        return None
    if not trust and (reason := _foreign(code.path)):
        raise RecipeError(recipe.problem(("code",), reason, remedy=f"copy it into a folder of your own, {TRUST}"))
    module = _import(code)
    plugins.register_classes(declared_classes(vars(module), code.module), code.path.name)
    if any(name.startswith("arctic_") and callable(value) for name, value in vars(module).items()):
        plugins.register(module, code.path.name, where=str(code.path))
    return code


def _import(code: Code) -> ModuleType:
    if code.module in sys.modules:
        return sys.modules[code.module]
    spec = importlib.util.spec_from_file_location(code.module, code.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[code.module] = module  # before it runs, so that its annotations and pickles find it
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of a command's answer
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[code.module]
        line = _line_of(error, code.path)
        raise PluginError(
            f"the recipe's code cannot be imported: {type(error).__name__}: {error}",
            where=f"{code.path}:{line}" if line else str(code.path),
            remedy="mend the file, or leave it out with --no-code",
        ) from error
    return module


def _line_of(error: BaseException, path: Path) -> int:
    """The last line of the file that the error came through."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 0
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _foreign(path: Path) -> str | None:
    """Why somebody else could have put a file there; None where nobody could but whom the folder is shared with."""
    if path.is_symlink() and _is_shared(path.parent):
        return f"{path} is a link in a folder that others can write to"
    return written_by_others(path)


def _is_shared(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & (stat.S_IWOTH | stat.S_IWGRP))
