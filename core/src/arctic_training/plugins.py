"""The plugin manager: one is made for each run, by a function, and holds its plugins, their order and their provenance.

Order of registration: core's builtins, installed plugins sorted by name, what the recipe names, the recipe's code. Of
two implementations of a hook the one registered last runs first; ``plugins.order`` in the recipe overrules that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from arctic_training.discovery import GROUP, Candidate, discover, named_module
from arctic_training.errors import PluginError
from arctic_training.hook_calls import Carrier, HookCalls
from arctic_training.provenance import (
    Broken,
    PluginInfo,
    describe_fault,
    first_line,
    is_named,
    location_of_fault,
)
from arctic_training.recipe_plugins import absent_plugins, doubtful_blocks, read_recipe_plugins, unmet_requirements
from arctic_training.registry import Components, Registry
from arctic_training.signatures import Implementation, implementations_of

CORE = "core"
_REGISTER_COMPONENTS = "arctic_register_components"


def create_plugin_manager(
    *,
    block: Iterable[str] = (),
    only: Iterable[str] | None = None,
    autoload: bool = True,
    environment: Mapping[str, str] = os.environ,
    recipe_plugins: Any = None,
    group: str = GROUP,
) -> PluginManager:
    """A manager with core's builtins and the installed plugins. One that fails to load is kept in ``broken``.

    Args:
        block: names of plugins or distributions that are not to be imported.
        only: names of the only plugins to load; ``ARCTIC_PLUGINS`` when it is None.
        autoload: whether to load plugins that nobody names; ``ARCTIC_DISABLE_PLUGIN_AUTOLOAD`` turns it off.
        environment: where the ``ARCTIC_`` variables are looked up.
        recipe_plugins: the recipe's ``plugins`` section, so that what it blocks is never imported.
        group: the group of entry points; core's builtins belong to ``arctic`` alone.
    """
    from arctic_training import __version__, builtin, hookspecs

    settings = read_recipe_plugins(recipe_plugins)
    named = environment.get("ARCTIC_PLUGINS") if only is None else None
    if named:
        only = [name.strip() for name in named.split(",") if name.strip()]
    if _is_set(environment.get("ARCTIC_DISABLE_PLUGIN_AUTOLOAD")):
        autoload = False
    manager = PluginManager(hookspecs, block=(*block, *settings.block))
    if _is_set(environment.get("ARCTIC_TRACE_PLUGINS")):
        manager.trace_to(sys.stderr)
    if group == GROUP:
        manager.register(builtin, CORE, distribution="arctic-core", version=__version__, where=builtin.__name__)
    manager.load_installed(group, only=only, autoload=autoload)
    if recipe_plugins:
        manager.load_recipe_plugins(recipe_plugins)
    return manager


@attrs.frozen(eq=False)
class _Record:
    info: PluginInfo
    plugin: Any
    carrier: Carrier


class PluginManager(HookCalls):
    """The plugins of one run: found, blocked, loaded, put in order. ``registry`` holds their components."""

    def __init__(self, hookspecs: Any, *, block: Iterable[str] = ()) -> None:
        super().__init__(hookspecs)
        self.registry = Registry()
        self._block = list(block)
        self._order: tuple[str, ...] = ()
        self._infos: list[PluginInfo] = []
        self._records: dict[str, _Record] = {}
        self._candidates: list[Candidate] = []
        self._broken: list[Broken] = []

    # ---- what there is

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every plugin in the order of registration, blocked and broken ones among them."""
        return list(self._infos)

    @property
    def broken(self) -> list[Broken]:
        """What a run stops on: plugins that fail, names offered twice, demands of the recipe that are not met."""
        return [*self._broken, *self.registry.ambiguities()]

    def fingerprint(self) -> list[str]:
        """``name distribution version`` of each active plugin in effective order, to compare between ranks and runs."""
        ordered = [record.info for record in self._records.values()]
        others = [info for info in self._infos if info.status == "active" and info not in ordered]
        return [" ".join(filter(None, (info.name, info.distribution, info.version))) for info in ordered + others]

    # ---- registering

    def register(
        self, plugin: Any, name: str, *, distribution: str = "", version: str = "", where: str = ""
    ) -> PluginInfo:
        """Register a module or an instance whose functions are marked with ``hookimpl``.

        Raises:
            PluginError: the name or the object is registered already, the plugin is a class, or one of its hooks or
                components is refused. Nothing of it remains registered then.
        """
        info = self._declared_by(name) or PluginInfo(name, distribution, version, where=where or _module_of(plugin))
        self._admit(plugin, info)
        if info not in self._infos:
            self._infos.append(info)
        return info

    def unregister(self, plugin: Any) -> None:
        """Take back what ``register`` did for this object; nothing when it is not registered."""
        for record in list(self._records.values()):
            if record.plugin is plugin:
                self._forget(record.info)
                self._infos.remove(record.info)

    def register_classes(self, classes: Iterable[type], origin: str) -> PluginInfo:
        """Register the component classes that a recipe's own code declares.

        Args:
            classes: the classes, abstract ones passed over. One without a ``name`` of its own goes by its class name.
            origin: where they are declared, such as ``train.py``; the name under which they are listed.

        Raises:
            PluginError: two of them go by one name.
        """
        info = self._declared_by(origin)
        if info is None:
            info = PluginInfo(origin)
            self._infos.append(info)
        self.registry.register_classes(classes, info)
        return info

    def load_installed(self, group: str = GROUP, *, only: Iterable[str] | None = None, autoload: bool = True) -> None:
        """Load the plugins of installed distributions that are not blocked, by name; failures go to ``broken``."""
        only = None if only is None else list(only)
        self._candidates = discover(group, block=self._block)
        for candidate in self._candidates:
            if candidate.blocked_by(self._block):
                candidate.info.status = "blocked"
                self._infos.append(candidate.info)
            elif candidate.blocked_by(only) if only is not None else autoload:
                self._load(candidate)
        self._broken += absent_plugins(only or (), self._known(), "ARCTIC_PLUGINS")
        self._broken += doubtful_blocks(self._block, self._known())

    def load_recipe_plugins(self, section: Any) -> None:
        """Do what the recipe's ``plugins`` section says. What cannot be met goes to ``broken``.

        Args:
            section: ``{require, block, order, use}``. What to use is a module by its import name, or an installed
                plugin that was not loaded yet by its own.
        """
        settings = read_recipe_plugins(section)
        late = [name for name in settings.block if name not in self._block]
        self._block += late
        self._broken += doubtful_blocks(late, self._known())
        self._unload(late)
        for name in settings.use:
            self._use(name)
        self._order = settings.order
        self._broken += absent_plugins(self._order, self._known(), "plugins.order")
        self._apply_order()
        self._broken += unmet_requirements(settings.require, self._infos)

    def refuse_broken(self) -> None:
        """Stop a run that would go on without a plugin or with the wrong one.

        Raises:
            PluginError: naming everything in ``broken`` and what to do about it.
        """
        errors = [broken.error for broken in self.broken]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise PluginError("\n".join([f"{len(errors)} faults of plugins", *map(str, errors)]))

    # ---- helpers

    def _admit(self, plugin: Any, info: PluginInfo) -> None:
        """Check a plugin and hand its hooks to pluggy and its components to the registry, or leave no trace of it."""
        self._refuse_second(plugin, info)
        implementations = implementations_of(plugin, info, self.specifications)
        try:
            for implementation in implementations:
                if implementation.hook == _REGISTER_COMPONENTS:
                    _register_components(implementation, self.registry, info)
            carrier = self._carry(implementations, info)
        except PluginError:
            self.registry.discard(info)
            raise
        info.hooks = sorted({implementation.hook for implementation in implementations})
        self._records[info.name] = _Record(info, plugin, carrier)
        self._apply_order()

    def _declared_by(self, origin: str) -> PluginInfo | None:
        """What is listed for code of the recipe's own, which may offer classes and hooks and has no distribution."""
        return next((info for info in self._infos if info.name == origin and not info.distribution), None)

    def _refuse_second(self, plugin: Any, info: PluginInfo) -> None:
        for record in self._records.values():
            if record.info.name == info.name or record.plugin is plugin:
                same = "under that name" if record.info.name == info.name else "already, the same object"
                raise PluginError(
                    f"{info} cannot be registered: {record.info} is registered {same}",
                    where=info.where or None,
                    remedy=f"register one of them, or block one by the name of its distribution; or {info.repair}",
                )

    def _load(self, candidate: Candidate) -> None:
        """Load a plugin; whatever is wrong with it is kept, so that the others go on."""
        info = candidate.info
        self._infos.append(info)
        try:
            self._admit_found(candidate.load(), info)
        except PluginError as error:
            info.status, info.error = "broken", first_line(error.message)
            self._broken.append(Broken(info.name, info.distribution, info.version, error))

    def _admit_found(self, plugin: Any, info: PluginInfo) -> None:
        try:
            self._admit(plugin, info)
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{info} cannot be registered: {describe_fault(error)}",
                where=location_of_fault(error) or info.where,
                remedy=info.repair,
            ) from error
        if not info.hooks:
            self._forget(info)
            remedy = f"mark its functions `@hookimpl`; or {info.repair}"
            raise PluginError(f"{info} implements no hook", where=info.where, remedy=remedy)

    def _forget(self, info: PluginInfo) -> None:
        record = self._records.pop(info.name)
        self._drop(record.carrier)
        self.registry.discard(info)
        info.hooks = []

    def _unload(self, names: Sequence[str]) -> None:
        """Take back plugins that are blocked after they were loaded, and load what only their name kept out."""
        for info in self._infos:
            if info.name != CORE and is_named(info, names):
                if info.name in self._records and info.status == "active":
                    self._forget(info)
                self._acquit(info)
                info.status = "blocked"
        for candidate in self._candidates:
            if (
                candidate.rivals
                and candidate.info.status == "broken"
                and all(r.status == "blocked" for r in candidate.rivals)
            ):
                self._acquit(candidate.info)
                self._infos.remove(candidate.info)
                self._load(attrs.evolve(candidate, rivals=()))

    def _acquit(self, info: PluginInfo) -> None:
        same = (info.name, info.distribution)
        self._broken = [broken for broken in self._broken if (broken.name, broken.distribution) != same]
        info.status, info.error = "active", ""

    def _use(self, name: str) -> None:
        if any(is_named(info, [name]) for info in self._infos):
            return
        installed = next((candidate for candidate in self._candidates if candidate.blocked_by([name])), None)
        self._load(installed or named_module(name))

    def _apply_order(self) -> None:
        """Register all again, the ordered ones last and in reverse, since the one registered last runs first."""
        if not self._order:
            return
        records = list(self._records.values())
        ordered = [record for name in reversed(self._order) for record in records if is_named(record.info, [name])]
        rest = [record for record in records if record not in ordered]
        self._records = {record.info.name: record for record in [*rest, *ordered]}
        self._rearrange({name: record.carrier for name, record in self._records.items()})

    def _known(self) -> list[PluginInfo]:
        loaded = {id(info) for info in self._infos}
        return [*self._infos, *(each.info for each in self._candidates if id(each.info) not in loaded)]


def _register_components(implementation: Implementation, registry: Registry, info: PluginInfo) -> None:
    try:
        arguments = [Components(registry, info)] if implementation.takes_arguments else []
        implementation.function(*arguments)
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{info}: {_REGISTER_COMPONENTS} fails: {describe_fault(error)}",
            where=location_of_fault(error) or implementation.where,
            remedy=info.repair,
        ) from error


def _module_of(plugin: Any) -> str:
    name = getattr(plugin, "__name__", None) if type(plugin) is type(sys) else type(plugin).__module__
    return name if isinstance(name, str) else ""


def _is_set(value: str | None) -> bool:
    return (value or "").strip().lower() not in ("", "0", "false", "no", "off")
