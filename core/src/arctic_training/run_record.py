"""What a run leaves behind in its directory: the resolved recipe, what it ran with, its logs, and the cause of its
end."""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training import __version__
from arctic_training.disk_errors import explained, naming
from arctic_training.errors import ArcticError, DiskError, Interrupted, StoppedOnRequest, UsageError
from arctic_training.redaction import RedactingFormatter, redact, redacted, redacted_words

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.trainer_config import LoggerConfig, TrainerConfig

RECORDED_VERSIONS = ("torch", "transformers", "datasets", "deepspeed", "tokenizers", "safetensors", "numpy")
RECORDED_ENVIRONMENT = (
    "ARCTIC_HOME", "ARCTIC_PLUGINS", "ARCTIC_DISABLE_PLUGIN_AUTOLOAD", "ARCTIC_NO_CODE", "CUDA_VISIBLE_DEVICES",
    "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Names, not all that there is."""


def choose_run_dir(config: TrainerConfig) -> Path:
    """The directory of a run: the recipe's ``run_dir``, the launcher's ARCTIC_RUN_DIR, or a new one named by recipe
    and time.

    Ranks that somebody else's launcher started agree on a name without talking: they take the job's number.
    """
    if config.run_dir:
        return Path(config.run_dir).absolute()
    if given := os.environ.get("ARCTIC_RUN_DIR"):
        return Path(given).absolute()
    name = config.recipe.path.stem if config.recipe.path else config.type
    if name == "recipe" and config.recipe.path is not None:
        name = config.recipe.path.absolute().parent.name
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        job = _slurm_job() or os.environ.get("TORCHELASTIC_RUN_ID", "none")
        suffix = job if job != "none" else f"port-{os.environ.get('MASTER_PORT', '0')}-{os.getppid()}"
        return Path("runs", f"{name}-{suffix}").absolute()
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path("runs", f"{name}-{now}").absolute()
    number = 1
    while not _made(path):
        number += 1
        path = path.with_name(f"{name}-{now}-{number}")
    return path


def _made(path: Path) -> bool:
    """Make a directory, unless somebody else has: two runs that start in the same second each get one of their own."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError:  # whoever writes into it first says why
        return True
    return True


def _slurm_job() -> str:
    """The number of this job and of the step in it, since one job may run a recipe several times."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    return ".".join(os.environ[name] for name in names if os.environ.get(name))


class LogFile(logging.FileHandler):
    """A log that cannot be written any more, on a full disk, is said once and takes nothing down with it."""

    is_broken = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.is_broken:
            self.is_broken = True
            print(f"warning: the log {self.baseFilename} cannot be written: {error.strerror}", file=sys.stderr)

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # what could not be written before; that was said
            self.is_broken = True


def start_logging(run: Run, config: LoggerConfig) -> tuple[logging.Logger, Path]:
    """This rank's logger and log file. Arctic's lines go to the file, and what was not said already is printed from
    ``level`` on.

    Returns:
        The logger, and the path of the log file.

    Raises:
        DiskError: the disk has no space for the file, or is read-only.
        UsageError: the file cannot be written.
    """
    rank = run.world.rank
    directory = Path(config.output_dir) if config.output_dir else run.run_dir / "logs"
    path = (directory / f"rank-{rank}.log").absolute()
    log = logging.getLogger("arctic")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    stop_logging(log)
    form = RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handlers: list[logging.Handler] = []
    if config.file_output_ranks == "*" or rank in config.file_output_ranks:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handlers.append(LogFile(path))
        except OSError as error:
            if isinstance(told := explained(error, run), DiskError):
                raise told from error
            raise UsageError(
                f"the run's log cannot be written: {error.strerror}",
                where=str(path),
                remedy="set run_dir or logger.output_dir to a directory that can be written to",
            ) from error
        handlers[-1].setLevel(logging.INFO)
        handlers[-1].setFormatter(form)
    if config.print_output_ranks == "*" or rank in config.print_output_ranks:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[-1].setLevel(config.level)
        handlers[-1].setFormatter(RedactingFormatter("%(levelname)s %(message)s"))
        handlers[-1].addFilter(lambda record: not getattr(record, "said", False))
    for handler in handlers:
        log.addHandler(handler)
    return log, path


def log_is_whole(log: logging.Logger) -> bool:
    """Whether everything so far could be written to the log's file, so that it is worth naming."""
    return not any(getattr(handler, "is_broken", False) for handler in log.handlers)


def stop_logging(log: logging.Logger) -> None:
    """Close the log files."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def write_record(run: Run) -> None:
    """Write ``recipe.yaml`` and ``run.json`` into the run directory; rank 0 only."""
    from arctic_training.dump import dump

    _write(run.run_dir / "recipe.yaml", dump(run.config))
    record = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "arctic": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "plugins": run.fingerprint,
        "code": {"path": str(run.code.path), "sha256": run.code.sha256} if run.code else None,
        "remote_code": run.remote_code,
        "trusted": run.config.trusted,
        "tokenizer": run.tokenizer_sha256,
        "data": run.data_facts,
        "environment": {name: os.environ[name] for name in RECORDED_ENVIRONMENT if name in os.environ},
        "git": _git_state(run.config.recipe.directory),
        "world_size": run.world.size,
        "device": str(run.device),
        "engine": {"type": run.engine_class.name, "reason": run.engine_reason},
        "command": redacted_words(sys.argv),
    }
    _write(run.run_dir / "run.json", json.dumps(redacted(record), indent=1))


def _write(path: Path, text: str) -> None:
    with naming(path, len(text)):
        path.write_text(text)


def write_fault(run: Run, error: BaseException) -> None:
    """Write ``logs/fault-rank-<n>.json``, from which the launcher's parent tells the cause of a run's end."""
    fault = {
        "rank": run.world.rank,
        "time": time.time(),
        "message": redact(str(error) if isinstance(error, ArcticError) else f"{type(error).__name__}: {error}"),
        "exit_code": error.exit_code if isinstance(error, ArcticError) else 1,
        "was_asked": isinstance(error, (Interrupted, StoppedOnRequest)),
        "log": str(run.log_path),
    }
    directory = run.run_dir / "logs"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"fault-rank-{run.world.rank}.json"
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(fault))
    os.replace(new, path)  # whole or not at all: on a full disk half of it would be all that its reader finds


def versions() -> dict[str, str]:
    """The versions of the libraries that decide about a training."""
    return {name: version for name in RECORDED_VERSIONS if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_state(directory: Path) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(git("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None
