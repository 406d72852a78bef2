"""Finds plugins among the installed distributions and imports them one by one, so that one that fails stops no other.

Blocked plugins are sorted out before anything is imported; the others come sorted by name, not in the order of
directories, which differs between machines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any

import attrs

from arctic_training.errors import PluginError
from arctic_training.provenance import PluginInfo, describe_fault, is_named, location_of_fault, normalized

GROUP = "arctic"
COMMANDS_GROUP = "arctic.commands"


@attrs.frozen(eq=False)
class Candidate:
    """A plugin that may be imported: an entry point of a distribution, or a module that the recipe names."""

    info: PluginInfo
    entry: EntryPoint
    distribution: Distribution | None = None
    rivals: tuple[PluginInfo, ...] = ()

    def blocked_by(self, names: Collection[str]) -> bool:
        """Whether a list of blocked names holds this plugin, by its own name or that of its distribution."""
        return is_named(self.info, names)

    def load(self) -> Any:
        """Import the plugin and return the object that its entry point names.

        Raises:
            PluginError: the import raised anything, ``SystemExit`` and ``SyntaxError`` too (``KeyboardInterrupt``
                passes); or another distribution uses the same entry-point name.
        """
        if self.rivals:
            raise _duplicate(self.info, self.rivals)
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:
            raise _import_error(self, error) from error


def discover(group: str = GROUP, *, block: Collection[str] = ()) -> list[Candidate]:
    """The plugins of the installed distributions sorted by name and distribution; nothing is imported.

    Two that share a name and are not blocked know each other as rivals, and neither loads.
    """
    candidates = sorted(_installed(group), key=lambda candidate: (candidate.info.name, candidate.info.distribution))
    open_infos = [candidate.info for candidate in candidates if not candidate.blocked_by(block)]
    return [attrs.evolve(candidate, rivals=tuple(_rivals(candidate.info, open_infos))) for candidate in candidates]


def named_module(target: str) -> Candidate:
    """A module, or ``module:attribute``, that a recipe asks for by its import name."""
    entry = EntryPoint(name=target, value=target, group=GROUP)
    return Candidate(PluginInfo(target, where=target), entry)


def _installed(group: str) -> Iterator[Candidate]:
    for entry in entry_points(group=group):
        distribution = entry.dist
        metadata: Any = distribution.metadata if distribution is not None else {}
        info = PluginInfo(
            name=entry.name,
            distribution=metadata.get("Name", ""),
            version=metadata.get("Version", ""),
            summary=metadata.get("Summary", ""),
            where=entry.value,
        )
        yield Candidate(info, entry, distribution)


def _rivals(info: PluginInfo, others: Iterable[PluginInfo]) -> Iterator[PluginInfo]:
    if any(other is info for other in others):
        yield from (other for other in others if other is not info and other.name == info.name)


def _duplicate(info: PluginInfo, rivals: Iterable[PluginInfo]) -> PluginError:
    sources = " and ".join(sorted({info.source, *(rival.source for rival in rivals)}))
    return PluginError(
        f"plugin {info.name!r} is brought by more than one distribution, so none of them is loaded: {sources}",
        where=info.where,
        remedy=f"uninstall all but one, or block one by the name of its distribution: -p no:{info.distribution}",
    )


def _import_error(candidate: Candidate, error: BaseException) -> PluginError:
    info, module = candidate.info, candidate.entry.value.partition(":")[0]
    package = module.partition(".")[0]
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    where = location_of_fault(error, package) or info.where
    if missing and missing.partition(".")[0] != package:
        needed = _requirement_for(missing.partition(".")[0], candidate.distribution)
        return PluginError(
            f"{info} cannot be imported: it needs the module {missing!r}, which is not installed",
            where=where,
            remedy=f'pip install "{needed}", or block the plugin with -p no:{info.name}',
        )
    problem = f"there is no module {missing!r}" if missing else describe_fault(error)
    return PluginError(f"{info} cannot be imported: {problem}", where=where, remedy=info.repair)


def _requirement_for(module: str, distribution: Distribution | None) -> str:
    """The requirement of the plugin's distribution that goes by the missing module's name, else that name alone."""
    for requirement in (distribution.requires if distribution else None) or ():
        stated = requirement.partition(";")[0].strip()
        name = stated
        for character in "[(<>=!~ ":
            name = name.partition(character)[0]
        if normalized(name) == normalized(module):
            return stated
    return module
