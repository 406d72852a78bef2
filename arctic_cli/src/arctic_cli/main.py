"""The ``arctic`` command: a click group that knows its commands by name and loads each when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from arctic_cli.commands import CommandTable, find_commands
from arctic_cli.errors import guarded
from arctic_cli.options import Settings, add_common_options, blocked_in, with_common_options

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"]}


def main(words: Sequence[str] | None = None, *, program: str = "arctic") -> int:
    """Run the command line.

    Args:
        words: what follows the program's name; ``sys.argv`` by default.
        program: the name that messages and help show.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if words is None else words)
    settings = Settings()
    group = ArcticGroup(block=blocked_in(words))
    return guarded(
        lambda: group.main(args=words, prog_name=program, standalone_mode=False, obj=settings),
        settings,
    )


class ArcticGroup(click.Group):
    """The commands of ``find_commands``, each imported when it is asked for."""

    is_lazy = True

    def __init__(self, block: Sequence[str] = ()) -> None:
        super().__init__(
            name="arctic",
            help="Post-training of language models, put together from plugins by a recipe.",
            context_settings=CONTEXT_SETTINGS,
            no_args_is_help=True,
        )
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the versions of Arctic and its plugins.",
            )
        )
        add_common_options(self)
        self._block = block
        self._table: CommandTable | None = None

    @property
    def table(self) -> CommandTable:
        """Every command, looked up once."""
        if self._table is None:
            self._table = find_commands(self._block)
        return self._table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.table.entries.get(cmd_name)
        return with_common_options(entry.load()) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.table.entries and not args[0].startswith("-"):
            raise _unknown_command(args[0], self.table, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.help) for entry in self.table.entries.values()])
        if self.table.broken:
            with formatter.section("Plugins whose commands are missing"):
                for broken in self.table.broken:
                    formatter.write(f"{'':{formatter.current_indent}}{broken}\n")

    def invoke(self, ctx: click.Context) -> None:
        super().invoke(ctx)  # what a command returns is no exit code; ``ctx.exit`` gives one


def _unknown_command(name: str, table: CommandTable, context: click.Context) -> click.UsageError:
    from arctic_training.provenance import did_you_mean

    message = f"there is no command {name!r}{did_you_mean(name, table.entries)}"
    missing = "".join(f"\n  {broken}" for broken in table.broken)
    return click.UsageError(message + missing, context)


def _show_version(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if not given or context.resilient_parsing:
        return
    show_version()
    context.exit()


def show_version() -> None:
    """Print the versions of Arctic, its plugins and what they stand on."""
    from arctic_cli.version import versions

    for name, version in versions():
        click.echo(f"{name} {version}")
