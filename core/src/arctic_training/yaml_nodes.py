"""A recipe as a tree whose every key and value knows where it was written.

YAML 1.2 is read with ruamel's parser; scalars are made here, so that duplicate keys, foreign tags and endless aliases
are refused with their places. Nothing here knows what a key means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from arctic_training.errors import Problem, RecipeError
from arctic_training.human_numbers import parse_number

# A recipe has hundreds of values; a few lines of nested aliases can stand for billions.
_MOST_NODES = 100_000
_TAG = "tag:yaml.org,2002:"


@attrs.frozen
class Location:
    """A place in a file. Line and column count from 1; 0 where there is no file, ``file`` then says what there is."""

    file: str = ""
    line: int = 0
    column: int = 0

    def problem(self, message: str, path: str = "", remedy: str = "") -> Problem:
        """A problem at this place."""
        return Problem(message, path=path, file=self.file, line=self.line, column=self.column, remedy=remedy)


@attrs.define(eq=False)
class Node:
    """A value of a recipe and where it comes from.

    Attributes:
        content: a dict of nodes, a list of nodes, or a plain value.
        at: where the value begins.
        key_at: where its key begins; the same as ``at`` in a list.
        text: the characters of a value that was typed on the command line, for keys whose value is text.
        layer: which of several recipes it comes from; the higher one wins over the lower.
    """

    content: Any
    at: Location = Location()
    key_at: Location = Location()
    text: str | None = None
    layer: int = 0

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.content, dict):
            return {name: child.plain() for name, child in self.content.items()}
        if isinstance(self.content, list):
            return [child.plain() for child in self.content]
        return self.content

    def walk(self, path: tuple = ()) -> Iterator[tuple[tuple, Node]]:
        """Every node below and including this one, with its path."""
        yield path, self
        children: Iterable[tuple[Any, Node]] = self.content.items() if isinstance(self.content, dict) else ()
        if isinstance(self.content, list):
            children = enumerate(self.content)
        for name, child in children:
            yield from child.walk((*path, name))


def read_yaml(text: str, file: str, *, layer: int = 0) -> Node | None:
    """The tree of a YAML document, or None when it holds nothing.

    Raises:
        RecipeError: with the place of a syntax error, or of every duplicate key and foreign tag.
    """
    root = _compose(text, file)
    if root is None:
        return None
    builder = _Builder(file, layer)
    try:
        node = builder.build(root)
    except RecursionError:
        raise RecipeError(Location(file, 1, 1).problem("the recipe is nested too deeply")) from None
    if builder.problems:
        raise RecipeError(builder.problems)
    return node


def read_text(path: Path, file: str) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: it cannot be read or is not UTF-8; the place is that of the first wrong byte.
    """
    start = Location(file, 1, 1)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RecipeError(
            start.problem("there is no such file", remedy=f"looked in {path.parent.absolute()}")
        ) from None
    except IsADirectoryError:
        raise RecipeError(start.problem("expected a recipe file, found a directory")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(start.problem(f"cannot be read: {reason}")) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        problem = _at_end_of(before, file).problem("the file is not UTF-8 text", remedy="save it with that encoding")
        raise RecipeError(problem) from None


def node_of(value: Any, *, at: Location = Location(), layer: int = 0) -> Node:
    """The tree of a plain Python value, which has no places of its own."""
    content = value
    if isinstance(value, Mapping):
        content = {name: node_of(item, at=at, layer=layer) for name, item in value.items()}
    elif isinstance(value, (list, tuple)):
        content = [node_of(item, at=at, layer=layer) for item in value]
    return Node(content, at=at, key_at=at, layer=layer)


def merge(base: Node, over: Node) -> Node:
    """``over`` laid upon ``base``: mappings merge key by key at every depth, everything else is replaced.

    ``null`` takes a mapping away, which nothing else could: an empty one changes nothing.
    """
    if not (isinstance(base.content, dict) and isinstance(over.content, dict)):
        return over
    content = dict(base.content)
    for name, child in over.content.items():
        if child.content is None and name in content and isinstance(content[name].content, dict):
            del content[name]
        else:
            content[name] = merge(content[name], child) if name in content else child
    return attrs.evolve(over, content=content)


def _compose(text: str, file: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor defined twice is YAML; the later one counts
            return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Location(file, mark.line + 1, mark.column + 1) if mark else Location(file, 1, 1)
        raise RecipeError(at.problem(*_explained(error))) from None
    except ReaderError as error:
        at = _at_end_of(text[: error.position], file)
        raise RecipeError(at.problem(f"the character {error.character!r} is not allowed in YAML")) from None
    except RecursionError:
        raise RecipeError(Location(file, 1, 1).problem("the recipe is nested too deeply")) from None
    except Exception as error:  # noqa: BLE001 - whatever the parser stumbles over is a fault of the text
        raise RecipeError(Location(file, 1, 1).problem(f"this is not YAML: {error}")) from None


def _explained(error: Any) -> tuple[str, str, str]:
    """Message, key path (none yet) and remedy of a syntax error."""
    problem = error.problem or "syntax error"
    if "'\\t'" in problem:
        return "a tab cannot indent in YAML", "", "use spaces"
    message = f"this is not YAML: {problem}"
    if error.context and error.context_mark:
        message += f" ({error.context} that begins at line {error.context_mark.line + 1})"
    if "mapping values are not allowed" in problem:
        return message, "", "check the indentation, and put text that holds ': ' in quotes"
    if "cannot start any token" in problem:
        return message, "", "put the text in quotes"
    return message, "", ""


def _at_end_of(text: str, file: str) -> Location:
    lines = text.split("\n")
    return Location(file, len(lines), len(lines[-1]) + 1)


class _Builder:
    """Makes nodes out of ruamel's, and collects what is wrong with them."""

    def __init__(self, file: str, layer: int) -> None:
        self.file = file
        self.layer = layer
        self.problems: list[Problem] = []
        self.count = 0
        self.parents: list[int] = []

    def build(self, source: Any, key_at: Location | None = None) -> Node:
        at = self._at(source)
        self.count += 1
        if self.count > _MOST_NODES:
            raise RecipeError(at.problem(f"the recipe stands for more than {_MOST_NODES:,} values"))
        if id(source) in self.parents:
            self.problems.append(at.problem("an alias points to what contains it"))
            return Node(None, at, key_at or at, layer=self.layer)
        self.parents.append(id(source))
        try:
            content, text = self._content(source, at)
        finally:
            self.parents.pop()
        if content is None and text == "":  # nothing was written: point at the key, not at the next line
            at = key_at or at
        return Node(content, at, key_at or at, text, self.layer)

    def _content(self, source: Any, at: Location) -> tuple[Any, str | None]:
        kind = source.tag.removeprefix(_TAG)
        if kind == "map" and source.id == "mapping":
            return self._mapping(source), None
        if kind == "seq" and source.id == "sequence":
            return [self.build(item) for item in source.value], None
        if source.id == "scalar" and kind in _SCALARS:
            return _SCALARS[kind](source.value), source.value if source.style is None else None
        self.problems.append(at.problem(f"the tag {_shown_tag(source.tag)!r} is not allowed in a recipe"))
        return None, None

    def _mapping(self, source: Any) -> dict[Any, Node]:
        own: dict[Any, Node] = {}
        merged: dict[Any, Node] = {}
        for key_source, value_source in source.value:
            key_at = self._at(key_source)
            if key_source.tag == _TAG + "merge":
                for name, child in self._merged(value_source).items():
                    merged.setdefault(name, child)
                continue
            name = self._key(key_source, key_at)
            if name in own:
                first = own[name].key_at
                self.problems.append(
                    key_at.problem(f"the key {name!r} is given twice, first at {first.line}:{first.column}")
                )
                continue
            own[name] = self.build(value_source, key_at)
        return {**merged, **own}

    def _merged(self, source: Any) -> dict[Any, Node]:
        """What ``<<: *anchor`` or ``<<: [*one, *another]`` brings; the first wins."""
        found: dict[Any, Node] = {}
        for item in source.value if source.id == "sequence" else [source]:
            content = self.build(item).content
            if not isinstance(content, dict):
                self.problems.append(self._at(item).problem("expected a mapping to merge with '<<'"))
                continue
            for name, child in content.items():
                found.setdefault(name, child)
        return found

    def _key(self, source: Any, at: Location) -> Any:
        kind = source.tag.removeprefix(_TAG)
        if source.id != "scalar" or kind not in _SCALARS or kind == "null":
            self.problems.append(at.problem("a key must be text"))
            return object()  # like no other key, so that what follows is checked too
        return source.value if kind in ("str", "value", "timestamp") else _SCALARS[kind](source.value)

    def _at(self, source: Any) -> Location:
        return Location(self.file, source.start_mark.line + 1, source.start_mark.column + 1)


def _number(text: str) -> Any:
    lowered = text.lower().lstrip("+-")
    try:
        if lowered[:2] in ("0x", "0o", "0b"):
            return int(text.replace("_", ""), 0)
        return parse_number(text, whole=not any(mark in lowered for mark in (".", "e", "inf", "nan")))
    except ValueError:
        return text


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() in ("true", "yes", "on"),
    "int": _number,
    "float": _number,
    "str": str,
    "value": str,
    "timestamp": str,
}


def _shown_tag(tag: str) -> str:
    return tag.replace(_TAG, "!!")
