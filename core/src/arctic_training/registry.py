"""Components by kind and name: the registrar that a plugin fills, the registry in which a recipe's ``type`` is found.

A target is text, ``"package.module:Class"``, and is imported when a recipe selects it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import attrs

from arctic_training.errors import PluginError
from arctic_training.provenance import (
    Broken,
    PluginInfo,
    describe_fault,
    did_you_mean,
    location_of_fault,
    normalized,
)

KINDS = (
    "trainer",
    "tokenizer",
    "model",
    "data_source",
    "data",
    "loss",
    "optimizer",
    "scheduler",
    "engine",
    "checkpoint",
    "callback",
    "launcher",
)


class Components:
    """What a plugin registers its components with: one method a kind, each taking a name and a target.

    The name is what a recipe's ``type`` says. The target is text, ``"package.module:Class"``, or a class.
    """

    def __init__(self, registry: Registry, plugin: PluginInfo) -> None:
        self._registry = registry
        self._plugin = plugin

    def trainer(self, name: str, target: str | type) -> None:
        """Offer a trainer."""
        self._registry.add("trainer", name, target, self._plugin)

    def tokenizer(self, name: str, target: str | type) -> None:
        """Offer a tokenizer factory."""
        self._registry.add("tokenizer", name, target, self._plugin)

    def model(self, name: str, target: str | type) -> None:
        """Offer a model factory."""
        self._registry.add("model", name, target, self._plugin)

    def data_source(self, name: str, target: str | type) -> None:
        """Offer a data source: where rows come from."""
        self._registry.add("data_source", name, target, self._plugin)

    def data(self, name: str, target: str | type) -> None:
        """Offer a data factory: what becomes of rows."""
        self._registry.add("data", name, target, self._plugin)

    def loss(self, name: str, target: str | type) -> None:
        """Offer a loss factory."""
        self._registry.add("loss", name, target, self._plugin)

    def optimizer(self, name: str, target: str | type) -> None:
        """Offer an optimizer factory."""
        self._registry.add("optimizer", name, target, self._plugin)

    def scheduler(self, name: str, target: str | type) -> None:
        """Offer a scheduler factory."""
        self._registry.add("scheduler", name, target, self._plugin)

    def engine(self, name: str, target: str | type) -> None:
        """Offer an engine."""
        self._registry.add("engine", name, target, self._plugin)

    def checkpoint(self, name: str, target: str | type) -> None:
        """Offer a checkpoint engine."""
        self._registry.add("checkpoint", name, target, self._plugin)

    def callback(self, name: str, target: str | type) -> None:
        """Offer a callback."""
        self._registry.add("callback", name, target, self._plugin)

    def launcher(self, name: str, target: str | type) -> None:
        """Offer a launcher of ranks."""
        self._registry.add("launcher", name, target, self._plugin)


@attrs.define(eq=False)
class _Entry:
    kind: str
    name: str
    target: str | type
    plugin: PluginInfo
    loaded: type | None = None


class UnknownComponent(PluginError):
    """No plugin offers a component of this kind and name. The message has the nearest name, the remedy all of them."""


class Registry:
    """All components of one plugin manager, by kind and name."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, list[_Entry]]] = {kind: {} for kind in KINDS}
        self._qualified: set[tuple[str, str]] = set()

    def add(self, kind: str, name: str, target: str | type, plugin: PluginInfo) -> None:
        """Record a component of a plugin.

        The same name from another plugin is recorded too: see ``ambiguities``.

        Raises:
            PluginError: the kind does not exist, name or target is malformed, or the plugin offers the name twice.
        """
        _check_entry(kind, name, target, plugin)
        entries = self._entries[kind].setdefault(name, [])
        for entry in entries:
            if entry.target is target and isinstance(target, type):
                return
            if entry.plugin is plugin:
                raise PluginError(
                    f"{plugin} offers the {kind} {name!r} twice: {_shown(entry.target)} and {_shown(target)}",
                    where=plugin.where or None,
                    remedy=f"give one of them another name; or {plugin.repair}",
                )
        entries.append(_Entry(kind, name, target, plugin))
        plugin.components.append((kind, name))

    def register_classes(self, classes: Iterable[type], plugin: PluginInfo) -> None:
        """Record component classes that a recipe's own code declares, abstract ones excepted.

        A class goes by the ``name`` in its own body, else by its class name; an inherited ``name`` is its parent's.

        Raises:
            PluginError: two of the classes go by one name.
        """
        for cls in classes:
            if not inspect.isabstract(cls) and cls.kind in self._entries:  # type: ignore[attr-defined]
                self.add(cls.kind, vars(cls).get("name") or cls.__name__, cls, plugin)  # type: ignore[attr-defined]

    def discard(self, plugin: PluginInfo) -> None:
        """Forget all that a plugin offers."""
        for names in self._entries.values():
            for name, entries in list(names.items()):
                names[name] = [entry for entry in entries if entry.plugin is not plugin]
                if not names[name]:
                    del names[name]
        plugin.components.clear()

    def names(self, kind: str) -> list[str]:
        """The names of all components of a kind, sorted."""
        return sorted(self._entries[kind])

    def get(self, kind: str, name: str, *, needed_by: str = "") -> type:
        """The class of a component; imports its target.

        Args:
            kind: one of ``KINDS``.
            name: the component's name, or ``distribution:name`` (the plugin's name serves too) where two offer it.
            needed_by: who asks, for the message when there is no such component, such as ``the trainer 'sft'``.

        Raises:
            UnknownComponent: nothing goes by that name.
            PluginError: the target cannot be imported or is no component of that kind.
        """
        entry = self._find(kind, name, needed_by)
        if entry.loaded is None:
            entry.loaded = _load(entry)
        return entry.loaded

    def provider(self, kind: str, name: str) -> PluginInfo:
        """The plugin whose component ``get`` returns for this name."""
        return self._find(kind, name, "").plugin

    def ambiguities(self) -> list[Broken]:
        """One for each name that several plugins offer and that nobody asked for as ``distribution:name``.

        Until one is blocked or the recipe says which is meant, ``get`` gives the one registered first, so that a recipe
        can still be validated; a run stops on these errors.
        """
        return [
            _ambiguity(entries)
            for kind, names in self._entries.items()
            for name, entries in names.items()
            if len(entries) > 1 and (kind, name) not in self._qualified
        ]

    def _find(self, kind: str, name: str, needed_by: str) -> _Entry:
        if kind not in self._entries:
            raise PluginError(f"there is no kind of component {kind!r}{did_you_mean(kind, KINDS)}")
        entries = self._entries[kind].get(name)
        if entries:
            return entries[0]
        owner, separator, plain = name.rpartition(":")
        entries = self._entries[kind].get(plain) if separator else None
        for entry in entries or ():
            if normalized(owner) in (normalized(entry.plugin.distribution), normalized(entry.plugin.name)):
                self._qualified.add((kind, plain))
                return entry
        raise self._unknown(kind, name, needed_by)

    def _unknown(self, kind: str, name: str, needed_by: str) -> UnknownComponent:
        from arctic_training._exports import KNOWN_COMPONENTS

        message = f"there is no {kind.replace('_', ' ')} {name!r}" + (f", needed by {needed_by}" if needed_by else "")
        known = KNOWN_COMPONENTS.get((kind, name))
        if known:
            return UnknownComponent(f"{message}; it comes with {known}", remedy=f"pip install {known}")
        _, separator, plain = name.rpartition(":")
        offers = self._entries[kind].get(plain, []) if separator else []
        hint = f"; {plain!r} is offered by {_sources(offers)}" if offers else did_you_mean(name, self._entries[kind])
        available = ", ".join(self.names(kind)) or "none"
        return UnknownComponent(f"{message}{hint}", remedy=f"installed are: {available}")


