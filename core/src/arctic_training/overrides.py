"""``key=value`` overrides of a recipe, as they are given on the command line.

The value is read as YAML and, like every value of a recipe, typed later by the key it sets; for a key that holds text
the characters count as they were typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arctic_training.errors import Problem, RecipeError
from arctic_training.redaction import redacted_override
from arctic_training.yaml_nodes import Location, Node, node_of, read_yaml

SHORTHAND = "="
"""Key that holds a shorthand value of which an override sets a part: ``data.sources.0.split=...`` on ``- name``."""

OVERRIDE_LAYER = 1_000
"""Overrides win over every recipe, however long its line of ``extends``."""


def apply_overrides(root: Node, overrides: Sequence[str]) -> None:
    """Set in ``root`` what each override says, in their order.

    Raises:
        RecipeError: with a problem for each override that cannot be applied.
    """
    problems: list[Problem] = []
    if torn := torn_override(overrides):
        raise RecipeError(f"override '{torn}': {TORN}")
    for override in overrides:
        at = Location(f"override '{redacted_override(override)}'")
        try:
            _apply(root, override, at)
        except _CannotApply as error:
            problems.append(at.problem(str(error)))
    if problems:
        raise RecipeError(problems)


def is_override(argument: str) -> bool:
    """Whether a word of the command line has the form of an override: ``key.path=value``."""
    path, equals, _ = argument.partition("=")
    return bool(equals) and not path.startswith("-")


TORN = "spaces around '=' make several arguments of it; write it without them, as here"


def torn_override(words: Sequence[str]) -> str:
    """The first override that spaces around its ``=`` have torn into several words, as it is to be written, without
    secrets; empty where there is none."""
    for index, word in enumerate(words[1:], start=1):
        before = words[index - 1]
        if "=" not in before and word.startswith("="):
            return redacted_override("".join(words[index - 1 : index + 1 + (word == "=")]))
        if before.endswith("=") and is_override(before) and "=" not in word:
            return redacted_override(before + word)
    return ""


class _CannotApply(Exception):
    """An override that does not fit the recipe."""


def _apply(root: Node, override: str, at: Location) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise _CannotApply("expected 'key=value', found no '='")
    names = path.strip().split(".")
    if not all(names):
        raise _CannotApply("the key before '=' is empty" if not path.strip() else "a part of the key is empty")
    if names == ["extends"]:
        raise _CannotApply("'extends' cannot be overridden; change the recipe")
    node = root
    for depth, name in enumerate(names[:-1]):
        node = _child(node, name, names[: depth + 1], at)
    _set(node, names, _value(text, at), at)


def _child(node: Node, name: str, names: list[str], at: Location) -> Node:
    """The node under ``name``, made when it is not there yet and can hold keys."""
    container = _container(node, names[:-1], at)
    if isinstance(container, list):
        return container[_index(container, name, names[:-1])]
    if name not in container:
        container[name] = Node({}, at, at, layer=OVERRIDE_LAYER)
    return container[name]


def _set(node: Node, names: list[str], value: Node, at: Location) -> None:
    container = _container(node, names[:-1], at)
    if isinstance(container, list):
        container[_index(container, names[-1], names[:-1])] = value
    else:
        container[names[-1]] = value


def _container(node: Node, names: list[str], at: Location) -> Any:
    """What holds the next key. A plain value becomes a mapping that remembers it, in case it is a shorthand."""
    if node.content is None:
        node.content = {}
    if not isinstance(node.content, (dict, list)):
        if not isinstance(node.content, str):
            raise _CannotApply(f"{'.'.join(names)!r} holds {node.content!r}, which has no keys")
        node.content = {SHORTHAND: Node(node.content, node.at, node.key_at, node.text, node.layer)}
    return node.content


def _index(items: list[Node], name: str, names: list[str]) -> int:
    holder = ".".join(names)
    if not name.isdecimal():
        raise _CannotApply(f"{holder!r} is a list: expected an index such as '{holder}.0', found {name!r}")
    if int(name) >= len(items):
        raise _CannotApply(f"{holder!r} has {len(items)} entries, there is no index {name}")
    return int(name)


def _value(text: str, at: Location) -> Node:
    """The node of an override's value, with the text as typed wherever YAML makes something else of it."""
    try:
        root = read_yaml(text, at.file, layer=OVERRIDE_LAYER)
    except RecipeError:
        root = None if not text.strip() else node_of(text, at=at, layer=OVERRIDE_LAYER)
    if root is None:
        root = node_of(None, at=at, layer=OVERRIDE_LAYER)
    for _, node in root.walk():
        node.at = node.key_at = at
    quoted = isinstance(root.content, str) and text.lstrip()[:1] in ("'", '"')
    root.text = None if quoted else text
    return root
