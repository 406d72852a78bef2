"""``arctic_training RECIPE [launcher arguments]``, for users of the original: the same as ``arctic run``, and
``arctic_training process-data RECIPE`` the same as ``arctic data``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from arctic_cli.errors import guarded
from arctic_cli.main import show_version
from arctic_cli.options import Settings, with_common_options

PROGRAM = "arctic_training"
PROCESS_DATA = "process-data"


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
    command: click.Command = run
    program = PROGRAM
    if words[:1] == [PROCESS_DATA]:
        from arctic_cli.data import data

        command, program, words = data, f"{PROGRAM} {PROCESS_DATA}", words[1:]
    command = with_common_options(command)
    return guarded(
        lambda: command.main(args=words or ["--help"], prog_name=program, standalone_mode=False, obj=settings), settings
    )
