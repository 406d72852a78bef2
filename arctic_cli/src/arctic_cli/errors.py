"""The one door through which every error leaves a command: a few lines on standard error and an exit code.

First what is wrong and where, last what to do. The whole trace is shown when asked for; for a fault of ours it is in a
log whose path is printed.
"""

from __future__ import annotations

import datetime
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from arctic_cli.options import Settings
from arctic_cli.terminal import complain
from arctic_training.errors import ArcticError, PluginError, RecipeError

INTERRUPTED = 130
INTERNAL_ERROR = 1
MOST_LINES = 5


def guarded(command: Callable[[], Any], settings: Settings) -> int:
    """Run a command; whatever it raises becomes words and an exit code.

    Returns:
        The exit code: 0 when the command ended well, the error's own, 2 for a wrong command line, 130 for an
        interruption, 1 for anything that we did not foresee.
    """
    try:
        result = command()
    except BaseException as error:  # noqa: BLE001 - the door: whatever comes becomes words and an exit code
        return explain(error, settings)
    return result if type(result) is int else 0


def explain(error: BaseException, settings: Settings) -> int:
    """Say on standard error what went wrong.

    Returns:
        The exit code.
    """
    if settings.traceback and not isinstance(error, (SystemExit, click.exceptions.Exit)):
        complain("".join(traceback.format_exception(error)).rstrip(), color=settings.color)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return _code_of(error, settings)
    if isinstance(error, (KeyboardInterrupt, click.exceptions.Abort)):
        complain("interrupted", color=settings.color)
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        return _explain_usage(error, settings)
    if isinstance(error, ArcticError):
        return _explain_ours(error, settings)
    return _explain_unforeseen(error, settings)


def _explain_usage(error: click.ClickException, settings: Settings) -> int:
    _complain(error.format_message(), settings)
    context = getattr(error, "ctx", None)
    if context is not None:
        complain(f"  {context.command_path} --help shows what it takes", color=settings.color)
    return error.exit_code


def _explain_ours(error: ArcticError, settings: Settings) -> int:
    if isinstance(error, RecipeError):
        for problem in error.problems:
            _complain(str(problem), settings, head="")
        if len(error.problems) > 1:
            complain(f"{len(error.problems)} problems in the recipe", color=settings.color)
        return error.exit_code
    lines = str(error).splitlines()
    log = getattr(error, "arctic_log_path", None)
    if len(lines) > MOST_LINES - bool(log) and not isinstance(error, PluginError):  # each of its faults has a remedy
        log = write_log(error)
        remedy = lines[-1:] if error.remedy else []
        lines = [*lines[: MOST_LINES - 1 - len(remedy)], *remedy]
    _complain("\n".join(lines), settings)
    if log:
        complain(f"  the whole log: {log}", color=settings.color)
    return error.exit_code


def _explain_unforeseen(error: BaseException, settings: Settings) -> int:
    text = " ".join(str(error).split())
    _complain(f"internal error: {type(error).__name__}" + (f": {_short(text)}" if text else ""), settings, head="")
    for note in getattr(error, "__notes__", [])[:1]:
        complain(f"  {note}", color=settings.color)
    complain(f"  the whole trace: {write_log(error)}", color=settings.color)
    return INTERNAL_ERROR


def write_log(error: BaseException) -> Path | str:
    """The log that holds the whole trace of an error: the run's, which has it already, else a new file.

    Returns:
        Its path; where nothing can be written, why.
    """
    if written := getattr(error, "arctic_log_path", None):
        return Path(written)
    path = log_directory() / f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}")
    except OSError as failure:
        return f"not written ({failure}); --traceback shows it"
    return path


def log_directory() -> Path:
    """Where errors that belong to no run are logged: below ARCTIC_HOME, or the platform's directory for caches."""
    if home := os.environ.get("ARCTIC_HOME"):
        return Path(home).expanduser() / "logs"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "arctic" / "logs"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "arctic" / "logs"


def _code_of(error: SystemExit, settings: Settings) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    _complain(str(error.code), settings)
    return INTERNAL_ERROR


def _complain(text: str, settings: Settings, *, head: str = "error: ") -> None:
    first, *rest = text.splitlines() or [""]
    speaker = f"{settings.speaker}: " if settings.speaker else ""
    complain(f"{speaker}{head}{first}", color=settings.color, fg="red")
    for line in rest:
        complain(line, color=settings.color)


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
