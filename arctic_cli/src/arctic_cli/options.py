"""The options that every command has, and where their values stand while a command runs.

They are added to a command when it is loaded, to those of plugins too, and are understood before and after its name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import click


@attrs.define
class Settings:
    """What the options of every command say. Commands find it with ``click.pass_obj``.

    Attributes:
        block: names of plugins that are not loaded.
        code: False refuses the recipe's Python file; None leaves it to ARCTIC_NO_CODE.
        trust: whether code and pickles are loaded that somebody else could have put there.
        traceback: whether an error shows the whole trace.
        verbosity: above 0 for more words, below 0 for fewer.
        color: False for plain text; None leaves it to the terminal and NO_COLOR.
        parent_tells: whether a launcher's parent on this machine says the cause that its ranks write down.
        speaker: who says the errors, where several processes share a terminal; such as ``rank 1``.
    """

    block: list[str] = attrs.field(factory=list)
    code: bool | None = None
    trust: bool = False
    traceback: bool = False
    verbosity: int = 0
    color: bool | None = None
    parent_tells: bool = False
    speaker: str = ""


def add_common_options(command: click.Command) -> click.Command:
    """Add the options of every command to one, and to those below it; an option that it has already stays its own."""
    taken = {name for parameter in command.params for name in parameter.opts}
    for option in _common_options():
        if not taken & set(option.opts):
            command.params.append(option)
    if isinstance(command, click.Group) and not getattr(command, "is_lazy", False):
        for child in command.commands.values():
            add_common_options(child)
    return command


def with_common_options(command: click.Command) -> click.Command:
    """The same for a copy: the command of a plugin is the plugin's."""
    copied = copy.copy(command)
    copied.params = list(command.params)
    if isinstance(copied, click.Group) and not getattr(copied, "is_lazy", False):
        copied.commands = {name: with_common_options(child) for name, child in copied.commands.items()}
    return add_common_options(copied)


def words_of_common_options() -> tuple[frozenset[str], frozenset[str]]:
    """The words of these options: those that take a value, and those that stand alone."""
    options = _common_options()
    with_value = frozenset(word for option in options if not (option.is_flag or option.count) for word in option.opts)
    every = frozenset(word for option in options for word in option.opts)
    return with_value, every - with_value | {"--help", "-h"}


def blocked_in(words: Sequence[str]) -> list[str]:
    """The plugins that a command line blocks, read before anything is imported or parsed."""
    return [value.removeprefix("no:") for value in _values_of_p(words) if value.startswith("no:")]


def _values_of_p(words: Sequence[str]) -> Iterator[str]:
    for index, word in enumerate(words):
        if word == "--":
            return
        if word == "-p" and index + 1 < len(words):
            yield words[index + 1]
        elif word.startswith("-p") and not word.startswith("--"):
            yield word[2:].removeprefix("=")


def _common_options() -> list[click.Option]:
    def option(*words: str, **attributes: Any) -> click.Option:
        return click.Option(words, expose_value=False, **attributes)

    return [
        option("-p", "plugin", multiple=True, metavar="no:NAME", callback=_block, help="Do not load the plugin NAME."),
        option("--no-code", is_flag=True, callback=_refuse_code, help="Refuse the recipe's own Python file."),
        option("--trust", is_flag=True, callback=_trust, help="Load code and pickles that others could have written."),
        option("--traceback", is_flag=True, callback=_show_traceback, help="Show the whole trace of an error."),
        option("-q", "--quiet", count=True, callback=_quieter, help="Say less."),
        option("-v", "--verbose", count=True, callback=_louder, help="Say more."),
        option("--no-color", is_flag=True, callback=_without_color, help="Plain text, also on a terminal."),
    ]


def _block(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
    for value in values:
        if not value.startswith("no:") or value == "no:":
            raise click.BadParameter(f"expected no:NAME to block a plugin, found {value!r}", context, parameter)
        context.obj.block.append(value.removeprefix("no:"))


def _refuse_code(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        context.obj.code = False


def _trust(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    context.obj.trust |= given


def _show_traceback(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    context.obj.traceback |= given


def _quieter(context: click.Context, parameter: click.Parameter, times: int) -> None:
    context.obj.verbosity -= times


def _louder(context: click.Context, parameter: click.Parameter, times: int) -> None:
    context.obj.verbosity += times


def _without_color(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        context.obj.color = context.color = False