def _check_entry(kind: str, name: str, target: Any, plugin: PluginInfo) -> None:
    if kind not in KINDS:
        raise PluginError(f"{plugin}: there is no kind of component {kind!r}{did_you_mean(kind, KINDS)}")
    if not isinstance(name, str) or not name or ":" in name or name != name.strip():
        raise PluginError(
            f"{plugin}: {name!r} cannot be the name of a {kind}",
            where=plugin.where or None,
            remedy="a name is text without a colon and without space around it",
        )
    if isinstance(target, type):
        return
    module, separator, attribute = target.partition(":") if isinstance(target, str) else ("", "", "")
    if not (separator and module and attribute):
        raise PluginError(
            f"{plugin}: the {kind} {name!r} has the target {target!r}",
            where=plugin.where or None,
            remedy='a target is "package.module:Class", or a class',
        )


def _load(entry: _Entry) -> type:
    from arctic_training.component import Component

    loaded: Any = entry.target if isinstance(entry.target, type) else _imported(entry, entry.target)
    problem = ""
    if not (isinstance(loaded, type) and issubclass(loaded, Component)):
        problem = "is no class derived from Component"
    elif loaded.kind != entry.kind:
        problem = f"is of the kind {loaded.kind or '(none)'}, not {entry.kind}"
    elif inspect.isabstract(loaded):
        problem = f"does not implement {', '.join(sorted(loaded.__abstractmethods__))}"
    if problem:
        raise PluginError(
            f"{entry.plugin}: {_shown(entry.target)}, registered as the {entry.kind} {entry.name!r}, {problem}",
            where=entry.plugin.where or None,
            remedy=entry.plugin.repair,
        )
    return loaded


def _imported(entry: _Entry, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except (Exception, SystemExit) as error:
        package = module.partition(".")[0]
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        install = f"pip install {missing}; or " if missing not in ("", package) else ""
        raise PluginError(
            f"{entry.plugin}: {target}, registered as the {entry.kind} {entry.name!r}, cannot be imported: "
            f"{describe_fault(error)}",
            where=location_of_fault(error, package) or entry.plugin.where or None,
            remedy=f"{install}{entry.plugin.repair}",
        ) from error


def _ambiguity(entries: list[_Entry]) -> Broken:
    first, second = entries[0], entries[1]
    qualified = f"{first.plugin.distribution or first.plugin.name}:{first.name}"
    blocks = " or ".join(f"-p no:{entry.plugin.name}" for entry in entries if entry.plugin.name != "core")
    error = PluginError(
        f"the {first.kind.replace('_', ' ')} {first.name!r} is offered by {_sources(entries)}",
        where=second.plugin.where or None,
        remedy=f"write `type: {qualified}` to choose one, or block one with {blocks}",
    )
    return Broken(second.plugin.name, second.plugin.distribution, second.plugin.version, error)


def _sources(entries: Iterable[_Entry]) -> str:
    return " and by ".join(str(entry.plugin) for entry in entries)


def _shown(target: str | type) -> str:
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
