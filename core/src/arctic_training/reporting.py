"""What a run shows and writes while it works: ``metrics.jsonl`` and one line of progress at a time.

A plugin like any other: it takes its records from ``arctic_log_metrics``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from arctic_training.disk_errors import naming
from arctic_training.hookspecs import hookimpl
from arctic_training.redaction import redact

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.state import Metrics


class MetricsFile:
    """Appends each record as a line of JSON, floats at full precision, and flushes it."""

    def __init__(self, paths: list[Path]) -> None:
        self.files: list[TextIO] = []
        for path in paths:
            self.files.append(_opened(path))
            if not _ends_a_line(path):  # a process that was killed while it wrote
                self.files[-1].write("\n")

    @hookimpl
    def arctic_log_metrics(self, metrics: Metrics, step: int, run: Run) -> None:
        line = json.dumps(_strict(metrics), allow_nan=False, default=str) + "\n"
        for number, file in enumerate(self.files):
            if not os.fstat(file.fileno()).st_nlink:
                file.close()
                file = self.files[number] = _opened(Path(file.name))
                run.warn(f"{file.name} was removed; it goes on from step {step}")
            with naming(file.name, len(line)):
                file.write(line)
                file.flush()

    @hookimpl
    def arctic_unconfigure(self, run: Run) -> None:
        for file in self.files:
            with contextlib.suppress(OSError):  # of a line that did not fit, which was told when it was written
                file.close()


class Progress:
    """Prints lines of progress to standard error; on a terminal each takes the place of the one before."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.evaluations = 0
        self.recent: list[float] = []
        self.width = 0

    @hookimpl
    def arctic_log_metrics(self, metrics: Metrics, step: int, run: Run) -> None:
        kind = metrics["kind"]
        if kind == "train":
            self._train(metrics, step, run)
        elif kind == "eval":
            self.evaluations += 1
            interval = run.config.eval_log_iter_interval
            if interval and self.evaluations % interval == 0:
                loss = "none" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
                over = f"{metrics['loss_weight']:,.0f} {run.trainer.units_of_loss()}"
                self.line(f"{metrics['name']} at step {step}: loss {loss} over {over}")
        elif metrics["event"] == "checkpoint":
            self.line(f"checkpoint: {shown_path(metrics['path'])}")
        elif metrics["event"] == "resumed":
            self.line(f"resumed from {shown_path(metrics['path'])} at step {step}")

    @hookimpl
    def arctic_train_end(self, trainer: Any, error: BaseException | None) -> None:
        if self.live and self.width:
            self.stream.write("\n")
            self.width = 0

    def line(self, text: str) -> None:
        """Print a line that stays."""
        clear = f"\r{' ' * self.width}\r" if self.width else ""
        self.width = 0
        print(f"{clear}{redact(text)}", file=self.stream, flush=True)

    def of(self, what: str) -> Callable[[int, int], None]:
        """A function that shows how much of ``what`` is done: in place on a terminal, else a line every ten seconds."""
        begun = time.monotonic()
        last = begun

        def show(done: int, whole: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < (0.2 if self.live else 10):
                return
            last = now
            left = (now - begun) * (whole - done) / max(done, 1)
            text = f"{what}: {done:,} of {whole:,} rows ({done / max(whole, 1):.0%}), {duration(left)} left"
            if self.live:
                self.show(text)
            else:
                self.line(text)

        return show

    def show(self, text: str) -> None:
        """Show a line until the next one comes, on a terminal."""
        text = redact(text)
        self.stream.write(f"\r{text.ljust(self.width)}")
        self.stream.flush()
        self.width = len(text)

    def _train(self, metrics: Metrics, step: int, run: Run) -> None:
        self.recent = [*self.recent[-19:], metrics["step_seconds"]]
        config = run.config
        horizon = run.trainer.last_step
        interval = config.train_log_iter_interval
        if not interval or (step % interval and step != horizon):
            return
        left = (horizon - step) * sum(self.recent) / len(self.recent)
        parts = [f"step {step}/{horizon}", f"epoch {metrics['epoch']:.2f}"]
        if config.loss_log_interval and (step % config.loss_log_interval == 0 or step == horizon):
            parts.append(f"loss {metrics['loss']:.4f}")
        parts += [
            f"lr {metrics['learning_rate']:.2e}",
            f"{metrics['tokens_per_second']:,.0f} tokens/s",
            f"{duration(left)} left",
        ]
        text = "  ".join(parts)
        if not self.live:
            self.line(text)
            return
        self.show(text)


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a")


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _strict(value: Any) -> Any:
    """A record as JSON has it: numbers of other libraries as plain ones, null for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # of torch or numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """``0:42``, ``12:05``, ``3:04:05``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def human_count(count: int) -> str:
    """``3.3 M``, ``41,280``."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,}"


def human_bytes(count: float) -> str:
    """``512 B``, ``3.3 MB``, ``1.2 GB``, in powers of 1000."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} B"


def shown_path(path: str | Path) -> str:
    """A path as short as it can be said from the working directory."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)
