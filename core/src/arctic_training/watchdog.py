"""Ends a run that hangs, and says which rank holds it up and where: ``step_timeout`` of the recipe.

Each rank has a thread that is told of progress by hooks and writes it into a file for the others, since a process group
that hangs carries no message. The rank that got least far, or else the one that waits for nobody, is the culprit.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Generator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.errors import TrainingStopped
from arctic_training.hookspecs import hookimpl
from arctic_training.orphans import end_children
from arctic_training.run_record import write_fault

if TYPE_CHECKING:
    from arctic_training.dataloader import Batch
    from arctic_training.run import Run
    from arctic_training.state import Metrics
    from arctic_training.trainer import Trainer

BETWEEN, LOSS, EVALUATION, SAVE = "between two steps", "loss", "the evaluation", "saving the checkpoint"
SECONDS_FOR_REPORTS = 5.0
"""How long the first rank whose time is over waits for what the others have to say."""
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_BEATS = 10.0
SECONDS_TO_REPORT = 60.0
"""How long this thread itself may hang, on a file system or behind code that keeps Python's lock."""
_COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")


@attrs.frozen
class Beat:
    """How far a rank is.

    Attributes:
        count: how many stretches of work it has begun; the same on all ranks that are in the same place.
        step: the optimizer step that it is in, or was in last.
        phase: the stretch of work that it is in.
        place: where in the code, once its time is over: ``file:line, in function``.
        waits: whether it waits there for other ranks; None while that is not known.
        reported: whether its time is over, or it has seen that another rank's is.
    """

    count: int
    step: int
    phase: str
    place: str = ""
    waits: bool | None = None
    reported: bool = False


class Watchdog:
    """Watches the thread that trains. A plugin like any other, on each rank.

    Args:
        run: the run, whose recipe has a ``step_timeout``.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.limit: float = run.config.step_timeout
        self.rank, self.size = run.world.rank, run.world.size
        self.folder = run.run_dir / "logs"
        self.beat = Beat(0, 0, BETWEEN)
        self.since = time.monotonic()
        self.watched = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="arctic-watchdog", daemon=True)
        if run.world.is_first:
            self._alarm.unlink(missing_ok=True)  # of an earlier run; nobody trains before all ranks are here

    @hookimpl(trylast=True)
    def arctic_train_start(self, trainer: Trainer) -> None:
        self.watched = threading.get_ident()
        self._begin(trainer.state.step, BETWEEN, renew=True)
        self.thread.start()

    @hookimpl(tryfirst=True)
    def arctic_step_start(self, step: int, batch: Batch, trainer: Trainer) -> None:
        self._begin(step, "counting the tokens of the step")

    @hookimpl(wrapper=True, tryfirst=True)
    def arctic_compute_loss(self, batch: Any, trainer: Trainer) -> Generator[None, Any, Any]:
        trains = trainer.model.training
        step = trainer.state.step + trains
        self._begin(step, LOSS if trains else EVALUATION, renew=not trains)
        loss = yield
        self._begin(step, "backward" if trains else EVALUATION, renew=not trains)
        return loss

    @hookimpl(tryfirst=True)
    def arctic_before_optimizer_step(self, step: int, trainer: Trainer) -> None:
        self._begin(step, "the optimizer step")

    @hookimpl(trylast=True)
    def arctic_step_end(self, step: int, metrics: Metrics, trainer: Trainer) -> None:
        self._begin(step, BETWEEN, renew=True)

    @hookimpl(tryfirst=True)
    def arctic_evaluate_start(self, trainer: Trainer) -> None:
        self._begin(trainer.state.step, EVALUATION, renew=True)

    @hookimpl(trylast=True)
    def arctic_evaluate_end(self, metrics: Metrics, trainer: Trainer) -> None:
        self._begin(trainer.state.step, BETWEEN, renew=True)

    @hookimpl(tryfirst=True)
    def arctic_before_save(self, path: str, step: int, trainer: Trainer) -> None:
        self._begin(step, SAVE, renew=True)

    @hookimpl(trylast=True)
    def arctic_after_save(self, path: str, step: int, trainer: Trainer) -> None:
        self._begin(step, BETWEEN, renew=True)

    @hookimpl
    def arctic_train_end(self, trainer: Trainer, error: BaseException | None) -> None:
        self.over.set()
        if self.thread.ident is not None:
            self.thread.join()
        self._path_of(self.rank).unlink(missing_ok=True)

    def _begin(self, step: int, phase: str, *, renew: bool = False) -> None:
        """A stretch of work begins; ``renew`` gives it the whole time."""
        self.beat = Beat(self.beat.count + 1, step, phase)
        if renew:
            self.since = time.monotonic()

    def _watch(self) -> None:
        written, told = 0.0, -1
        pause, beats = min(SECONDS_BETWEEN_LOOKS, self.limit / 4), min(SECONDS_BETWEEN_BEATS, self.limit / 4)
        if self.size > 1:
            self._write(self.beat)
        with self._open_log() as log:
            while not self.over.wait(min(pause, max(0.0, self.since + self.limit - time.monotonic()))):
                now = time.monotonic()
                # From a thread of C: it needs no lock of Python's, which whatever hangs may never give back.
                faulthandler.dump_traceback_later(self.limit + SECONDS_TO_REPORT, file=log, exit=True)
                if now - self.since >= self.limit or (self.size > 1 and self._alarm.exists()):
                    self._end(log)
                if self.size > 1 and self.beat.count != told and now - written >= beats:
                    written, told = now, self.beat.count
                    self._write(self.beat)
            faulthandler.cancel_dump_traceback_later()

    def _end(self, log: Any) -> None:
        """Report, hear what the others report, tell the cause, and end this process, whatever else fails."""
        try:
            frame = sys._current_frames().get(self.watched)
            faulthandler.dump_traceback(file=log)
            beat = attrs.evolve(self.beat, place=_place(frame), waits=_waits(frame), reported=True)
            beats = {self.rank: beat}
            if self.size > 1:
                self._write(beat)
                beats |= self._hear()
            error = TrainingStopped(
                explain(beats, self.size, self.limit),
                remedy=f"the stacks of all threads: {self.log_path or 'above'}; a larger step_timeout waits longer",
            )
            on_one_line = "; ".join(line.strip() for line in str(error).splitlines())
            text = f"rank {self.rank}: error: {on_one_line}" if self.size > 1 else f"error: {error}"
            print(text, file=sys.stderr, flush=True)
            self.run.log.error("the run ended: %s", error, extra={"said": True})
            if self.run.status is not None:
                self.run.status.end(error)
            write_fault(self.run, error)
        except Exception:  # noqa: BLE001 - a full disk, for one, and nobody else would tell it
            traceback.print_exc()
        finally:
            end_children()
            os._exit(TrainingStopped.exit_code)

    def _open_log(self) -> Any:
        try:
            return open(self.log_path, "a") if self.log_path else open(os.dup(2), "w")
        except OSError:
            return open(os.dup(2), "w")

    def _hear(self) -> dict[int, Beat]:
        """What the other ranks report, or told last when they do not."""
        end = time.monotonic() + SECONDS_FOR_REPORTS
        beats: dict[int, Beat] = {}
        while True:
            for rank in range(self.size):
                if rank != self.rank and not (rank in beats and beats[rank].reported):
                    beats |= self._read(rank)
            if time.monotonic() > end or (len(beats) == self.size - 1 and all(b.reported for b in beats.values())):
                return beats
            time.sleep(0.05)

    def _write(self, beat: Beat) -> None:
        """Replace this rank's file in one go; a report calls the others."""
        new = self.folder / f".heartbeat-rank-{self.rank}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(attrs.asdict(beat)), encoding="utf-8")
            os.replace(new, self._path_of(self.rank))
            if beat.reported:
                self._alarm.touch()
        except OSError as error:
            self.run.log.warning("the watchdog cannot tell the other ranks: %s", error)

    def _read(self, rank: int) -> dict[int, Beat]:
        try:
            return {rank: Beat(**json.loads(self._path_of(rank).read_text(encoding="utf-8")))}
        except (OSError, ValueError, TypeError):
            return {}

    def _path_of(self, rank: int) -> Path:
        return self.folder / f"heartbeat-rank-{rank}.json"

    @property
    def _alarm(self) -> Path:
        """The file whose appearance tells all ranks that the time of one is over."""
        return self.folder / "step-timeout"

    @property
    def log_path(self) -> Path | None:
        """This rank's log, if it has one."""
        return self.run.log_path if self.run.log_path.exists() else None


