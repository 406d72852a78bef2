"""The resolved recipe as YAML: every key with its value and, as a comment, where the value comes from.

Loading the text gives the same configuration, also with a later release whose defaults differ. Secrets are left out,
and have to be given again: what stands in their place is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arctic_training.config import Config, keys_of
from arctic_training.recipe import Recipe
from arctic_training.redaction import hidden, redact, redacted
from arctic_training.secret_names import secret_names

_WIDTH = 100


def dump(config: Any) -> str:
    """The YAML text of a resolved configuration.

    Args:
        config: what ``resolve`` gave.
    """
    top = _section(config, ())
    if config.trainer_class.has_own_loss:  # the section does nothing, and would be refused
        top = [item for item in top if item[0] != "loss"]
    if config.loaded_code is not None:  # by its full path: the text may be read from another directory
        top = [(name, path, str(config.loaded_code.path) if name == "code" else value) for name, path, value in top]
    for name, value in config.sections.items():
        top.append((name, (name,), value))
    return "".join(line + "\n" for line in _mapping(top, config.recipe, 0))


def plain(value: Any) -> Any:
    """A configuration as plain mappings, lists and values, as JSON and YAML have them."""
    if isinstance(value, Config):
        return {info.name: plain(getattr(value, info.name)) for info in keys_of(type(value))}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def plain_recipe(config: Any) -> dict[str, Any]:
    """A resolved configuration as a recipe: plain mappings, lists and values of every key, without secrets.

    Args:
        config: what ``resolve`` gave.
    """
    keys = {**plain(config), **{name: plain(section) for name, section in config.sections.items()}}
    if config.trainer_class.has_own_loss:  # as a recipe it would be refused
        del keys["loss"]
    return redacted(keys)


Item = tuple[Any, tuple, Any]
"""A name, the path under which the recipe gives the value, and the value."""


def _section(config: Config, path: tuple) -> list[Item]:
    """The keys to write. Keys that mean something merely by being given are left out unless the recipe gave them."""
    return [
        (info.name, (*path, config.spelling.get(info.name, info.name)), getattr(config, info.name))
        for info in keys_of(type(config))
        if info.name in config.given or not (info.when_given or info.deprecated)
    ]


def _mapping(items: list[Item], recipe: Recipe, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, path, value in _without_secrets(items):
        children = _children(value, path, recipe)
        if children is None:
            yield f"{indent}{_scalar(name)}: {_flow(value)}  # {_origin(recipe, path)}"
        else:
            yield f"{indent}{_scalar(name)}:"
            yield from children(depth + 1)


def _without_secrets(items: list[Item]) -> list[Item]:
    parent = items[0][1][-2] if items and len(items[0][1]) > 1 else ""
    secret = secret_names((name for name, _, _ in items), parent)
    return [(name, path, hidden(plain(value), name) if name in secret else value) for name, path, value in items]


def _children(value: Any, path: tuple, recipe: Recipe) -> Any:
    """What writes the lines below a key; None for a value that fits on the line of its key."""
    if isinstance(value, Config):
        items = _section(value, path)
        return (lambda depth: _mapping(items, recipe, depth)) if items else None
    if isinstance(value, Mapping) and value:
        items = [(name, (*path, name), item) for name, item in value.items()]
        return lambda depth: _mapping(items, recipe, depth)
    if isinstance(value, (list, tuple)) and not (_is_flat(value) and len(_flow(value)) <= _WIDTH):
        return lambda depth: _sequence(value, path, recipe, depth)
    return None


def _sequence(values: Any, path: tuple, recipe: Recipe, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for index, value in enumerate(values):
        # A lone section may stand for the list that it would be the only entry of.
        alone = recipe.node((*path, index)) is None and recipe.node(path) is not None
        inner = path if alone and len(values) == 1 else (*path, index)
        children = _children(value, inner, recipe)
        if children is None:
            yield f"{indent}- {_flow(value)}  # {_origin(recipe, inner)}"
            continue
        lines = children(depth + 1)
        yield f"{indent}- {next(lines).lstrip()}"
        yield from lines


def _origin(recipe: Recipe, path: tuple) -> str:
    """Where a value comes from; a value inside a shorthand comes from where that was written."""
    origin = recipe.origin(path)
    parent = recipe.node(path[:-1])
    if origin == "default" and len(path) > 1 and isinstance(parent and parent.content, str):
        return recipe.origin(path[:-1])
    return origin


def _is_flat(values: Any) -> bool:
    return not any(isinstance(value, (Mapping, list, tuple, Config)) for value in values)


def _flow(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_flow(item) for item in value)}]"
    return "{}" if isinstance(value, (Mapping, Config)) else _scalar(value)


def _scalar(value: Any) -> str:
    """One value in YAML 1.2, read back as the same value and type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    text = redact(str(value))
    return text if _is_plain(text) else _quoted(text)


def _float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    mantissa, mark, exponent = text.partition("e")
    return text if "." in mantissa or not mark else f"{mantissa}.0e{exponent}"


def _is_plain(text: str) -> bool:
    """Whether text can stand without quotes and still be text, judged narrowly."""
    body = text.replace("-", "a").replace("_", "a").replace("/", "a").replace(".", "a")
    starts = text[:1].isascii() and text[:1].isalpha()
    return starts and body.isascii() and body.isalnum() and text.lower() not in _WORDS_OF_YAML


_WORDS_OF_YAML = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _quoted(text: str) -> str:
    """A double-quoted scalar; what does not print, and what lies beyond 16 bits, is escaped."""

    def escaped(character: str) -> str:
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character.isprintable() and ord(character) < 0xD800:
            return character
        return f"\\U{ord(character):08x}"

    return '"' + "".join(escaped(character) for character in text) + '"'
