"""Text for people: colours only on a terminal that wants them, columns that line up, plain lines when piped."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import click


def wants_color(stream: TextIO, asked: bool | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour text on a stream; ``asked`` is what the user said, None when nothing."""
    if asked is not None:
        return asked
    return not environment.get("NO_COLOR") and environment.get("TERM") != "dumb" and stream.isatty()


def say(text: str = "", **style: Any) -> None:
    """Print a line on standard output, styled where colours are wanted."""
    _print(text, sys.stdout, style)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    _print(f"warning: {text}", sys.stderr, {"fg": "yellow"})


def complain(text: str = "", *, color: bool | None = None, **style: Any) -> None:
    """Print a line about an error on standard error."""
    _print(text, sys.stderr, style, color)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns. The last column is wrapped to the width of a terminal and left alone in a pipe."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else 0
    for number, row in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        last = textwrap.wrap(row[-1], room, break_long_words=False) if room >= 24 else [row[-1]]
        text = "  ".join([*cells, ("\n" + " " * indent).join(last or [""])]).rstrip()
        say(text, bold=number == 0) if number == 0 else say(text)


def _print(text: str, stream: TextIO, style: Mapping[str, Any], color: bool | None = None) -> None:
    context = click.get_current_context(silent=True)
    if color is None and context is not None:
        color = context.color
    colored = wants_color(stream, color)
    click.echo(click.style(text, **style) if style and colored else text, file=stream, color=colored)
