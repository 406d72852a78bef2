"""``arctic_training RECIPE [launcher arguments]``, for users of the original: the same as ``arctic run``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from arctic_cli.errors import guarded
from arctic_cli.main import show_version
from arctic_cli.options import Settings, add_common_options

PROGRAM = "arctic_training"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code.
    """
    from arctic_cli.run import run

    words = list(sys.argv[1:] if words is None else words)
    settings = Settings()
    if words == ["--version"]:
        return guarded(show_version, settings)
    command: click.Command = add_common_options(run)
    return guarded(
        lambda: command.main(args=words or ["--help"], prog_name=PROGRAM, standalone_mode=False, obj=settings), settings
    )
