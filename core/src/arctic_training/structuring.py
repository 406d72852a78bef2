"""Plain values into config classes: every key known, every value of its type, every problem with its place.

cattrs chooses what to do by type; what is done is written here, because a problem must not end the structuring: it is
noted with its path, and the next key is looked at.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, Union, get_args, get_origin

import attrs
import cattrs

from arctic_training.config import ComponentConfig, Config, KeyInfo, Place, annotate, default_value, keys_of
from arctic_training.errors import Problem, RecipeError
from arctic_training.human_numbers import parse_number
from arctic_training.overrides import OVERRIDE_LAYER, SHORTHAND
from arctic_training.recipe import Recipe, dotted
from arctic_training.wording import described, found, listed, nearest, outside, takes_shape

INVALID: Any = type("Invalid", (), {"__repr__": lambda self: "INVALID", "__bool__": lambda self: False})()
"""Stands for a value that could not be structured; its problem has been noted."""


@attrs.frozen
class Choice:
    """The classes that a section's ``type`` chose."""

    config_class: type[ComponentConfig]
    component: type | None = None
    name: str = ""


class Sections(Protocol):
    """Who decides which class a section with a ``type`` is structured into."""

    def place(self, config_class: type[ComponentConfig], path: tuple) -> Place:
        """What ``type`` may be at ``path``."""

    def choose(self, config_class: type[ComponentConfig], name: str, path: tuple) -> Choice:
        """The classes for ``type: name``; an empty name means that the recipe gives none. Raises ``ValueError``."""

    def unknown_key(self, path: tuple) -> str:
        """What to say about a key that the section does not have, when somebody else's has it; else empty."""

    def key_elsewhere(self, path: tuple) -> str:
        """What to say about it when another section of the same recipe has it; else empty."""


class OwnClass:
    """Structures each section into the class that its annotation names."""

    def place(self, config_class: type[ComponentConfig], path: tuple) -> Place:
        """No names are registered here."""
        return Place(key=_section_name(path))

    def choose(self, config_class: type[ComponentConfig], name: str, path: tuple) -> Choice:
        """The annotated class, whatever the ``type``."""
        return Choice(config_class, name=name)

    def unknown_key(self, path: tuple) -> str:
        """Nothing is known of other sections."""
        return ""

    def key_elsewhere(self, path: tuple) -> str:
        """Nothing is known of other sections."""
        return ""


_NONE: Mapping[str, Any] = types.MappingProxyType({})


