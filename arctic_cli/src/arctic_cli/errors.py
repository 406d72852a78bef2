"""The one door through which every error leaves a command: a few lines on standard error and an exit code.

First what is wrong and where, last what to do. The whole trace is shown when asked for; for a fault of ours it is in a
log whose path is printed.
"""

from __future__ import annotations

import datetime
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from arctic_cli.options import Settings
from arctic_cli.terminal import complain
from arctic_training.errors import ArcticError, Interrupted, PluginError, RecipeError, StoppedOnRequest
from arctic_training.redaction import redact, redacting_streams, shown_command
from arctic_training.trust import closed_to_others

INTERRUPTED = 130
INTERNAL_ERROR = 1
MOST_LINES = 5


def guarded(command: Callable[[], Any], settings: Settings) -> int:
    """Run a command; whatever it raises becomes words and an exit code.

    Nothing that it prints holds a secret, and nothing that it writes can be changed by everybody.

    Returns:
        The exit code: 0 when the command ended well, the error's own, 2 for a wrong command line, 130 for an
        interruption, 1 for anything that we did not foresee.
    """
    with redacting_streams(sys.stdout, sys.stderr), closed_to_others():
        try:
            result = command()
        except BaseException as error:  # noqa: BLE001 - the door: whatever comes becomes words and an exit code
            return explain(error, settings)
    return result if type(result) is int else 0


def explain(error: BaseException, settings: Settings) -> int:
    """Say on standard error what went wrong: on a few lines, or on one for one of several processes.

    Returns:
        The exit code.
    """
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return error.code or 0
    if settings.traceback:
        complain("".join(traceback.format_exception(error)).rstrip(), color=settings.color)
    code, lines = _explained(error)
    if settings.parent_tells and getattr(error, "arctic_written_down", False):
        return code  # else one cause would be said by every rank that it ended, and once more for all of them
    if settings.speaker:
        lines = [f"{settings.speaker}: {'; '.join(line.strip() for line in lines)}"]
    problems = len(error.problems) if isinstance(error, RecipeError) else 1
    for number, line in enumerate(lines):
        complain(line, color=settings.color, **({"fg": "red"} if number < problems else {}))
    return code


def _explained(error: BaseException) -> tuple[int, list[str]]:
    """The exit code of an error and the lines that explain it."""
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        return INTERRUPTED, ["interrupted"]
    if isinstance(error, click.exceptions.NoArgsIsHelpError):  # the message is the help
        return error.exit_code, error.format_message().splitlines()
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = [f"  {context.command_path} --help shows what it takes"] if context else []
        return error.exit_code, [*f"error: {error.format_message()}".splitlines(), *hint]
    if isinstance(error, RecipeError):
        number = len(error.problems)
        rest = "" if error.is_complete else "; what depends on these keys is checked when they are right"
        return error.exit_code, [
            *map(str, error.problems),
            *([f"{number} problems in the recipe{rest}"] if number > 1 else []),
        ]
    if isinstance(error, ArcticError):
        return error.exit_code, _lines_of(error)
    if isinstance(error, SystemExit):
        return INTERNAL_ERROR, [f"error: {error.code}"]
    return INTERNAL_ERROR, _lines_of_unforeseen(error)


def _lines_of(error: ArcticError) -> list[str]:
    lines = (str(error) if isinstance(error, (Interrupted, StoppedOnRequest)) else f"error: {error}").splitlines()
    log = getattr(error, "arctic_log_path", None)
    if len(lines) > MOST_LINES - bool(log) and not isinstance(error, PluginError):  # each of its faults has a remedy
        log = write_log(error)
        remedy = lines[-1:] if error.remedy else []
        lines = [*lines[: MOST_LINES - 1 - len(remedy)], *remedy]
    return [*lines, f"  the whole log: {log}"] if log else lines


def _lines_of_unforeseen(error: BaseException) -> list[str]:
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:297] + "..."
    lines = [f"internal error: {type(error).__name__}" + (f": {text}" if text else "")]
    if place := _own_place(error):
        lines.append(f"  {place}")
    plugin = getattr(error, "arctic_plugin", None)  # whose hook it came through; everything comes through one of core's
    if plugin is not None and plugin.distribution != "arctic-core":
        lines.append(f"  {error.__notes__[0]}")
    return [*lines, f"  the whole trace: {write_log(error)}"]


def _own_place(error: BaseException) -> str:
    """``file:line, in function`` of the innermost code that is not of the standard library or an installed package."""
    foreign = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *foreign)):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}"
    return ""


def write_log(error: BaseException) -> Path | str:
    """The log that holds the whole trace of an error: the run's, which has it already, else a new file in the cache.

    Returns:
        Its path; where nothing can be written, why.
    """
    if written := getattr(error, "arctic_log_path", None):
        return Path(written)
    from arctic_training.data_cache import cache_home

    path = cache_home() / "logs" / f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"$ {shown_command(sys.argv)}\n{redact(''.join(traceback.format_exception(error)))}")
    except OSError as failure:
        return f"not written ({failure}); --traceback shows it"
    return path
