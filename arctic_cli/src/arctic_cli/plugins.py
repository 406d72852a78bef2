"""``arctic plugins``: which plugins there are, what each offers, and in which order their hook implementations run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from arctic_cli.commands import CommandTable, find_commands
from arctic_cli.options import Settings
from arctic_cli.terminal import complain, print_table, say
from arctic_training.errors import UsageError

if TYPE_CHECKING:
    from arctic_training.plugins import PluginManager
    from arctic_training.provenance import Broken, PluginInfo

PREFIX = "arctic_"

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """Show which plugins there are and what each offers.

    Without a word after it, the same as `arctic plugins list`.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_plugins, as_json=as_json)
    elif as_json:
        raise click.UsageError("--json stands behind the last word, as in: arctic plugins hooks --json")


@plugins.command("list")
@as_json
@click.pass_obj
def list_plugins(settings: Settings, as_json: bool) -> None:
    """Show name, distribution, version, status and what each plugin offers."""
    manager = _manager(settings)
    table = find_commands(settings.block)
    infos = [*manager.plugins, *_plugins_of_commands_alone(manager, table)]
    broken = [*manager.broken, *table.broken]
    if as_json:
        _print_json([_described(info, table, broken) for info in infos])
        return
    header = ("NAME", "DISTRIBUTION", "VERSION", "STATUS", "OFFERS")
    print_table(header, [_row(info, table, settings) for info in infos])
    for each in broken:
        lines = str(each.error).splitlines()
        complain()
        complain(f"broken: {lines[0]}", fg="red")
        for line in lines[1:]:
            complain(line)


@plugins.command("hooks")
@click.argument("name", required=False)
@as_json
@click.pass_obj
def list_hooks(settings: Settings, name: str | None, as_json: bool) -> None:
    """Show the order in which the implementations of each hook run, or of the hook NAME."""
    manager = _manager(settings)
    names = [_hook(name, manager)] if name else list(manager.specifications)
    if as_json:
        _print_json([_implementations(hook, manager) for hook in names])
    elif name:
        _print_hook(names[0], manager)
    else:
        rows = [(hook, ", ".join(_shown(*each[:2]) for each in manager.implementations(hook)) or "-") for hook in names]
        print_table(("HOOK", "RUNS, IN THIS ORDER"), rows)


def _manager(settings: Settings) -> PluginManager:
    from arctic_training.plugins import create_plugin_manager

    return create_plugin_manager(block=settings.block)


def _plugins_of_commands_alone(manager: PluginManager, table: CommandTable) -> list[PluginInfo]:
    """Plugins that bring commands, or fail to, and nothing else; the others are in the manager already."""
    from arctic_training.provenance import PluginInfo

    infos = [entry.plugin for entry in table.entries.values() if entry.plugin is not None]
    infos += [
        PluginInfo(each.name, each.distribution, each.version, status="broken", error=str(each))
        for each in table.broken
    ]
    alone = {(info.name, info.distribution): info for info in infos}
    known = {(info.name, info.distribution) for info in manager.plugins}
    return [info for key, info in alone.items() if key not in known]


def _row(info: PluginInfo, table: CommandTable, settings: Settings) -> tuple[str, str, str, str, str]:
    offers = _offers(info, table, hooks=settings.verbosity >= 0)
    if info.status == "broken":
        offers = info.error.removeprefix(str(info)).lstrip(": ")
    return info.name, info.distribution or info.where, info.version or "-", info.status, offers or "-"


def _offers(info: PluginInfo, table: CommandTable, *, hooks: bool) -> str:
    """``trainer: sft; data: sft; commands: generate; hooks: step_end, train_end``."""
    offers: dict[str, list[str]] = {}
    for kind, name in info.components:
        offers.setdefault(kind.replace("_", " "), []).append(name)
    offers["commands"] = _commands(info, table)
    if hooks and info.name != "core":
        offers["hooks"] = [hook.removeprefix(PREFIX) for hook in info.hooks if hook != "arctic_register_components"]
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in offers.items() if names)


def _commands(info: PluginInfo, table: CommandTable) -> list[str]:
    return [name for name, entry in table.entries.items() if entry.plugin is not None and _is(entry.plugin, info)]


def _described(info: PluginInfo, table: CommandTable, broken: Sequence[Broken]) -> dict[str, Any]:
    """A plugin as JSON: its error whole, since there is room."""
    errors = [str(each.error) for each in broken if _is(each, info)]
    return {
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "summary": info.summary,
        "where": info.where,
        "components": [{"kind": kind, "name": name} for kind, name in info.components],
        "hooks": list(info.hooks),
        "commands": _commands(info, table),
        "error": "\n".join(errors) or info.error,
    }


def _is(one: PluginInfo | Broken, other: PluginInfo) -> bool:
    return (one.name, one.distribution) == (other.name, other.distribution)


def _hook(name: str, manager: PluginManager) -> str:
    """The full name of a hook, which may be given without its prefix."""
    for candidate in (name, PREFIX + name):
        if candidate in manager.specifications:
            return candidate
    from arctic_training.provenance import did_you_mean

    full = name if name.startswith(PREFIX) else PREFIX + name
    raise UsageError(
        f"{full} is no hook{did_you_mean(full, manager.specifications)}", remedy="`arctic plugins hooks` lists them"
    )


def _implementations(hook: str, manager: PluginManager) -> dict[str, Any]:
    implementations = [
        {"plugin": plugin, "kind": kind, "where": where} for plugin, kind, where in manager.implementations(hook)
    ]
    return {"hook": hook, "implementations": implementations}


def _print_hook(hook: str, manager: PluginManager) -> None:
    rows = [(str(number), plugin, kind or "-", where) for number, (plugin, kind, where) in _numbered(hook, manager)]
    say(hook, bold=True)
    if rows:
        print_table(("RUNS", "PLUGIN", "KIND", "WHERE"), rows)
    else:
        say("nobody implements it")


def _numbered(hook: str, manager: PluginManager) -> list[tuple[int, tuple[str, str, str]]]:
    return list(enumerate(manager.implementations(hook), start=1))


def _shown(plugin: str, kind: str) -> str:
    return f"{plugin} ({kind})" if kind else plugin


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