class Structurer:
    """Structures the values of one recipe.

    Attributes:
        problems: what is wrong, so far.
        warnings: what is right and still worth a word, such as deprecated keys.
    """

    def __init__(self, recipe: Recipe, sections: Sections | None = None) -> None:
        self.recipe = recipe
        self.sections = sections or OwnClass()
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._path: tuple = ()
        self._converter = cattrs.Converter()
        self._converter.register_structure_hook_factory(
            lambda expected: self._hook_of(expected) is not None, self._hook_of
        )

    def structure(self, value: Any, expected: Any, path: tuple = ()) -> Any:
        """``value``, which stands at ``path``, as the type ``expected``; ``INVALID`` after noting what is wrong."""
        with self._at(path):
            if own := self._hook_of(expected):
                return own(value, expected)
            try:  # a type that cattrs knows by itself, such as an enumeration
                return self._converter.structure(value, expected)
            except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
                return self.refuse(f"expected {described(expected)}, found {found(value)} ({error})")

    def refuse(
        self, message: str, *, path: tuple | None = None, of: Literal["key", "value"] = "value", remedy: str = ""
    ) -> Any:
        """Note a problem, at the value being structured unless ``path`` says otherwise."""
        self.problems.append(self.recipe.problem(self._path if path is None else path, message, of=of, remedy=remedy))
        return INVALID

    def finish(self, *, is_complete: bool = False) -> None:
        """Raise all problems that were noted.

        Args:
            is_complete: whether nothing is left to check.
        """
        if self.problems:
            raise RecipeError(self.problems, is_complete=is_complete)

    # Called through cattrs, by type.

    def number(self, value: Any, expected: type) -> Any:
        try:
            return parse_number(value, whole=expected is int)
        except ValueError as error:
            if isinstance(value, (str, int, float)) and not isinstance(value, bool):
                return self.refuse(str(error))
            return self._mismatch(value, expected)

    def boolean(self, value: Any, expected: type) -> Any:
        return value if isinstance(value, bool) else self._mismatch(value, expected)

    def text(self, value: Any, expected: type) -> Any:
        value = self._typed_text(value)
        if isinstance(value, (str, Path)) and not (expected is str and isinstance(value, Path)):
            return expected(value)
        remedy = "put it in quotes" if isinstance(value, (int, float)) else ""
        return self._mismatch(value, expected, remedy)

    def nothing(self, value: Any, expected: Any) -> Any:
        return None if value is None else self._mismatch(value, expected)

    def literal(self, value: Any, expected: Any) -> Any:
        choices = get_args(expected)
        for candidate in (value, self._typed_text(value)):
            for choice in choices:
                if candidate == choice and type(candidate) is type(choice):
                    return choice
        near = nearest(value, [choice for choice in choices if isinstance(choice, str)])
        return self.refuse(f"expected {described(expected)}, found {found(value)}", remedy=near)

    def union(self, value: Any, expected: Any) -> Any:
        """The first member that takes the value; text last, because in YAML ``1k`` and ``10%`` are text too."""
        members = sorted(get_args(expected), key=lambda member: member in (str, Path))
        if value is None and type(None) in members:
            return None
        before = len(self.problems), len(self.warnings)
        nested: list[Problem] | None = None
        for member in members:
            result = self.structure(value, member, self._path)
            if result is not INVALID:
                return result
            problems = self.problems[before[0] :]
            del self.problems[before[0] :], self.warnings[before[1] :]
            if takes_shape(member, value):
                nested = problems
        if nested is None:
            choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
            return self._mismatch(value, expected, nearest(value, [each for each in choices if isinstance(each, str)]))
        self.problems += nested
        return INVALID

    def sequence(self, value: Any, expected: Any) -> Any:
        if isinstance(value, Mapping) and _may_stand_alone(expected):
            item = self.structure(value, get_args(expected)[0], self._path)
            return INVALID if item is INVALID else [item]
        if value is None and (get_origin(expected) or expected) is list:  # a key with every item commented out
            value = []
        if not isinstance(value, (list, tuple)):
            return self._mismatch(value, expected)
        items = get_args(expected) or (Any,)
        fixed = get_origin(expected) is tuple and items[-1] is not Ellipsis
        if fixed and len(value) != len(items):
            return self.refuse(f"expected {described(expected)}, found a list of {len(value)}")
        item_types = items if fixed else (items[0],) * len(value)
        pairs = enumerate(zip(value, item_types, strict=True))
        result = [self.structure(item, item_type, (*self._path, index)) for index, (item, item_type) in pairs]
        if any(item is INVALID for item in result):
            return INVALID
        return tuple(result) if (get_origin(expected) or expected) is tuple else result

    def mapping(self, value: Any, expected: Any) -> Any:
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            return self._mismatch(value, expected)
        if SHORTHAND in value and len(value) > 1:
            return self._refuse_shorthand(value)
        key_type, item_type = get_args(expected) or (Any, Any)
        result = {}
        for name, item in value.items():
            key = self._mapping_key(name, key_type)
            result[key] = self.structure(item, item_type, (*self._path, name))
        return INVALID if any(item is INVALID for pair in result.items() for item in pair) else result

    def section(self, value: Any, expected: type[Config]) -> Any:
        if isinstance(value, expected):
            return value
        if issubclass(expected, ComponentConfig):
            return self._component_section(value, expected)
        if value is None:  # `wandb:` with every key commented out
            value = {}
        if not isinstance(value, Mapping):
            return self._mismatch(value, expected)
        if SHORTHAND in value and len(value) > 1:
            return self._refuse_shorthand(value)
        return self.keys(value, expected)

    def keys(
        self,
        mapping: Mapping,
        config_class: type[Config],
        defaults: Mapping[str, Any] = _NONE,
        also: Iterable[str] = (),
    ) -> Any:
        """A section from its keys.

        Args:
            mapping: the keys that the recipe gives.
            config_class: the class that declares them.
            defaults: values that replace the defaults of the class.
            also: names that are looked after elsewhere, worth suggesting for a misspelt key.
        """
        infos = {info.name: info for info in keys_of(config_class)}
        canonical = {alias: info.name for info in infos.values() for alias in (info.name, *info.aliases)}
        before = len(self.problems)
        given: dict[str, str] = {}
        for name in mapping:
            if name not in canonical:
                self._refuse_unknown(name, (*canonical, *also))
            elif self._wins(name, canonical[name], given):
                given[canonical[name]] = name
        values = {}
        for name, info in infos.items():
            if name in given:
                values[name] = self._given(mapping[given[name]], info, (*self._path, given[name]))
            else:
                values[name] = defaults[name] if name in defaults else self._default(info)
        if len(self.problems) > before or any(value is INVALID for value in values.values()):
            return INVALID
        config = config_class(**values)
        annotate(config, given=frozenset(given), spelling=given, section_path=self._path)
        self._check(config, given)
        return config

    # Helpers.

    def _component_section(self, value: Any, expected: type[ComponentConfig]) -> Any:
        place = self.sections.place(expected, self._path)
        mapping = self._as_mapping(value, expected, place)
        if mapping is INVALID:
            return INVALID
        name = mapping.get("type", "")
        if not isinstance(name, str) or ("type" in mapping and not name):
            return self.refuse(f"expected text, found {found(name)}", path=(*self._path, "type"))
        try:
            choice = self.sections.choose(expected, name, self._path)
        except ValueError as error:
            return self.refuse(str(error), path=(*self._path, "type"))
        defaults = {"type": choice.name, **choice.config_class.defaults_at(place)}
        config = self.keys(mapping, choice.config_class, defaults)
        if config is not INVALID:
            annotate(config, component=choice.component)
            config.type = choice.name
        return config

    def _as_mapping(self, value: Any, expected: type[ComponentConfig], place: Place) -> Any:
        """The section as a mapping, with a shorthand such as ``name:split`` written out."""
        if value is None:
            return {}
        rest: Mapping = {}
        if isinstance(value, Mapping):
            if SHORTHAND not in value:
                return value
            rest = {name: item for name, item in value.items() if name != SHORTHAND}
            value = value[SHORTHAND]
        try:
            return {**expected.from_shorthand(value, place), **rest}
        except ValueError as error:
            named = isinstance(value, str) and value in place.names
            return self.refuse(f"{error}, found {found(value)}", remedy=f"write {{type: {value}}}" if named else "")

    def _wins(self, name: str, canonical: str, given: Mapping[str, str]) -> bool:
        """Whether ``name`` counts, when the section may hold it under an alias too."""
        if canonical not in given:
            return True
        first, second = (*self._path, given[canonical]), (*self._path, name)
        layers = [node.layer if (node := self.recipe.node(path)) else 0 for path in (first, second)]
        if layers[0] == layers[1]:
            self.refuse(
                f"{name!r} and {given[canonical]!r} are the same key, and both are given", path=second, of="key"
            )
        return layers[1] > layers[0]

    def _given(self, value: Any, info: KeyInfo, path: tuple) -> Any:
        if info.deprecated:
            at = self.recipe.problem(path, f"deprecated: {info.deprecated}", of="key")
            self.warnings.append(str(at))
        result = self.structure(value, info.type, path)
        if isinstance(result, (list, tuple)):
            for place, number in enumerate(result):
                if bounds := outside(number, info.bounds):
                    return self.refuse(f"expected numbers {bounds}, found {found(number)}", path=(*path, place))
        elif bounds := outside(result, info.bounds):
            return self.refuse(
                f"expected {described(info.type, bounded=True)} {bounds}, found {found(value)}", path=path
            )
        return result

    def _default(self, info: KeyInfo) -> Any:
        path = (*self._path, info.name)
        # A section that the recipe leaves out has its own defaults, those of the component that is taken by default.
        if isinstance(info.type, type) and issubclass(info.type, Config):
            return self.structure(None, info.type, path)
        if info.required:
            return self.refuse(f"the key {info.name!r} is required ({described(info.type)})", path=path, of="key")
        return default_value(info)

    def _check(self, config: Config, spelling: Mapping[str, str]) -> None:
        for name, message in config.check():
            self.refuse(message, path=self._spelt(name, spelling), of="key")
        for name, message in config.doubts():
            self.warnings.append(str(self.recipe.problem(self._spelt(name, spelling), message, of="key")))

    def _spelt(self, name: str, spelling: Mapping[str, str]) -> tuple:
        """The path of a key of the section being structured, as the recipe writes it."""
        return (*self._path, *(spelling.get(part, part) for part in name.split(".")))

    def _refuse_unknown(self, name: Any, known: Iterable[str]) -> None:
        path = (*self._path, name)
        remedy = (
            self.sections.unknown_key(path)
            or nearest(name, known, cutoff=0.8)
            or self.sections.key_elsewhere(path)
            or nearest(name, known)
            or listed(known)
        )
        self.refuse("unknown key", path=path, of="key", remedy=remedy)

    def _refuse_shorthand(self, value: Mapping) -> Any:
        rest = next(name for name in value if name != SHORTHAND)
        return self.refuse(
            f"cannot be set: {dotted(self._path)!r} holds {found(value[SHORTHAND])}, not a mapping",
            path=(*self._path, rest),
        )

    def _mapping_key(self, name: Any, expected: Any) -> Any:
        path = (*self._path, name)
        if expected is not str:
            return self.structure(name, expected, path)
        if isinstance(name, str):
            return name
        return self.refuse(
            f"expected text for a key, found {found(name)}", path=path, of="key", remedy="put it in quotes"
        )

    def _mismatch(self, value: Any, expected: Any, remedy: str = "") -> Any:
        if isinstance(value, Mapping) and SHORTHAND in value and len(value) > 1:
            return self._refuse_shorthand(value)
        return self.refuse(f"expected {described(expected)}, found {found(value)}", remedy=remedy)

    def _typed_text(self, value: Any) -> Any:
        """The characters of a value that came from the command line: ``run_dir=1e3`` is the text 1e3."""
        node = self.recipe.node(self._path)
        return node.text if node and node.layer >= OVERRIDE_LAYER and node.text is not None else value

    def _hook_of(self, expected: Any) -> Any:
        """What structures a type; None leaves it to cattrs."""
        if expected is Any:
            return lambda value, _: value
        if isinstance(expected, type) and issubclass(expected, Config):
            return self.section
        method = _METHODS.get(expected) or _METHODS.get(get_origin(expected) or expected)
        return getattr(self, method) if method else None

    @contextmanager
    def _at(self, path: tuple) -> Iterator[None]:
        outer, self._path = self._path, path
        try:
            yield
        finally:
            self._path = outer


def _section_name(path: tuple) -> str:
    return next((name for name in reversed(path) if isinstance(name, str)), "")


_METHODS: dict[Any, str] = {
    int: "number",
    float: "number",
    bool: "boolean",
    str: "text",
    Path: "text",
    type(None): "nothing",
    Literal: "literal",
    Union: "union",
    types.UnionType: "union",
    list: "sequence",
    tuple: "sequence",
    dict: "mapping",
    Mapping: "mapping",
}


def _may_stand_alone(expected: Any) -> bool:
    """Whether a list of sections may be given as the one section that it holds."""
    items = get_args(expected)
    return (
        bool(items)
        and isinstance(items[0], type)
        and issubclass(items[0], ComponentConfig)
        and items[0].may_stand_alone
    )
