"""Where a run stands, for whoever looks from outside: ``status.json`` in its directory, replaced as it goes on."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.errors import Interrupted, TrainingStopped
from arctic_training.hookspecs import hookimpl
from arctic_training.orphans import Process
from arctic_training.redaction import redacted

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.state import Metrics
    from arctic_training.trainer import Trainer

FILE = "status.json"
SECONDS_BETWEEN_WRITES = 1.0
ENDED = ("finished", "stopped", "failed")
"""The states of a run that is over."""
_TOLD = ("epoch", "loss", "learning_rate", "tokens_per_second")


class StatusFile:
    """Keeps ``status.json`` up to date, on rank 0. A plugin like any other.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        here = Process.find(os.getpid())
        self.path = path
        self.written = 0.0
        self.recent: list[float] = []
        self.status: dict[str, Any] = {
            "state": "preparing",
            "host": platform.node(),
            "pid": os.getpid(),
            "process_started": here.started if here else 0,
            "started": time.time(),
        }
        self._write()

    @hookimpl
    def arctic_train_start(self, trainer: Trainer) -> None:
        self._enter("training", step=trainer.state.step, last_step=trainer.last_step)
        self.written = 0.0  # the first step is told at once

    @hookimpl
    def arctic_log_metrics(self, metrics: Metrics, step: int, run: Run) -> None:
        if metrics["kind"] == "train":
            self.recent = [*self.recent[-19:], metrics["step_seconds"]]
            left = (run.trainer.last_step - step) * sum(self.recent) / len(self.recent)
            self.status |= {name: metrics[name] for name in _TOLD} | {"step": step, "seconds_left": left}
            if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
                self._write()
        elif metrics["kind"] == "eval":
            self.status.setdefault("evaluation", {})[metrics["name"]] = {"step": step, "loss": metrics["loss"]}
        elif metrics["event"] == "checkpoint":
            self.status["checkpoint"] = {"step": step, "path": metrics["path"], "time": time.time()}

    @hookimpl
    def arctic_evaluate_start(self, trainer: Trainer) -> None:
        self._enter("evaluating")

    @hookimpl
    def arctic_evaluate_end(self, metrics: Metrics, trainer: Trainer) -> None:
        self._enter("training")

    @hookimpl
    def arctic_before_save(self, path: str, step: int, trainer: Trainer) -> None:
        self._enter("saving")

    @hookimpl
    def arctic_after_save(self, path: str, step: int, trainer: Trainer) -> None:
        self._enter("training")

    def end(self, error: BaseException | None) -> None:
        """Tell how the run ended."""
        if error is None:
            self._enter("finished", seconds_left=0)
        else:
            state = "stopped" if isinstance(error, (Interrupted, TrainingStopped, KeyboardInterrupt)) else "failed"
            self._enter(state, reason=next(iter(str(error).splitlines()), type(error).__name__))

    def _enter(self, state: str, **facts: Any) -> None:
        self.status |= {"state": state, **facts}
        self._write()

    def _write(self) -> None:
        """Replace the file in one go, so that nobody reads half of it. Who cannot write here will be told by others."""
        self.written = time.monotonic()
        new = self.path.with_name(f".{FILE}.new")
        try:
            status = redacted({**self.status, "updated": time.time()})
            new.write_text(json.dumps(status, default=str), encoding="utf-8")
            os.replace(new, self.path)
        except OSError:
            return


def read_status(run_dir: Path) -> dict[str, Any] | None:
    """What the run in a directory last told; None when there was none. One whose process is gone without a word has the
    state ``gone``."""
    try:
        status = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if status["state"] not in ENDED and status["host"] == platform.node() and status["process_started"]:
        process = Process.find(status["pid"])
        if process is None or process.started != status["process_started"]:
            status["state"] = "gone"
    return status
