"""Who starts the ranks of a run, and what is said when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from arctic_cli.arguments import Words
from arctic_cli.options import Settings
from arctic_cli.terminal import warn
from arctic_training.errors import ArcticError, Interrupted, StoppedOnRequest

if TYPE_CHECKING:
    from arctic_training.launcher import Launcher
    from arctic_training.trainer_config import TrainerConfig

DEFAULT_LAUNCHER = "deepspeed"
HOW_TO_GET_ONE = "pip install arctic-plugin-deepspeed"


class RankFailed(ArcticError):
    """A rank ended a launched run; its exit code becomes the command's."""

    def __init__(self, message: str, *, where: str, exit_code: int, remedy: str) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.exit_code = exit_code


@attrs.frozen
class Fault:
    """Why a rank ended, as it wrote it down itself. ``was_asked``: by a signal or a request, so that nothing failed."""

    rank: int
    time: float
    message: str
    exit_code: int
    log: str
    was_asked: bool = False


def choose_launcher(config: TrainerConfig, arguments: Sequence[str]) -> Launcher | None:
    """The launcher of a run, or None for one that trains in this process.

    There is one when the command line has arguments for it, or this machine has several accelerators and the recipe
    does not ask for core's engine, which trains in one process.

    Raises:
        PluginError: arguments are given and there is no launcher to take them.
    """
    registry = config.plugin_manager.registry
    names = registry.names("launcher")
    name = DEFAULT_LAUNCHER if DEFAULT_LAUNCHER in names or len(names) != 1 else names[0]
    if arguments:
        return registry.get("launcher", name, needed_by=f"the argument {arguments[0]}")()
    if config.engine.type == "torch" or (accelerators := _count_accelerators()) < 2:
        return None
    if not names:
        warn(f"training on one of {accelerators} accelerators, since no launcher is installed: {HOW_TO_GET_ONE}")
        return None
    return registry.get("launcher", name)()


def launch(launcher: Launcher, config: TrainerConfig, words: Words, settings: Settings) -> int:
    """Start the ranks, wait for them, and tell the cause when they fail.

    The recipe is resolved already, so its errors were said once. The run's directory is chosen here for all ranks.

    Returns:
        0.

    Raises:
        RankFailed: a rank failed; says which and why, and where its log is.
        UsageError: another run writes into the directory.
        Interrupted, StoppedOnRequest: somebody asked the ranks to end.
    """
    from arctic_training.output_lock import refuse_taken
    from arctic_training.run_record import choose_run_dir

    run_dir = choose_run_dir(config)
    refuse_taken(run_dir)
    os.environ["ARCTIC_RUN_DIR"] = str(run_dir)
    forget_faults(run_dir)
    worker = Path(__file__).with_name("worker.py")
    code = launcher.launch(str(worker), worker_arguments(words, settings, run_dir), words.launcher)
    if code == 0:
        return 0
    raise explain_failure(code, run_dir)


def worker_arguments(words: Words, settings: Settings, run_dir: Path) -> list[str]:
    """The command line of each rank: ours without the launcher's part. The directory is an argument, because a launcher
    need not hand our environment on to other machines."""
    options = [word for name in settings.block for word in ("-p", f"no:{name}")]
    if settings.code is False:
        options.append("--no-code")
    if settings.trust:
        options.append("--trust")
    if settings.traceback:
        options.append("--traceback")
    if settings.color is False:
        options.append("--no-color")
    options += ["-v" if settings.verbosity > 0 else "-q"] * abs(settings.verbosity)
    return [
        *options,
        f"--run-dir={run_dir}",
        f"--parent-host={socket.gethostname()}",
        "--",
        words.recipe,
        *words.overrides,
    ]


def forget_faults(run_dir: Path) -> None:
    """Remove what an earlier run in this directory wrote about its end."""
    for path in _fault_files(run_dir):
        path.unlink(missing_ok=True)


def first_fault(run_dir: Path) -> Fault | None:
    """The cause of a run's end: the earliest fault that a rank wrote down; the others follow from it."""
    faults = [Fault(**json.loads(path.read_text(encoding="utf-8"))) for path in _fault_files(run_dir)]
    return min(faults, key=lambda fault: (fault.time, fault.rank), default=None)


def explain_failure(code: int, run_dir: Path) -> ArcticError:
    """The error that a launcher's exit code stands for, with the rank's own words where it left some.

    A signal is the cause itself, and what ranks say follows from it; but a rank that loses the others aborts.
    """
    fault = first_fault(run_dir)
    number = -code if code < 0 else code - 128
    is_signal = number in {each.value for each in signal.Signals}
    if fault is not None and (not is_signal or number == signal.SIGABRT or fault.exit_code == code):
        cause, *remedy = [line.strip() for line in fault.message.strip().splitlines()] or ["failed without a word"]
        if fault.was_asked:
            return _as_of_one_process(fault, cause, next(iter(remedy), None))
        place = "\n  ".join([*remedy[:1], f"the whole log: {fault.log}"])
        return RankFailed(cause, where=f"rank {fault.rank}", exit_code=fault.exit_code, remedy=place)
    logs = sorted((run_dir / "logs").glob("rank-*.log"))
    place = f"the logs of the ranks: {run_dir / 'logs'}" if logs else "no rank wrote a log; the lines above say more"
    if is_signal:
        message = f"the run was ended by signal {number} ({signal.Signals(number).name})"
        if number == signal.SIGKILL:
            message += ", which is what a machine that runs out of memory sends"
        return RankFailed(message, where="launcher", exit_code=128 + number, remedy=place)
    return RankFailed(f"the ranks ended with exit code {code}", where="launcher", exit_code=code, remedy=place)


def _as_of_one_process(fault: Fault, cause: str, remedy: str | None) -> ArcticError:
    """What all ranks did together on request, in the words of a run that has one process."""
    asked: ArcticError = StoppedOnRequest(cause, remedy=remedy)
    if fault.exit_code > 128:
        asked = Interrupted(cause, signal=fault.exit_code - 128, remedy=remedy)
    asked.arctic_log_path = fault.log  # type: ignore[attr-defined]
    return asked


def _fault_files(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "logs").glob("fault-rank-*.json"))


def _count_accelerators() -> int:
    import torch  # only here: help, validate and plugins never need it

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