def explain(beats: Mapping[int, Beat], size: int, limit: float) -> str:
    """What takes too long, and which rank holds the others up.

    Args:
        beats: what is known of each rank.
        size: the number of ranks.
        limit: seconds that were allowed.
    """
    answers = {rank: beat for rank, beat in sorted(beats.items()) if beat.reported}
    silent = {rank: beat for rank, beat in sorted(beats.items()) if not beat.reported}
    unseen = size - len(beats)
    least = min(beat.count for beat in answers.values())
    behind = {rank: beat for rank, beat in answers.items() if beat.count == least}
    if len(behind) > 1:
        behind = {rank: beat for rank, beat in behind.items() if not beat.waits} or behind
    first = next(iter(behind.values()))
    head = f"{_task(first)} takes longer than {limit:g} s"
    if silent:
        last = "; ".join(
            f"rank {rank} was seen last{_where(beat)} at step {beat.step}" for rank, beat in silent.items()
        )
        return f"{head}: {_ranks(silent)} answer{'s' * (len(silent) == 1)} no more; {last}"
    where = "" if first.phase in (BETWEEN, EVALUATION, SAVE) else _where(first)
    place = f" ({first.place})" if first.place else ""
    if all(beat.waits for beat in behind.values()) and (unseen or len(behind) == size):
        who = "for others, which left no word in this run's directory" if unseen else "for each other"
        return f"{head}: {_ranks(behind)} wait{'s' * (len(behind) == 1)} {who}{where}{place}"
    return f"{head}: {_ranks(behind)} hang{'s' * (len(behind) == 1)}{where}{place}"


def _task(beat: Beat) -> str:
    if beat.phase in (EVALUATION, SAVE):
        return f"{beat.phase} at step {beat.step}"
    return f"what comes between step {beat.step} and the next" if beat.phase == BETWEEN else f"step {beat.step}"


def _where(beat: Beat) -> str:
    return f" {beat.phase}" if beat.phase == BETWEEN else f" in {beat.phase}"


def _ranks(beats: Mapping[int, Beat]) -> str:
    return f"rank{'s' * (len(beats) > 1)} {', '.join(map(str, beats))}"


def _place(frame: FrameType | None) -> str:
    """``file:line, in function`` of the innermost code that is not of an installed package, else of the innermost."""
    foreign = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    frames = list(reversed(traceback.extract_stack(frame))) if frame is not None else []
    own = (each for each in frames if not each.filename.startswith(("<", *foreign)))
    found = next(own, frames[0] if frames else None)
    return f"{found.filename}:{found.lineno}, in {found.name}" if found else ""


def _waits(frame: FrameType | None) -> bool:
    """Whether a thread is in a collective."""
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _COLLECTIVES):
            return True
        frame = frame.f_back
    return False
