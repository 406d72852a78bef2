"""Keys in the wrong section: which sections of a recipe have a key that stands where nobody knows it."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, get_args

from arctic_training.config import ComponentConfig, Config, FreeConfig, keys_of
from arctic_training.recipe import Recipe, dotted

if TYPE_CHECKING:
    from arctic_training.structuring import Choice

MOST_PLACES = 3
"""Sections that are named; a key of more of them is too common to be meant."""


class _Chooser(Protocol):
    recipe: Recipe
    contributed: Mapping[str, type[Config]]

    def choose(self, config_class: type[ComponentConfig], name: str, path: tuple) -> Choice: ...


def found_elsewhere(sections: _Chooser, trainer_config: type[Config], path: tuple) -> str:
    """``did you mean 'optimizer.learning_rate'?`` for a key that another section has, or at the top nearly has.

    Args:
        sections: who chooses the class of each section.
        trainer_config: the class of the top level.
        path: where the key stands.
    """
    *own, name = path
    if not isinstance(name, str):
        return ""
    keys = {place: names for place, names in _sections(sections, trainer_config) if place != tuple(own)}
    places = [(*place, name) for place, names in keys.items() if name in names]
    if not places and not own:  # below the top, a key that is nearly another section's is rarely meant
        known = {near: (*place, near) for place, names in reversed(keys.items()) for near in names}
        places = [known[near] for near in difflib.get_close_matches(name, known, n=1, cutoff=0.8)]
    # A section inside one that has the key too is not what was meant: optimizer, not optimizer.groups.0.
    outer = {place[:-1] for place in places}
    places = [place for place in places if not any(place[:end] in outer for end in range(1, len(place) - 1))]
    if not places or len(places) > (1 if own else MOST_PLACES):
        return ""
    return f"did you mean {' or '.join(repr(dotted(place)) for place in places)}?"


def _sections(sections: _Chooser, trainer_config: type[Config]) -> Iterator[tuple[tuple, set[str]]]:
    """The path of each section, the top level first, and the names that its keys go by."""
    data = sections.recipe.data
    yield from _below(sections, trainer_config, data, ())
    for name, section in sections.contributed.items():
        if issubclass(section, FreeConfig):
            yield (name,), set(section.known_keys())
        else:
            yield from _below(sections, section, data.get(name), (name,))


def _below(sections: _Chooser, config_class: type[Config], value: Any, path: tuple) -> Iterator[tuple[tuple, set[str]]]:
    infos = keys_of(config_class)
    yield path, {name for info in infos for name in (info.name, *info.aliases)}
    for info in infos:
        inner = value.get(info.name) if isinstance(value, Mapping) else None
        here: tuple = (*path, info.name)
        section = info.type
        if not _is_section(section):
            section = next((each for each in get_args(section) if _is_section(each)), None)
            if section is not None and isinstance(inner, list):
                here, inner = (*here, 0), (inner or [None])[0]
        if section is None:
            continue
        if issubclass(section, ComponentConfig):
            given = inner.get("type", "") if isinstance(inner, Mapping) else ""
            try:
                section = sections.choose(section, given, here).config_class
            except (ValueError, TypeError):  # it is refused where it stands
                continue
        yield from _below(sections, section, inner, here)


def _is_section(expected: Any) -> bool:
    return isinstance(expected, type) and issubclass(expected, Config)
