"""Recipes: YAML files (or mappings) that say what to train, read with the place of every key.

Reading is pure: it opens the recipe and what it extends, and nothing else. What the keys mean is decided in
``resolve.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from arctic_training.errors import Problem, RecipeError
from arctic_training.overrides import OVERRIDE_LAYER, apply_overrides
from arctic_training.redaction import remember_secrets
from arctic_training.yaml_nodes import Location, Node, merge, node_of, read_text, read_yaml


class Recipe:
    """A recipe as it was written, after ``extends`` and overrides.

    Attributes:
        data: plain mappings, lists and values; free to change, the places stay.
        path: the recipe's file; None when it came as a mapping.
        directory: where relative paths of the recipe begin.
    """

    def __init__(self, root: Node, path: Path | None) -> None:
        self.path = path
        self.directory = path.parent if path else Path()
        self.data: dict[str, Any] = root.plain()
        self._nodes = dict(root.walk())

    def node(self, path: tuple) -> Node | None:
        """The node that the recipe gives at ``path``, or None."""
        return self._nodes.get(path)

    def walk(self) -> Iterator[tuple[tuple, Node]]:
        """Every node that the recipe gives, with its path."""
        return iter(self._nodes.items())

    def position(self, path: tuple, of: Literal["key", "value"] = "value") -> tuple[str, int, int]:
        """``(file, line, column)`` of a value, or of its key; of the nearest section around what is not given."""
        for length in range(len(path), -1, -1):
            node = self._nodes.get(path[:length])
            if node is not None:
                at = node.key_at if of == "key" or length < len(path) else node.at
                return at.file, at.line, at.column
        return "", 0, 0

    def problem(self, path: tuple, message: str, *, of: Literal["key", "value"] = "value", remedy: str = "") -> Problem:
        """A problem with what stands at ``path``."""
        return Location(*self.position(path, of)).problem(message, path=dotted(path), remedy=remedy)

    def place(self, path: tuple, of: Literal["key", "value"] = "value") -> str:
        """Where a value stands, as errors name it: ``recipe.yaml:3:5: optimizer.type``."""
        file, line, column = self.position(path, of)
        return f"{file}:{line}:{column}: {dotted(path)}" if line else dotted(path)

    def origin(self, path: tuple) -> str:
        """Where a value comes from: ``recipe.yaml:3``, ``override``, ``recipe`` (a mapping) or ``default``."""
        node = self._nodes.get(path)
        if node is None:
            return "default"
        if node.layer >= OVERRIDE_LAYER:
            return "override"
        return f"{Path(node.at.file).name}:{node.at.line}" if node.at.line else "recipe"


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file or a mapping, with what it ``extends``, and apply ``key=value`` overrides.

    Raises:
        RecipeError: the file cannot be read, is no YAML, gives a key twice, extends itself, or an override does not
            fit.
    """
    if isinstance(source, Mapping):
        path = None
        root = _extended(node_of(source, layer=_TOP_LAYER), Path(), layer=_TOP_LAYER, seen=())
    else:
        path = Path(source)
        root = _load_file(path, layer=_TOP_LAYER, seen=())
    remember_secrets(root.plain())  # before an override hides one, or anything in the recipe is refused
    apply_overrides(root, overrides)
    recipe = Recipe(root, path)
    remember_secrets(recipe.data)
    return recipe


def dotted(path: tuple) -> str:
    """A key path as text: ``data.sources.0.split``."""
    return ".".join(str(name) for name in path)


# A recipe's own layer; each one that it extends lies one lower.
_TOP_LAYER = OVERRIDE_LAYER - 1


def _load_file(path: Path, *, layer: int, seen: tuple[Path, ...]) -> Node:
    file = str(path)
    root = read_yaml(read_text(path, file), file, layer=layer)
    start = Location(file, 1, 1)
    if root is None or root.content is None:
        raise RecipeError(start.problem("the recipe is empty", remedy="it needs at least 'model' and 'data'"))
    if not isinstance(root.content, dict):
        found = "a list" if isinstance(root.content, list) else f"the value {root.content!r}"
        raise RecipeError(root.at.problem(f"expected a mapping of keys, found {found}"))
    return _extended(root, path.parent, layer=layer, seen=(*seen, path.resolve()))


def _extended(root: Node, directory: Path, *, layer: int, seen: tuple[Path, ...]) -> Node:
    """``root`` laid upon the recipe that its ``extends`` names, relative to ``directory``."""
    extends = root.content.pop("extends", None)
    if extends is None:
        return root
    if not isinstance(extends.content, str) or not extends.content.strip():
        raise RecipeError(extends.at.problem("expected the path of a recipe", path="extends"))
    base = directory / extends.content
    if base.resolve() in seen:
        chain = " -> ".join(path.name for path in (*seen, base))
        raise RecipeError(extends.at.problem(f"recipes extend each other in a circle: {chain}", path="extends"))
    if not base.is_file():
        raise RecipeError(extends.at.problem(f"there is no recipe {str(base)!r}", path="extends"))
    return merge(_load_file(base, layer=layer - 1, seen=seen), root)
