"""DeepSpeed's launcher, kept on a lead: nothing that it started outlives it, and it says nothing of its own.

The launcher and its ranks are a process group of their own, so they can be ended together however this process is told
to end.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

from arctic_training.errors import UsageError
from arctic_training.launcher import Launcher
from arctic_training.orphans import LAUNCHER, Process, end_group, launcher_mark, processes, takes_signals

SECONDS_TO_END = 25.0
"""How long ranks may take to end once one of them has failed or a signal has come."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end training; ranks save first, however long that takes."""


class DeepSpeedLauncher(Launcher):
    """Starts ranks on this machine or, given a hostfile, on several; takes the arguments of the ``deepspeed``
    command."""

    name = "deepspeed"

    def launch(self, worker: str, worker_arguments: Sequence[str], launcher_arguments: Sequence[str]) -> int:
        check_arguments(launcher_arguments)
        command = [*launcher_command(launcher_arguments), worker, *worker_arguments]
        # `python -m` would look for modules in the working directory first, whatever lies there.
        environment = {**os.environ, "PYTHONSAFEPATH": "1", LAUNCHER: launcher_mark(), **_accelerator()}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        group = process.pid
        try:
            with _forwarding_to(group) as received:
                status = process.wait()
                _wait_for_end(group, SECONDS_TO_END if received else 1.0)
        finally:
            end_group(group)
        return 128 + received[0] if received else exit_code_of(status)


def launcher_command(arguments: Sequence[str]) -> list[str]:
    """DeepSpeed's launcher with the user's arguments, and ours where the user has none of the kind."""
    command = [sys.executable, "-m", "arctic_deepspeed.runner", "--no_local_rank"]
    if not _given(arguments, "--log_level", "-q", "--quiet"):
        command.append("--log_level=critical")
    if not _given(arguments, "--master_port", "-H", "--hostfile"):
        # Two runs on one machine would meet at DeepSpeed's fixed port.
        command.append(f"--master_port={_free_port()}")
    return [*command, *arguments]


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that DeepSpeed's launcher would answer with a page of its own, or pass over without a word.

    Raises:
        UsageError: an option or value that the launcher does not know, or a hostfile that is not there.
    """
    if _is_plain(arguments):  # the usual case, without the seconds that importing DeepSpeed takes
        return
    os.environ.update(_accelerator())
    from deepspeed.launcher.runner import parse_args

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = parse_args([*arguments, "worker.py"])
    except SystemExit as error:
        lines = said.getvalue().strip().splitlines() or [str(error.code)]
        raise UsageError(
            f"DeepSpeed's launcher does not take {' '.join(arguments)}: {lines[-1].rpartition('error: ')[2]}",
            remedy="a key of the recipe is set as key=value; the launcher's options: deepspeed --help",
        ) from None
    if parsed.user_script != "worker.py":
        raise UsageError(
            f"{parsed.user_script!r} belongs to no option of DeepSpeed's launcher",
            remedy="a key of the recipe is set as key=value; the launcher's options: deepspeed --help",
        )
    if _given(arguments, "-H", "--hostfile") and not os.path.isfile(parsed.hostfile):
        raise UsageError(f"there is no hostfile {parsed.hostfile}", remedy="correct the path after --hostfile")


def _is_plain(arguments: Sequence[str]) -> bool:
    """Whether these are counts and a port alone."""
    words = [part for argument in arguments for part in argument.split("=", 1)]
    options, values = words[::2], words[1::2]
    return (
        len(options) == len(values)
        and set(options) <= {"--num_gpus", "--num_nodes", "--master_port"}
        and all(value.isdecimal() for value in values)
    )


def exit_code_of(status: int) -> int:
    """An exit code as a shell has it: 128 + n for a process that signal n ended."""
    if status < 0:
        return 128 - status
    # A Python process that exits with -n, as DeepSpeed's launcher does for a rank that a signal ended, gives 256 - n.
    return 128 + 256 - status if status > 256 - signal.NSIG else status


@contextmanager
def _forwarding_to(group: int) -> Iterator[list[int]]:
    """Hand signals to the ranks; yields the list of those that end the run.

    A second one of these ends them at once. DeepSpeed's own launcher does not get the first: it would kill ranks that
    are saving after half a minute.
    """
    received: list[int] = []

    def forward(number: int, _: object) -> None:
        if number != signal.SIGUSR1:
            received.append(number)
        if len(received) > 1:
            _send(group, signal.SIGKILL)
            return
        ranks = _ranks_below(group)
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(rank.pid, number)
        if not ranks and received:  # they run on other machines, or not yet
            _send(group, signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (*FORWARDED, signal.SIGUSR1)}
    try:
        for number in before:
            signal.signal(number, forward)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ranks_below(runner: int) -> list[Process]:
    """The ranks on this machine that take signals themselves: processes below DeepSpeed's runner and its launcher."""
    running = processes()
    launchers = {process.pid for process in running if process.parent == runner}
    return [process for process in running if process.parent in launchers and takes_signals(process.pid)]


def _wait_for_end(group: int, seconds: float) -> None:
    """Wait until no process of the group is left, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and _is_left(group):
        time.sleep(0.05)


def _is_left(group: int) -> bool:
    """Whether a process of the group runs; one that is dead and not yet fetched by its parent does not."""
    running = processes()
    return any(process.group == group for process in running) if running else _send(group, 0)


def _send(group: int, number: int) -> bool:
    """Send a signal to a process group; False when it has no process left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _given(arguments: Sequence[str], *options: str) -> bool:
    return any(argument.partition("=")[0] in options for argument in arguments)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _accelerator() -> dict[str, str]:
    """Spare DeepSpeed the search for an accelerator, and its warning, where torch is built for none."""
    cpu_only = "DS_ACCELERATOR" not in os.environ and metadata.version("torch").endswith("+cpu")
    return {"DS_ACCELERATOR": "cpu"} if cpu_only else {}
