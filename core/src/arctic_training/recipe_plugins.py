"""What a recipe says about plugins: ``plugins: {require, block, order, use}``.

Read leniently here, because plugins are loaded before the recipe is checked: a value of the wrong shape is left to the
structuring of the recipe, which reports it with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from arctic_training.errors import PluginError
from arctic_training.provenance import Broken, PluginInfo, did_you_mean, is_named, nearest, normalized


@attrs.frozen
class RecipePlugins:
    """The recipe's demands on plugins."""

    require: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    use: tuple[str, ...] = ()


def read_recipe_plugins(section: Any) -> RecipePlugins:
    """The recipe's ``plugins`` section, as far as it has the right shape."""
    if not isinstance(section, Mapping):
        return RecipePlugins()
    return RecipePlugins(**{name: _texts(section.get(name)) for name in ("require", "block", "order", "use")})


def unmet_requirements(required: Iterable[str], plugins: Sequence[PluginInfo]) -> list[Broken]:
    """One for each requirement, such as ``sft>=0.1``, that no active plugin or its distribution meets."""
    if not (required := list(required)):
        return []
    from packaging.requirements import InvalidRequirement, Requirement  # 15 ms that only such a recipe pays

    unmet: list[Broken | None] = []
    for text in required:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            unmet.append(_unmet(text, None, "is no requirement", 'write a name and versions, such as "sft>=0.1"'))
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            unmet.append(_check(text, requirement, plugins))
    return [broken for broken in unmet if broken is not None]


def absent_plugins(names: Iterable[str], plugins: Sequence[PluginInfo], source: str) -> list[Broken]:
    """One for each name in ``source`` that fits no plugin, loaded or not."""
    return [
        Broken(
            name,
            "",
            "",
            PluginError(
                f"{source} names the plugin {name!r}, which is not installed{did_you_mean(name, _spellings(plugins))}",
                remedy=f"install the distribution that brings it, or take it out of {source}",
            ),
        )
        for name in names
        if not any(is_named(plugin, [name]) for plugin in plugins)
    ]


def doubtful_blocks(names: Iterable[str], plugins: Sequence[PluginInfo]) -> list[Broken]:
    """Blocked names that cannot be meant: core's, and one that fits no plugin and is like one.

    A name that is like none is fine: the plugin that somebody else's machine has to do without is absent from this one.
    """
    doubtful = []
    for name in names:
        match = (
            ""
            if any(is_named(plugin, [name]) for plugin in plugins)
            else nearest(name, _spellings(plugins), cutoff=0.8)
        )
        if normalized(name) in ("core", "arctic-core"):
            problem = "the plugin 'core' (arctic-core) cannot be blocked: it holds the last answer to every hook"
        elif match:
            problem = f"the plugin {name!r} is to be blocked and is not installed; did you mean {match!r}?"
        else:
            continue
        error = PluginError(problem, remedy=f"correct `-p no:{name}`, or plugins.block in the recipe")
        doubtful.append(Broken(name, "", "", error))
    return doubtful


def _spellings(plugins: Iterable[PluginInfo]) -> list[str]:
    return [name for plugin in plugins for name in (plugin.name, plugin.distribution) if name]


def _check(text: str, requirement: Any, plugins: Sequence[PluginInfo]) -> Broken | None:
    found = [plugin for plugin in plugins if is_named(plugin, [requirement.name])]
    active = [plugin for plugin in found if plugin.status == "active"]
    if not found:
        hint = did_you_mean(requirement.name, _spellings(plugins))
        problem = f"is not met: no plugin of that name is installed{hint}"
        return _unmet(text, None, problem, "install the distribution that brings it")
    if not active:
        return _unmet(text, found[0], f"is not met: {found[0]} is {found[0].status}", "see `arctic plugins`")
    plugin = active[0]
    if not requirement.specifier:
        return None
    if not plugin.version:
        return _unmet(text, plugin, f"is not met: {plugin} states no version", "require it without one")
    if requirement.specifier.contains(plugin.version, prereleases=True):
        return None
    remedy = f'pip install "{plugin.distribution}{requirement.specifier}"'
    return _unmet(text, plugin, f"is not met: {plugin} is installed", remedy)


def _unmet(text: str, plugin: PluginInfo | None, problem: str, remedy: str) -> Broken:
    error = PluginError(
        f"the recipe requires the plugin {text!r}, which {problem}",
        where="plugins.require",
        remedy=f"{remedy}, or take it out of the recipe's plugins.require",
    )
    if plugin is None:
        return Broken(text, "", "", error)
    return Broken(plugin.name, plugin.distribution, plugin.version, error)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return tuple(item for item in value if isinstance(item, str) and item)
    return ()
