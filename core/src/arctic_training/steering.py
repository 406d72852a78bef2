"""What is asked of a run from outside while it trains, by signals and by files; all ranks agree between two steps.

A signal that reaches one rank, or a file that rank 0 finds, becomes one number a kind; the largest over the ranks is
what all of them do. While nothing is trained yet a signal ends the process at once, since there is nothing to save.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.checkpointing import complete, due_by_clock
from arctic_training.distributed import largest_over_ranks
from arctic_training.errors import Interrupted, StoppedOnRequest, TrainingStopped
from arctic_training.signals import SAVING, STOPPING

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.trainer import Trainer

REQUESTS = ("save", "evaluate", "stop")
"""What a file in the folder ``control`` of a run's directory can ask for."""
FOLDER = "control"


@attrs.frozen
class Asked:
    """What all ranks agreed to do after this step.

    Attributes:
        signal: of the signal that ends training, 0 for none.
        clock: a bit for each entry of ``checkpoint`` whose minutes are over.
        save: a checkpoint of every entry.
        evaluate: an evaluation.
        stop: end training with a checkpoint.
        kill: end training as it is.
        by_file: somebody waits for an answer.
        written: every rank has written the checkpoint that was being written in the background.
    """

    signal: int = 0
    clock: int = 0
    save: bool = False
    evaluate: bool = False
    stop: bool = False
    kill: bool = False
    by_file: bool = False
    written: bool = False


class Steering:
    """Takes signals from when a run begins until it has ended, and looks for requests of others.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.is_training = False
        self.signal = 0
        self.save_asked = False
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over. Only the main thread of a process can, and a signal that is ignored stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*STOPPING, *([SAVING] if SAVING is not None else [])):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):
                self._before[number] = before
                signal.signal(number, self._take)

    def forget(self) -> None:
        """Take back what was asked of an earlier run in this directory."""
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def begin(self) -> None:
        """From here on signals wait for the end of a step.

        Raises:
            Interrupted: one came before, and was lost on its way.
        """
        if self.signal:
            raise self._before_training(self.signal)
        self.is_training = True

    def heed(self, trainer: Trainer) -> None:
        """Agree on what is asked, and do it. Every rank calls it between the same two steps.

        Raises:
            Interrupted: a signal ends training; whatever can be resumed from was saved.
            TrainingStopped: somebody asked for the end, or threw the kill switch, which saves nothing.
        """
        step = trainer.state.step
        asked = self.agree()
        if asked.written:
            complete(self.run)
        if asked.evaluate and trainer.eval_dataloaders and self.run.last_evaluation_step != step:
            trainer.evaluate()
        losses = {name: record["loss"] for name, record in self.run.last_evaluation.items()} if asked.evaluate else {}
        if asked.kill:
            complete(self.run)
            switch = self.run.kill_switch_path
            raise self._stopped(step, f"the kill switch {switch} stopped training after step {step}", "delete the file")
        if asked.save:
            trainer.checkpoint()
        for number, engine in enumerate(trainer.checkpoint_engines):
            if asked.clock >> number & 1:
                trainer.save(engine)
        if asked.signal or asked.stop:
            for engine in trainer.checkpoint_engines:
                if engine.config.enabled and engine.resumes:
                    self.run.save(engine)
        if asked.signal or asked.stop or asked.by_file:
            complete(self.run)  # whoever asked wants to find it whole
        saved = [str(path) for path in self.run.saved.values() if path.name.endswith(f"_{step}")]
        if asked.by_file and self.run.world.is_first:
            self._answer({"step": step, "saved": saved, "losses": losses})
        if asked.signal:
            name = signal.Signals(asked.signal).name
            self.run.event("stopped", step=step, reason=name)
            raise Interrupted(f"stopped by {name} after step {step}", signal=asked.signal, remedy=_going_on(saved))
        if asked.stop:
            self.run.event("stopped", step=step, reason="asked to stop")
            raise StoppedOnRequest(f"stopped after step {step}, as was asked", remedy=_going_on(saved))

    def cause_of(self, error: BaseException) -> BaseException:
        """The signal that came before training, where a library made another error of what it met in the middle."""
        if self.signal and not self.is_training and not isinstance(error, (Interrupted, KeyboardInterrupt)):
            return self._before_training(self.signal)
        return error

    def agree(self) -> Asked:
        """What is to be done after this step."""
        found = self._requests() if self.run.world.is_first else []
        save, self.save_asked = self.save_asked, False
        kill = self.run.world.is_first and self.run.kill_switch_path.exists()
        clock = sum(1 << number for number in due_by_clock(self.run)) if self.run.world.is_first else 0
        asked = [self.signal, clock, save or "save" in found, "evaluate" in found, "stop" in found, kill, bool(found)]
        pending = self.run.pending
        asked.append(pending is not None and pending.writer.is_busy)
        number, clock, *flags = largest_over_ranks([int(value) for value in asked], self.run.device)
        save, evaluate, stop, kill, by_file, busy = map(bool, flags)
        written = pending is not None and not busy
        return Asked(number, clock, save, evaluate, stop, kill, by_file, written)

    def _stopped(self, step: int, reason: str, remedy: str) -> TrainingStopped:
        self.run.event("stopped", step=step, reason=reason)
        return TrainingStopped(reason, remedy=remedy)

    def _answer(self, facts: dict[str, Any]) -> None:
        """Tell those who asked by a file that it is done."""
        for name in REQUESTS:
            taken, done = self.folder / f"{name}.taken", self.folder / f"{name}.done"
            if taken.exists():
                taken.write_text(json.dumps(facts))
                os.replace(taken, done)

    @property
    def folder(self) -> Path:
        """Where requests are looked for."""
        return self.run.run_dir / FOLDER

    def _requests(self) -> list[str]:
        """The requests that wait, taken so that each is met once."""
        if not self.folder.is_dir():
            return []
        found = []
        for name in REQUESTS:
            try:
                os.replace(self.folder / name, self.folder / f"{name}.taken")
            except OSError:  # not there, or taken back at this moment
                continue
            found.append(name)
        return found

    def _take(self, number: int, frame: Any) -> None:
        if number == SAVING:
            self.save_asked = True
            return
        again, self.signal = bool(self.signal), self.signal or number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt  # whoever asks twice does not want to wait
        if self.is_training and not again and self.run.world.is_first:
            os.write(2, b"stopping after this step; a second Ctrl-C ends at once\n")  # nothing else is safe in here
        if not self.is_training and not again:
            raise self._before_training(number)

    def _before_training(self, number: int) -> Interrupted:
        return Interrupted(f"stopped by {signal.Signals(number).name} before the first step", signal=number)


def _going_on(saved: list[str]) -> str:
    if not saved:
        return "nothing was saved: no entry of `checkpoint` can be resumed from"
    return f"saved {', '.join(saved)}; the same command goes on from there where the recipe says auto_resume"
