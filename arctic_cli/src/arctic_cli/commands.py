"""Which commands there are: a literal table of ours, and what plugins bring through the group ``arctic.commands``.

Only names, targets and one line of help are known here. The command behind a name is imported when it is called.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs
import click

from arctic_training.errors import PluginError

if TYPE_CHECKING:
    from arctic_training.discovery import Candidate
    from arctic_training.provenance import Broken, PluginInfo


@attrs.frozen
class Entry:
    """A command that can be called: its target ``package.module:attribute``, a line of help, and whose it is."""

    name: str
    target: str
    help: str
    plugin: PluginInfo | None = None

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            PluginError: a plugin's command cannot be imported or is no click command.
        """
        module, _, attribute = self.target.partition(":")
        if self.plugin is None:
            return getattr(importlib.import_module(module), attribute)
        try:
            command = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            from arctic_training.provenance import describe_fault, location_of_fault

            raise PluginError(
                f"{self.plugin}: the command {self.name!r} cannot be imported: {describe_fault(error)}",
                where=location_of_fault(error) or self.target,
                remedy=self.plugin.repair,
            ) from error
        if not isinstance(command, click.Command):
            raise PluginError(
                f"{self.plugin}: {self.target}, the command {self.name!r}, is no click command",
                where=self.plugin.where or None,
                remedy=f"decorate it with @click.command(); or {self.plugin.repair}",
            )
        return command


BUILTIN = (
    Entry("run", "arctic_cli.run:run", "Train what a recipe describes."),
    Entry("validate", "arctic_cli.validate:validate", "Check a recipe and show what it comes to, without training."),
    Entry("data", "arctic_cli.data:data", "Prepare the data of a recipe and show it."),
    Entry("cache", "arctic_cli.cache:cache", "Show and clear the prepared data that is kept."),
    Entry("ctl", "arctic_cli.ctl:ctl", "Show where a run stands, or ask it to save, evaluate or stop."),
    Entry("plugins", "arctic_cli.plugins:plugins", "Show which plugins there are and what each offers."),
)


class Commands:
    """What a plugin's ``arctic_register_commands`` fills: ``commands.add(name, target, help)``."""

    def __init__(self, entries: dict[str, Entry], plugin: PluginInfo) -> None:
        self._entries = entries
        self._plugin = plugin

    def add(self, name: str, target: str, help: str = "") -> None:
        """Offer a command.

        Args:
            name: the word after ``arctic``.
            target: ``package.module:attribute`` of a click command; imported when the command is called.
            help: one line for ``arctic --help``.

        Raises:
            PluginError: the name is taken, or the target is not of that form.
        """
        owner = self._entries.get(name)
        if owner is not None:
            source = str(owner.plugin) if owner.plugin else "arctic itself"
            raise PluginError(
                f"{self._plugin} offers the command {name!r}, which {source} has",
                where=self._plugin.where or None,
                remedy=self._plugin.repair,
            )
        module, separator, attribute = target.partition(":") if isinstance(target, str) else ("", "", "")
        if not (separator and module and attribute):
            raise PluginError(
                f"{self._plugin}: the command {name!r} has the target {target!r}",
                where=self._plugin.where or None,
                remedy='a target is "package.module:attribute"',
            )
        self._entries[name] = Entry(name, target, " ".join(help.split()), self._plugin)


@attrs.frozen
class CommandTable:
    """Every command by name, and the plugins that wanted to bring some and failed."""

    entries: dict[str, Entry]
    broken: list[Broken] = attrs.field(factory=list)


def find_commands(block: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> CommandTable:
    """Our commands and those of plugins; a plugin that fails keeps none of its own and does not disturb the others.

    Args:
        block: names of plugins or distributions that are not imported.
        environment: where ARCTIC_PLUGINS and ARCTIC_DISABLE_PLUGIN_AUTOLOAD are looked up.
    """
    table = CommandTable({entry.name: entry for entry in BUILTIN})
    for candidate in _candidates(list(block), environment):
        entries = dict(table.entries)
        try:
            _ask(candidate, entries)
        except PluginError as error:
            table.broken.append(_broken(candidate.info, error))
        else:
            table.entries.update(entries)
    return table


def _candidates(block: list[str], environment: Mapping[str, str]) -> list[Candidate]:
    from arctic_training.discovery import COMMANDS_GROUP, discover

    only = [name.strip() for name in environment.get("ARCTIC_PLUGINS", "").split(",") if name.strip()]
    autoload = environment.get("ARCTIC_DISABLE_PLUGIN_AUTOLOAD", "").strip().lower() in ("", "0", "false", "no", "off")
    return [
        candidate
        for candidate in discover(COMMANDS_GROUP, block=block)
        if not candidate.blocked_by(block) and (candidate.blocked_by(only) if only else autoload)
    ]


def _broken(info: PluginInfo, error: PluginError) -> Broken:
    from arctic_training.provenance import Broken

    info.status, info.error = "broken", error.message.splitlines()[0]
    return Broken(info.name, info.distribution, info.version, error)


def _ask(candidate: Candidate, entries: dict[str, Entry]) -> None:
    """Let one plugin add its commands, in a plugin manager of its own so that its failure is its own."""
    from arctic_training import hookspecs
    from arctic_training.plugins import PluginManager
    from arctic_training.provenance import describe_fault, location_of_fault

    info = candidate.info
    manager = PluginManager(hookspecs)
    manager.register(
        candidate.load(), info.name, distribution=info.distribution, version=info.version, where=info.where
    )
    try:
        manager.hook.arctic_register_commands(commands=Commands(entries, info))
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{info}: arctic_register_commands fails: {describe_fault(error)}",
            where=location_of_fault(error) or info.where,
            remedy=info.repair,
        ) from error
