"""Steps whose loss or gradient is not finite: they stop training or are skipped, and step, rank and rows are told."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from arctic_training.checkpointing import complete
from arctic_training.distributed import gather_objects
from arctic_training.errors import TrainingStopped

if TYPE_CHECKING:
    from arctic_training.engine import StepResult
    from arctic_training.trainer import Trainer

MOST_SCALED_STEPS = 50
"""After so many steps in a row that were not applied, the loss scale of fp16 has been halved to nothing: it is not what
is wrong."""
MOST_ROWS_TOLD = 16


def heed(trainer: Trainer, loss: float, result: StepResult, step: int, own_loss: Any, rows: list[int]) -> None:
    """Stop at a step that is not finite, or go on without it where the recipe says so. Every rank calls it.

    Args:
        trainer: whose ``skipped_steps`` counts steps in a row that were not applied.
        loss: of the whole step.
        result: what the engine made of it; it has not applied a gradient that is not finite.
        step: its number.
        own_loss: this rank's part of the loss, a number or a scalar tensor; read only when it matters.
        rows: this rank's rows of the step.

    Raises:
        TrainingStopped: says what, where, and in which rows.
    """
    if math.isfinite(loss) and result.applied:
        trainer.skipped_steps = 0
        return
    trainer.skipped_steps += 1
    config, run = trainer.config, trainer.run
    scale_may_help = config.model.precision == "fp16" and trainer.skipped_steps < MOST_SCALED_STEPS
    if scale_may_help and math.isfinite(loss):
        run.event("skipped_step", step=step, grad_norm=result.grad_norm, reason="loss scale")
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {result.grad_norm}"
    found = _culprit(own_loss, rows)
    if config.on_nonfinite == "skip" and not result.applied and trainer.skipped_steps <= config.max_skipped_steps:
        run.event("skipped_step", step=step, reason=what, **found)
        run.warn(f"{what} at step {step}{_in_words(found)}; the step was skipped")
        return
    complete(run)  # what is being written in the background is from before
    run.event("stopped", step=step, reason=what, **found)
    if result.applied:  # the gradients were finite all the same
        raise TrainingStopped(
            f"{what} at step {step}{_in_words(found)}, though its gradients are finite",
            remedy="look at the rows, and at what the loss does to them",
        )
    going_on = "on_nonfinite: skip goes on"
    if config.on_nonfinite == "skip":
        what = f"{trainer.skipped_steps} steps in a row were not finite: {what}"
        going_on = f"a max_skipped_steps above {config.max_skipped_steps} goes on for longer"
    raise TrainingStopped(
        f"{what} at step {step}{_in_words(found)}; the step was not applied",
        remedy=f"lower the learning rate, or look at the rows: arctic data RECIPE --show; {going_on}",
    )


def _culprit(own_loss: Any, rows: list[int]) -> dict[str, Any]:
    """The first rank whose own loss is not finite, with its rows; without one, the rows of all ranks."""
    told = gather_objects((math.isfinite(float(own_loss)), rows))
    odd = next((rank for rank, (finite, _) in enumerate(told) if not finite), None)
    if odd is not None:
        return {"rank": odd, "rows": told[odd][1]}
    return {"rank": None, "rows": [row for _, of_rank in told for row in of_rank]}


def _in_words(found: dict[str, Any]) -> str:
    rows = found["rows"]
    more = f" and {len(rows) - MOST_ROWS_TOLD} more" if len(rows) > MOST_ROWS_TOLD else ""
    where = "" if found["rank"] is None else f" on rank {found['rank']}"
    listed = ", ".join(map(str, rows[:MOST_ROWS_TOLD]))
    return f"{where}, in row{'s' if len(rows) != 1 else ''} {listed}{more} of the prepared data" if rows else where
