"""``arctic ctl``: look at a run that is going on, and ask it for something."""

from __future__ import annotations

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import click

from arctic_cli.terminal import say
from arctic_training.errors import UsageError

SECONDS_BETWEEN_LOOKS = 0.1
DONE = {"save": "saved", "evaluate": "evaluated", "stop": "stopped"}


@click.command(epilog="\b\nExamples:\n  arctic ctl runs/my-run status\n  arctic ctl runs/my-run save")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.argument("action", type=click.Choice(["status", "save", "evaluate", "stop"]), default="status")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until it is done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ctl(run_dir: Path, action: str, no_wait: bool, as_json: bool) -> None:
    """Show where the run in RUN_DIR stands, or ask it to save, to evaluate, or to save and stop.

    It is done between two steps, by all ranks together.
    """
    status = _status_of(run_dir)
    if action == "status":
        click.echo(json.dumps(status, indent=2) if as_json else "\n".join(lines_of(status)))
        return
    _refuse_ended(run_dir, status)
    answer = ask(run_dir, action, wait=not no_wait)
    if as_json:
        click.echo(json.dumps(answer))
    elif answer is None:
        say(f"asked the run to {action} after the step it is in")
    else:
        say(words_of(action, answer))


def words_of(action: str, answer: dict[str, Any]) -> str:
    """What a run answered, for people."""
    if action == "evaluate":
        if not answer["losses"]:
            return "not evaluated: the run has no evaluation data"
        losses = ", ".join(f"{name}: loss {loss:.4f}" for name, loss in answer["losses"].items())
        return f"evaluated after step {answer['step']}: {losses}"
    paths = ", ".join(answer["saved"]) or "nothing to save to: the recipe's checkpoint has no entry"
    return f"{DONE[action]} after step {answer['step']}: {paths}"


def ask(run_dir: Path, action: str, *, wait: bool) -> dict[str, Any] | None:
    """Put a request into the run's directory.

    Returns:
        The run's answer: ``step`` and the checkpoints ``saved``; None without ``wait``.

    Raises:
        UsageError: the run ended before it answered.
    """
    from arctic_training.steering import FOLDER

    folder = run_dir / FOLDER
    done = folder / f"{action}.done"
    try:
        folder.mkdir(exist_ok=True)
        done.unlink(missing_ok=True)
        (folder / action).touch()
    except OSError as error:
        raise UsageError(f"nothing can be asked of this run: {error.strerror}", where=str(folder)) from error
    while wait:
        ended = _is_over(_status_of(run_dir))
        try:
            return json.loads(done.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if ended:
                (folder / action).unlink(missing_ok=True)
                _refuse_ended(run_dir, _status_of(run_dir))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return None


def lines_of(status: dict[str, Any]) -> list[str]:
    """A run's status for people."""
    from arctic_training.reporting import duration, shown_path

    ago = duration(max(0.0, time.time() - status["updated"]))
    lines = [f"{_STATES.get(status['state'], status['state'])}, as of {ago} ago"]
    if "reason" in status:
        lines.append(f"  why         {status['reason']}")
    if "step" in status:
        epoch = f", epoch {status['epoch']:.2f}" if "epoch" in status else ""
        lines.append(f"  step        {status['step']} of {status['last_step']}{epoch}")
    if status.get("loss") is not None:
        lines.append(f"  loss        {status['loss']:.4f}")
        lines.append(f"  speed       {status['tokens_per_second']:,.0f} tokens/s")
    if status.get("seconds_left") and not _is_over(status):
        lines.append(f"  time left   {duration(status['seconds_left'])}")
    for name, found in status.get("evaluation", {}).items():
        loss = "none" if found["loss"] is None else f"{found['loss']:.4f}"
        lines.append(f"  {name:<11} loss {loss} at step {found['step']}")
    if found := status.get("checkpoint"):
        written = datetime.datetime.fromtimestamp(found["time"]).strftime("%H:%M:%S")
        lines.append(f"  checkpoint  {shown_path(found['path'])}, at {written}")
    lines.append(f"  process     {status['pid']} on {status['host']}")
    return lines


_STATES = {"gone": "ended without a word: its process is not there any more"}


def _status_of(run_dir: Path) -> dict[str, Any]:
    from arctic_training.status import FILE, read_status

    try:
        status = read_status(run_dir)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"its status cannot be read: {error}", where=str(run_dir)) from error
    if status is None:
        raise UsageError(
            f"there is no {FILE} in it" if run_dir.is_dir() else f"there is no such directory{_but_a_file(run_dir)}",
            where=str(run_dir),
            remedy="name the directory of a run, as its first line tells it: runs/NAME-DATE-TIME",
        )
    return status


def _but_a_file(path: Path) -> str:
    return ", but a file" if path.exists() else ""


def _is_over(status: dict[str, Any]) -> bool:
    from arctic_training.status import ENDED

    return status["state"] in (*ENDED, "gone")


def _refuse_ended(run_dir: Path, status: dict[str, Any]) -> None:
    if _is_over(status):
        raise UsageError(
            f"the run is over: {_STATES.get(status['state'], status['state'])}",
            where=os.path.relpath(run_dir) if run_dir.is_relative_to(Path.cwd()) else str(run_dir),
            remedy="start it again; with auto_resume it goes on from its last checkpoint"
            if status["state"] != "finished"
            else "ask a run that is going on",
        )
